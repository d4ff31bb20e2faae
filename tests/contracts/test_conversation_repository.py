"""What every ``ConversationRepository`` promises: in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.conversations.fingerprints import Transcript, scope_of
from proxy.conversations.repository import (
    CompletionQuery,
    ConversationQuery,
    ConversationRepository,
    ConversationSummary,
    StoredItem,
)
from proxy.errors import ConversationBusy
from proxy.messages import (
    AssistantMessage,
    Compaction,
    ForeignItem,
    FunctionCall,
    Item,
    Message,
    ProviderState,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.store.turns import open_history
from proxy.turns.records import Begun
from proxy.turns.repository import TurnRepository
from proxy.wire.validation.query_params import ListQuery, Order
from tests.fakes.store.conversations import MemoryLibrary
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.turn_records import new_turn, place_of, the_end

WHO = Item(UserMessage("Hi."))
ANSWER = Item(AssistantMessage("Hello!"), "sales")
MORE = Item(UserMessage("More?"))
REASONING = ForeignItem({"type": "reasoning", "summary": []})
EVERYTHING = CompletionQuery(ListQuery(limit=100))


def page_query(given: dict[str, Any], *, limit: int = 10, order: Order = "asc") -> ListQuery:
    """Take the part of a list out of the arguments of a query."""
    return ListQuery(given.pop("after", None), given.pop("limit", limit), given.pop("order", order))


@dataclass
class Store:
    history: TurnRepository
    library: ConversationRepository

    async def turn(self, conversation: str = "conv_a", **more: Any) -> Begun:
        """A finished turn behind the head of the conversation; ``end`` is how it ends."""
        end = more.pop("end", {})
        known = await self.history.find_conversation("alice", conversation)
        begun = await self.history.begin(
            new_turn(conversation, **{"parent": known.head if known else None, **more})
        )
        assert await self.history.finish(the_end(begun.turn, **end))
        return begun

    async def messages(self, conversation: str = "conv_a") -> list[Message] | None:
        items = await self.library.items("alice", conversation)
        return (
            None
            if items is None
            else [retained.item.message for retained in items if isinstance(retained.item, Item)]
        )

    async def ids(self, **given: Any) -> tuple[list[str], bool] | None:
        page = await self.library.list_completions(
            "alice", CompletionQuery(page_query(given, limit=100), **given)
        )
        return None if page is None else ([record.id for record in page.data], page.has_more)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        memory = MemoryHistory()
        yield Store(memory, MemoryLibrary(memory))
        return
    history = open_history(request.getfixturevalue(f"{request.param}_database"))
    yield Store(history, history.library)
    await history.close()


def stored(number: int, **changes: Any) -> dict[str, Any]:
    """A turn asked for with ``store: true``."""
    return {"id": f"chatcmpl-{number}", "is_listed": True, **changes}


# --- stored completions --------------------------------------------------------------------------------------


async def test_only_completed_turns_that_were_to_be_stored_are_listed(store: Store) -> None:
    await store.turn(**stored(1), end={"journal": b"[]"})
    await store.turn(**stored(2, is_listed=False))
    await store.turn(**stored(3), end={"status": "failed", "is_history": False})
    await store.turn(**stored(4), end={"status": "cancelled"})
    await store.history.begin(new_turn("conv_b", **stored(5)))

    page = await store.library.list_completions("alice", EVERYTHING)

    assert page is not None
    assert [(r.id, r.conversation_id, r.journal, r.options) for r in page.data] == [
        ("chatcmpl-1", "conv_a", b"[]", b"{}")
    ]
    assert not page.has_more


async def test_completions_are_listed_in_the_order_of_their_turns_and_in_pages(store: Store) -> None:
    for number in range(1, 6):
        await store.turn(f"conv_{number}", **stored(number, created_at=200.0 - number))

    assert await store.ids(limit=2) == (["chatcmpl-1", "chatcmpl-2"], True)
    assert await store.ids(limit=2, after="chatcmpl-2") == (["chatcmpl-3", "chatcmpl-4"], True)
    assert await store.ids(limit=2, after="chatcmpl-4") == (["chatcmpl-5"], False)
    assert await store.ids(limit=3, after="chatcmpl-4", order="desc") == (
        ["chatcmpl-3", "chatcmpl-2", "chatcmpl-1"],
        False,
    )
    assert await store.ids(after="chatcmpl-9") is None


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [1, 2, 3]),
        ({"model": "shop"}, [1, 2]),
        ({"metadata": {"kind": "a"}}, [1, 2]),
        ({"metadata": {"kind": "a", 'quote"d.key': "b's"}}, [2]),
        ({"metadata": {"kind": ""}}, []),
        ({"metadata": {"other": "a"}}, []),
        ({"model": "shop", "metadata": {"kind": "c"}}, []),
        ({"end_user": "erin"}, [1, 2]),
        ({"end_user": "nobody"}, [1]),
    ],
    ids=str,
)
async def test_completions_are_found_by_what_they_have(
    store: Store, wanted: dict[str, Any], found: list[int]
) -> None:
    await store.turn("one", **stored(1, model="shop", metadata={"kind": "a"}))
    await store.turn(
        "two", **stored(2, model="shop", metadata={"kind": "a", 'quote"d.key': "b's"}, end_user="erin")
    )
    await store.turn("three", **stored(3, metadata={"kind": "c"}, end_user="rob"))

    assert await store.ids(**wanted) == ([f"chatcmpl-{number}" for number in found], False)


async def test_metadata_is_replaced(store: Store) -> None:
    await store.turn(**stored(1, metadata={"kind": "a", "gone": "soon"}))

    record = await store.library.update_completion("alice", "chatcmpl-1", {"kind": "b"})

    assert record is not None
    assert (record.metadata, record.input, record.items) == ({"kind": "b"}, [WHO], [ANSWER])
    assert record == await store.history.turn("alice", "chatcmpl-1")


@pytest.mark.parametrize("caller", ["bob", ""])
async def test_completions_of_other_callers_are_not_deleted(store: Store, caller: str) -> None:
    await store.turn(**stored(1, metadata={"kind": "a"}))
    await store.turn(**stored(2, is_listed=False))

    assert await store.library.update_completion(caller, "chatcmpl-1", {}) is None
    assert not await store.library.delete_completion(caller, "chatcmpl-1")
    assert await store.library.update_completion("alice", "chatcmpl-2", {"kind": "b"}) is None
    assert not await store.library.delete_completion("alice", "chatcmpl-2")
    page = await store.library.list_completions(caller, EVERYTHING)
    assert page is not None
    assert page.data == []
    assert await store.ids(metadata={"kind": "a"}) == (["chatcmpl-1"], False)


async def test_a_deleted_completion_is_not_found_and_its_conversation_continues(store: Store) -> None:
    begun = await store.turn(**stored(1, idempotency_key="k", body_digest=b"d" * 16), end={"pending": ["c1"]})
    await store.turn("conv_b", **stored(2))

    assert await store.library.delete_completion("alice", "chatcmpl-1")

    assert not await store.library.delete_completion("alice", "chatcmpl-1")
    assert await store.history.turn("alice", "chatcmpl-1") is None
    assert await store.history.turn_by_idempotency_key("alice", "k") is None
    assert await store.history.turn_by_body("alice", b"d" * 16, since=0) is None
    assert await store.ids() == (["chatcmpl-2"], False)
    assert await store.ids(after="chatcmpl-1") == (["chatcmpl-2"], False)
    assert await store.messages() == [WHO.message, ANSWER.message]
    assert await store.history.find_pending("alice", ["c1"]) == [("c1", begun.turn)]


@pytest.mark.parametrize(
    "end",
    [{}, {"status": "failed", "is_history": False}, {"status": "cancelled"}],
    ids=["completed", "failed", "cancelled"],
)
async def test_a_response_of_any_status_is_deleted_and_its_conversation_continues(
    store: Store, end: dict[str, Any]
) -> None:
    await store.turn(**stored(1, is_listed=False), end=end)

    assert not await store.library.delete_response("bob", "chatcmpl-1")
    assert await store.library.delete_response("alice", "chatcmpl-1")

    assert not await store.library.delete_response("alice", "chatcmpl-1")
    assert await store.history.turn("alice", "chatcmpl-1") is None
    assert await store.messages() == ([WHO.message, ANSWER.message] if end.get("is_history", True) else [])


async def test_a_response_that_runs_or_has_no_content_is_not_deleted(store: Store) -> None:
    await store.turn(**stored(1, is_stored=False))
    await store.history.begin(new_turn("conv_b", **stored(2)))

    assert not await store.library.delete_response("alice", "chatcmpl-1")
    assert not await store.library.delete_response("alice", "chatcmpl-2")
    assert await store.history.turn("alice", "chatcmpl-2") is not None


# --- conversations -------------------------------------------------------------------------------------------


async def test_a_conversation_is_created_with_items_that_agents_see(store: Store) -> None:
    created = await store.library.create_conversation(
        "alice", "conv_a", metadata={"topic": "rockets"}, items=[WHO, REASONING, MORE], now=50.0
    )

    assert (created.id, created.metadata, created.created_at, created.team, created.end_user) == (
        "conv_a",
        {"topic": "rockets"},
        50.0,
        "",
        "",
    )
    assert created == await store.history.find_conversation("alice", "conv_a")
    assert created.head is not None
    chain = await store.history.chain(created.head)
    assert [(turn.agent, turn.items, turn.conversation_id) for turn in chain] == [("", [WHO, MORE], "conv_a")]


async def test_a_conversation_can_be_created_for_an_end_user(store: Store) -> None:
    created = await store.library.create_conversation(
        "alice", "conv_a", metadata={}, items=[WHO], now=50.0, end_user="erin"
    )

    assert created.end_user == "erin"
    assert created.head is not None
    assert [turn.end_user for turn in await store.history.chain(created.head)] == ["erin"]


async def test_a_conversation_without_items_has_no_head(store: Store) -> None:
    created = await store.library.create_conversation("alice", "conv_a", metadata={}, items=[], now=50.0)

    assert created.head is None
    assert await store.library.items("alice", "conv_a") == []
    assert await store.library.turn_ids("alice", "conv_a") == []


async def test_a_turn_names_the_end_user_of_a_conversation_that_was_created(store: Store) -> None:
    await store.library.create_conversation("alice", "conv_a", metadata={}, items=[WHO], now=50.0)

    await store.turn(end_user="erin")

    conversation = await store.history.find_conversation("alice", "conv_a")
    assert conversation is not None
    assert conversation.end_user == "erin"
    assert await store.messages() == [WHO.message, WHO.message, ANSWER.message]


async def test_conversations_are_listed_in_the_order_they_were_created(store: Store) -> None:
    for name in ("c", "a", "b"):
        await store.turn(name, end_user="rob" if name == "a" else "")
    await store.library.create_conversation("bob", "d", metadata={}, items=[], now=1.0)

    async def names(**given: Any) -> tuple[list[str], bool] | None:
        query = ConversationQuery(page_query(given), **given)
        page = await store.library.list_conversations("alice", query)
        return None if page is None else ([one.id for one in page.data], page.has_more)

    assert await names() == (["c", "a", "b"], False)
    assert await names(limit=2, order="desc") == (["b", "a"], True)
    assert await names(after="a", order="desc") == (["c"], False)
    assert await names(end_user="erin") == (["c", "b"], False)
    assert await names(after="d") is None


async def test_conversations_are_found_by_content_and_title(store: Store) -> None:
    rockets, skates = Item(UserMessage('Sell me "Röckets", 100% red')), Item(UserMessage("And skates?"))
    hidden = Item(ToolMessage("c1", "a secret rebate"), "sales", visible=False)
    await store.turn("a", input=[rockets], end={"items": [hidden, ANSWER]})
    await store.turn("b", input=[skates])
    await store.library.update_conversation("alice", "b", {"title": "Winter sports", "other": "a secret"})

    async def found(search: str, **given: Any) -> list[str]:
        query = ConversationQuery(page_query(given), search, **given)
        page = await store.library.list_conversations("alice", query)
        assert page is not None
        return [one.id for one in page.data]

    assert await found('"röckets", 100% RED') == ["a"]
    assert await found("winter") == ["b"]
    assert await found("hello") == ["a", "b"]
    assert await found("hello", limit=1, order="desc") == ["b"]
    assert await found("content") == []
    assert await found("secret") == []
    assert await found("_ello") == []


async def test_conversations_are_found_by_their_metadata(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.turn(name)
    await store.library.update_conversation("alice", "a", {"pinned": "true", "topic": "röckets"})
    await store.library.update_conversation("alice", "c", {"pinned": "true"})

    async def found(metadata: dict[str, str], **given: Any) -> tuple[list[str], bool]:
        query = ConversationQuery(page_query(given), metadata=metadata, **given)
        page = await store.library.list_conversations("alice", query)
        assert page is not None
        return [one.id for one in page.data], page.has_more

    assert await found({"pinned": "true"}) == (["a", "c"], False)
    assert await found({"pinned": "true"}, limit=1, order="desc") == (["c"], True)
    assert await found({"pinned": "true", "topic": "röckets"}) == (["a"], False)
    assert await found({"pinned": "true"}, search="hello") == (["a", "c"], False)
    assert await found({"pinned": "false"}) == ([], False)
    assert await found({}) == (["a", "b", "c"], False)


async def test_conversations_are_sorted_by_their_last_turn(store: Store) -> None:
    for at, name in enumerate(("a", "b", "c", "a"), 100):
        await store.turn(name, created_at=float(at))
    await store.library.create_conversation("alice", "empty", metadata={}, items=[], now=101.5)

    async def listed(**given: Any) -> list[str]:
        query = ConversationQuery(page_query(given, order="desc"), **{"sort": "updated_at", **given})
        page = await store.library.list_conversations("alice", query)
        assert page is not None
        return [one.id for one in page.data]

    assert await listed() == ["a", "c", "empty", "b"]
    assert await listed(order="asc", limit=3) == ["b", "empty", "c"]
    assert await listed(after="c") == ["empty", "b"]
    assert await listed(after="empty", order="asc") == ["c", "a"]
    assert await listed(sort="created_at") == ["empty", "c", "b", "a"]


async def test_an_excerpt_is_the_part_of_a_message_with_the_search_terms(store: Store) -> None:
    hidden = Item(ToolMessage("c1", "The ROCKET of a tool"), "sales", visible=False)
    long = Item(UserMessage(f"{'ß ' * 100}A red\nRocket, {'please ' * 30}"))
    await store.turn("a", input=[WHO], end={"items": [hidden]})
    await store.turn("a", input=[long])
    known = await store.history.find_conversation("alice", "a")
    assert known is not None

    found = await store.library.excerpts([known.key], "rocket")
    missing = await store.library.excerpts([known.key], "skates")

    assert found == {known.key: f"…{'ß ' * 16}A red Rocket,{' please' * 11}…"}
    assert missing == {known.key: ""}


async def test_a_summary_describes_a_conversation(store: Store) -> None:
    long = Item(UserMessage("A  rocket\n" * 20))
    await store.turn("a", input=[long])
    await store.turn("a", end={"status": "failed", "is_history": False, "items": [], "finished_at": 120.0})
    await store.library.create_conversation("alice", "empty", metadata={}, items=[], now=1.0)
    keys = {}
    for name in ("a", "empty"):
        known = await store.history.find_conversation("alice", name)
        assert known is not None
        keys[name] = known.key

    reported = await store.library.outlines(list(keys.values()))

    content = "A rocket " * 9
    assert reported == {
        keys["a"]: ConversationSummary(f"{content[:79].rstrip()}…", "acme", "sales", 2, 120.0)
    }


async def test_the_tree_of_a_conversation_holds_every_branch(store: Store) -> None:
    first = await store.turn(input=[WHO])
    left = await store.turn(input=[MORE])
    right = await store.turn(input=[Item(UserMessage("Less?"))], parent=first.turn)
    await store.turn(end={"status": "failed", "is_history": False, "items": []})

    tree = await store.library.tree("alice", "conv_a")

    assert [(record.turn, record.parent) for record in tree][:3] == [
        (first.turn, None),
        (left.turn, first.turn),
        (right.turn, first.turn),
    ]
    assert [record.status for record in tree] == ["completed", "completed", "completed", "failed"]
    assert [item.message for item in tree[2].input] == [UserMessage("Less?")]
    assert [item.message for item in tree[2].items] == [ANSWER.message]
    assert await store.library.tree("bob", "conv_a") == []


async def test_the_metadata_of_a_conversation_is_replaced(store: Store) -> None:
    await store.turn()

    changed = await store.library.update_conversation("alice", "conv_a", {"topic": "rockets"})

    assert changed is not None
    assert changed.metadata == {"topic": "rockets"}
    assert changed == await store.history.find_conversation("alice", "conv_a")
    assert await store.library.update_conversation("bob", "conv_a", {}) is None


async def test_deleting_a_conversation_deletes_all_of_it(store: Store) -> None:
    begun = await store.turn(
        **stored(1, idempotency_key="k"),
        end={"fingerprint": b"f" * 16, "last_answer": b"l" * 16, "pending": ["c1"]},
    )
    await store.library.add_items("alice", "conv_a", [MORE, REASONING], now=120.0)

    assert await store.library.delete_conversation("alice", "conv_a", now=130.0)

    assert not await store.library.delete_conversation("alice", "conv_a", now=130.0)
    assert await store.history.find_conversation("alice", "conv_a") is None
    assert await store.history.turn("alice", "chatcmpl-1") is None
    assert await store.history.chain(begun.turn) == []
    assert await place_of(store.history, b"f" * 16) is None
    assert await store.history.find_last_answer(b"l" * 16) is None
    assert await store.history.find_pending("alice", ["c1"]) == []
    assert await store.history.turn_by_idempotency_key("alice", "k") is None
    assert await store.library.items("alice", "conv_a") is None
    assert await store.ids() == ([], False)


async def test_nothing_of_a_conversation_is_there_for_another_caller(store: Store) -> None:
    await store.turn()
    (first, _) = await store.library.items("alice", "conv_a") or ()

    assert await store.library.items("bob", "conv_a") is None
    assert await store.library.turn_ids("bob", "conv_a") == []
    assert await store.library.add_items("bob", "conv_a", [MORE], now=120.0) is None
    assert not await store.library.delete_item("bob", "conv_a", first.turn_id, 0, now=120.0)
    assert not await store.library.delete_conversation("bob", "conv_a", now=120.0)
    assert await store.messages() == [WHO.message, ANSWER.message]


async def test_the_tree_has_all_turns_in_order_with_any_status(
    store: Store,
) -> None:
    first = await store.turn(id="chatcmpl-1")
    lost = await store.turn(id="chatcmpl-2", end={"status": "failed", "is_history": False})
    await store.library.add_items("alice", "conv_a", [MORE], now=120.0)
    branch = await store.turn(id="chatcmpl-3", parent=first.turn)
    await store.turn("conv_b", id="chatcmpl-4")
    running = await store.history.begin(new_turn(id="chatcmpl-5", parent=branch.turn))

    reported = [
        (first.turn, "chatcmpl-1"),
        (lost.turn, "chatcmpl-2"),
        (branch.turn, "chatcmpl-3"),
        (running.turn, "chatcmpl-5"),
    ]
    assert await store.library.turns_behind("alice", "conv_a", 0, limit=9) == reported
    assert await store.library.turns_behind("alice", "conv_a", lost.turn, limit=1) == reported[2:3]
    for caller, conversation in (("bob", "conv_a"), ("alice", "conv_c")):
        assert await store.library.turns_behind(caller, conversation, 0, limit=9) == []


async def test_a_turn_with_a_deleted_answer_keeps_its_position_without_content(store: Store) -> None:
    first = await store.turn(id="chatcmpl-1")
    second = await store.turn(id="chatcmpl-2")
    assert await store.library.delete_response("alice", "chatcmpl-1")

    assert await store.library.turns_behind("alice", "conv_a", 0, limit=9) == [(second.turn, "chatcmpl-2")]
    assert await store.library.turn_key("alice", "conv_a", "chatcmpl-1") == first.turn
    assert await store.library.turn_key("alice", "conv_a", "chatcmpl-3") is None
    assert await store.library.turn_key("alice", "conv_b", "chatcmpl-1") is None
    assert await store.library.turn_key("bob", "conv_a", "chatcmpl-1") is None


# --- items ---------------------------------------------------------------------------------------------------


async def test_items_are_those_on_the_way_to_the_head_hidden_ones_too(store: Store) -> None:
    call = Item(
        AssistantMessage(None, tool_calls=[ToolCall("c1", FunctionCall("look", "{}"))]), "sales", False
    )
    result = Item(ToolMessage("c1", "found"), "sales", False)
    root = await store.turn(id="chatcmpl-1", end={"items": [call, result, ANSWER]})
    await store.turn(id="chatcmpl-2", input=[Item(UserMessage("Left"))])
    await store.turn(
        id="chatcmpl-3", parent=root.turn, input=[Item(UserMessage("Right"))], end={"pending": ["c2"]}
    )
    await store.history.begin(new_turn(id="chatcmpl-4", created_at=100.0))

    assert await store.library.items("alice", "conv_a") == [
        StoredItem("chatcmpl-1", 0, WHO),
        StoredItem("chatcmpl-1", 1, call),
        StoredItem("chatcmpl-1", 2, result),
        StoredItem("chatcmpl-1", 3, ANSWER),
        StoredItem("chatcmpl-3", 0, Item(UserMessage("Right")), ("c2",)),
        StoredItem("chatcmpl-3", 1, ANSWER, ("c2",)),
    ]
    assert await store.library.turn_ids("alice", "conv_a") == ["chatcmpl-1", "chatcmpl-3"]


async def test_turns_without_store_have_no_items(store: Store) -> None:
    await store.turn(id="chatcmpl-1", is_stored=False)

    assert await store.library.items("alice", "conv_a") == []
    assert await store.library.turn_ids("alice", "conv_a") == ["chatcmpl-1"]


async def test_items_are_appended_as_a_turn_of_the_agent_before(store: Store) -> None:
    begun = await store.turn(id="chatcmpl-1")

    added = await store.library.add_items("alice", "conv_a", [MORE, REASONING], now=120.0)

    assert added is not None
    assert [(retained.position, retained.item) for retained in added] == [(0, MORE), (1, REASONING)]
    assert len({retained.turn_id for retained in added}) == 1
    assert added[0].turn_id.startswith("items_")
    assert (await store.library.items("alice", "conv_a") or [])[2:] == added
    conversation = await store.history.find_conversation("alice", "conv_a")
    assert conversation is not None
    assert conversation.head is not None
    chain = await store.history.chain(conversation.head)
    assert [(turn.turn == begun.turn, turn.agent, turn.items) for turn in chain] == [
        (True, "sales", [WHO, ANSWER]),
        (False, "sales", [MORE]),
    ]
    record = await store.history.turn("alice", added[0].turn_id)
    assert record is not None
    assert (record.input, record.items, record.status, record.was_run) == ([MORE], [], "completed", False)
    assert await store.history.turn("bob", added[0].turn_id) is None


async def test_without_items_nothing_is_appended(store: Store) -> None:
    await store.turn(id="chatcmpl-1")

    assert await store.library.add_items("alice", "conv_a", [], now=120.0) == []
    assert await store.library.add_items("alice", "conv_b", [], now=120.0) is None
    assert await store.library.turn_ids("alice", "conv_a") == ["chatcmpl-1"]


async def test_appended_answers_are_recognised_as_what_the_client_will_show(store: Store) -> None:
    transcript = Transcript(scope_of("alice", "acme", ""))
    transcript.extend([WHO.message, ANSWER.message])
    await store.turn(end={"fingerprint": transcript.fingerprint})
    reported: list[Message] = [UserMessage("More?"), AssistantMessage("No."), AssistantMessage("Really.")]

    await store.library.add_items("alice", "conv_a", [Item(reported[0])], now=120.0)
    added = await store.library.add_items(
        "alice", "conv_a", [Item(reported[1]), Item(reported[2])], now=121.0
    )

    transcript.extend(reported)
    place = await place_of(store.history, transcript.fingerprint)
    assert place is not None
    assert (place.conversation_id, place.agent) == ("conv_a", "sales")
    assert added is not None
    (last,) = (await store.history.chain(place.turn))[-1:]
    assert last.items == [Item(reported[1]), Item(reported[2])]


async def test_appended_calls_wait_for_their_results(store: Store) -> None:
    calls = [
        Item(AssistantMessage(None, tool_calls=[ToolCall(call_id, FunctionCall("look", "{}"))]))
        for call_id in ("c1", "c2")
    ]
    await store.library.create_conversation("alice", "conv_a", metadata={}, items=[WHO, calls[0]], now=1.0)
    await store.library.add_items("alice", "conv_a", [calls[1]], now=2.0)
    await store.library.add_items("alice", "conv_a", [Item(ToolMessage("c1", "found"))], now=3.0)

    found = await store.history.find_pending("alice", ["c1", "c2"])

    newest = dict(reversed(found))
    chain = await store.history.chain(newest["c2"])
    assert [list(turn.pending) for turn in chain] == [["c1"], ["c1", "c2"], ["c2"]]


async def test_nothing_is_changed_while_a_turn_runs(store: Store) -> None:
    await store.turn(id="chatcmpl-1")
    running = await store.history.begin(new_turn(created_at=100.0, lease_until=130.0))

    with pytest.raises(ConversationBusy):
        await store.library.add_items("alice", "conv_a", [MORE], now=120.0)
    with pytest.raises(ConversationBusy):
        await store.library.delete_item("alice", "conv_a", "chatcmpl-1", 0, now=120.0)
    with pytest.raises(ConversationBusy):
        await store.library.delete_conversation("alice", "conv_a", now=120.0)

    assert await store.messages() == [WHO.message, ANSWER.message]
    assert await store.history.finish(the_end(running.turn))


async def test_a_turn_whose_worker_died_holds_nothing_up(store: Store) -> None:
    await store.turn(id="chatcmpl-1")
    lost = await store.history.begin(new_turn(id="chatcmpl-2", created_at=100.0, lease_until=130.0))

    assert await store.library.add_items("alice", "conv_a", [MORE], now=131.0)

    record = await store.history.turn("alice", "chatcmpl-2")
    assert record is not None
    assert record.status == "interrupted"
    assert not await store.history.finish(the_end(lost.turn))
    assert await store.library.delete_conversation("alice", "conv_a", now=131.0)


async def test_after_an_addition_the_conversation_is_free(store: Store) -> None:
    await store.turn()
    await store.library.add_items("alice", "conv_a", [MORE], now=120.0)

    await store.turn(id="chatcmpl-9", created_at=120.0)

    assert await store.messages() == [
        WHO.message, ANSWER.message, MORE.message, WHO.message, ANSWER.message,
    ]  # fmt: skip


async def test_a_deleted_item_leaves_the_others_where_they_are(store: Store) -> None:
    await store.turn(id="chatcmpl-1", input=[WHO, MORE])
    added = await store.library.add_items("alice", "conv_a", [MORE, REASONING, WHO], now=120.0)
    assert added is not None
    turn_id = added[0].turn_id

    assert await store.library.delete_item("alice", "conv_a", "chatcmpl-1", 0, now=121.0)
    assert await store.library.delete_item("alice", "conv_a", turn_id, 1, now=121.0)

    assert not await store.library.delete_item("alice", "conv_a", turn_id, 1, now=121.0)
    assert not await store.library.delete_item("alice", "conv_a", "chatcmpl-1", 7, now=121.0)
    assert not await store.library.delete_item("alice", "conv_a", "chatcmpl-7", 0, now=121.0)
    items = await store.library.items("alice", "conv_a")
    assert items is not None
    assert [(retained.turn_id, retained.position, retained.item) for retained in items] == [
        ("chatcmpl-1", 1, MORE),
        ("chatcmpl-1", 2, ANSWER),
        (turn_id, 0, MORE),
        (turn_id, 2, WHO),
    ]
    record = await store.history.turn("alice", "chatcmpl-1")
    assert record is not None
    assert (record.input, record.items) == ([MORE], [ANSWER])


async def test_summaries_and_sizes_are_stored_with_their_items_until_an_item_before_them_is_deleted(
    store: Store,
) -> None:
    sized = Item(AssistantMessage("Hi"), agent="a", tokens=1200)
    summary = Item(
        UserMessage("They met."), agent="a", visible=False, compaction=Compaction(retained_from=3, whole=2)
    )
    state = ProviderState("openai", members={"compaction": {"retained_from": 3}})
    hidden = Item(AssistantMessage("They meet."), agent="a", visible=False, state=state)
    for number in (1, 2):
        stored = [summary, hidden, sized]
        await store.turn(id=f"chatcmpl-{number}", end={"items": stored}, created_at=100.0 + number)
    record = await store.history.turn("alice", "chatcmpl-2")
    assert record is not None
    assert record.items == [summary, hidden, sized]

    assert await store.library.delete_item("alice", "conv_a", "chatcmpl-2", 0, now=121.0)

    chain = await store.history.chain(record.turn)
    assert [list(turn.items) for turn in chain] == [[WHO, summary, hidden, sized], [hidden, sized]]


async def test_the_rest_of_an_item_can_stay(store: Store) -> None:
    await store.turn(id="chatcmpl-1")

    def first_half(message: Message) -> Message:
        assert isinstance(message, AssistantMessage)
        return AssistantMessage(str(message.content)[:3])

    assert await store.library.delete_item("alice", "conv_a", "chatcmpl-1", 1, now=121.0, rest=first_half)
    assert await store.messages() == [WHO.message, AssistantMessage("Hel")]

    assert await store.library.delete_item(
        "alice", "conv_a", "chatcmpl-1", 1, now=121.0, rest=lambda message: None
    )
    assert await store.messages() == [WHO.message]


@pytest.mark.parametrize(
    ("is_listed", "position", "is_found"),
    [
        pytest.param(False, 0, True, id="what was asked"),
        pytest.param(False, 1, False, id="what was answered"),
        pytest.param(True, 1, True, id="what was answered and is a stored completion"),
    ],
)
async def test_a_deleted_answer_is_not_given_back_by_its_turn(
    store: Store, is_listed: bool, position: int, is_found: bool
) -> None:
    await store.turn(id="chatcmpl-1", is_listed=is_listed, end={"journal": b"[1]"})

    await store.library.delete_item("alice", "conv_a", "chatcmpl-1", position, now=121.0)

    record = await store.history.turn("alice", "chatcmpl-1")
    assert (record is not None and record.journal == b"[1]") == is_found


# --- retention -----------------------------------------------------------------------------------------------


async def test_conversations_in_which_nothing_happened_are_removed(store: Store) -> None:
    await store.turn("old", created_at=10.0, end={"finished_at": 20.0})
    await store.turn("used", created_at=10.0, end={"finished_at": 20.0})
    await store.turn("used", created_at=90.0, end={"finished_at": 110.0, "status": "failed"})
    await store.history.begin(new_turn("running", created_at=10.0))
    await store.library.create_conversation("bob", "made", metadata={}, items=[], now=10.0)
    await store.library.create_conversation("bob", "added to", metadata={}, items=[], now=10.0)
    await store.library.add_items("bob", "added to", [WHO], now=100.0)
    await store.library.create_conversation("bob", "new", metadata={}, items=[], now=100.0)

    assert await store.library.remove_older(100.0) == 2

    there = [
        name
        for caller, name in [
            ("alice", "old"), ("alice", "used"), ("alice", "running"),
            ("bob", "made"), ("bob", "added to"), ("bob", "new"),
        ]
        if await store.history.find_conversation(caller, name)
    ]  # fmt: skip
    assert there == ["used", "running", "added to", "new"]
    assert await store.library.remove_older(100.0) == 0


async def in_groups(count: int, create: Callable[[int], Awaitable[object]]) -> None:
    """Create in parallel, but not all at once: on a loaded machine the last would reach the time limit of a write."""
    for start in range(0, count, 100):
        await asyncio.gather(*(create(number) for number in range(start, min(start + 100, count))))


async def test_many_old_conversations_are_all_removed(store: Store) -> None:
    make = store.library.create_conversation
    await in_groups(
        210, lambda number: store.turn(f"old-{number}", created_at=10.0, end={"finished_at": 20.0})
    )
    await in_groups(1000, lambda number: make("alice", f"empty-{number}", metadata={}, items=[], now=10.0))
    await store.turn("new", created_at=100.0)

    assert await store.library.remove_older(100.0) == 1210

    page = await store.library.list_conversations("alice", ConversationQuery(ListQuery(limit=100)))
    assert page is not None
    assert [one.id for one in page.data] == ["new"]


async def test_several_workers_may_remove_at_once(database: str) -> None:
    workers = [open_history(database) for _ in range(3)]
    make = workers[0].library.create_conversation
    await in_groups(300, lambda number: make("alice", f"old-{number}", metadata={}, items=[WHO], now=10.0))

    removed = await asyncio.gather(*(worker.library.remove_older(100.0) for worker in workers))

    assert sum(removed) == 300
    await asyncio.gather(*(worker.close() for worker in workers))


async def test_what_begins_meanwhile_is_not_removed(database: str) -> None:
    removing, running = open_history(database), open_history(database)
    for number in range(60):
        await removing.library.create_conversation("alice", f"{number}", metadata={}, items=[WHO], now=10.0)

    removal = asyncio.create_task(removing.library.remove_older(100.0))
    begun = await asyncio.gather(
        *(running.begin(new_turn(f"{number}", created_at=200.0)) for number in range(60))
    )
    await removal

    assert await asyncio.gather(*(running.finish(the_end(turn.turn)) for turn in begun)) == [True] * 60
    assert await removing.library.remove_older(100.0) == 0
    await asyncio.gather(removing.close(), running.close())
