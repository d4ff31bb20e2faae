"""What every ``TurnRepository`` promises: in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.errors import ConversationBusy
from proxy.messages import (
    AssistantMessage,
    Compaction,
    FunctionCall,
    Item,
    ProviderState,
    TextPart,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from proxy.store.turns import open_history
from proxy.turns.records import (
    Begun,
    Branch,
    ChainTurn,
    CompletedTurn,
    Conversation,
    LongestMatch,
    ModelUse,
    PollResult,
    TurnMatch,
    TurnRecord,
)
from proxy.turns.repository import IdempotencyKeyTaken, TurnRepository
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.turn_records import new_turn, place_of, the_end

WHO = Item(UserMessage("Hi."))
ANSWER = Item(AssistantMessage("Hello!"), "sales")


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def history(request: pytest.FixtureRequest) -> AsyncIterator[TurnRepository]:
    if request.param == "memory":
        yield MemoryHistory()
        return
    store = open_history(request.getfixturevalue(f"{request.param}_database"))
    yield store
    await store.close()


async def answered(history: TurnRepository, conversation: str = "conv_a", **end: object) -> Begun:
    """A finished turn at the root of the conversation."""
    begun = await history.begin(new_turn(conversation))
    assert await history.finish(the_end(begun.turn, **end))
    return begun


async def head_of(history: TurnRepository, conversation: str = "conv_a") -> int | None:
    """The head of a conversation."""
    known = await history.find_conversation(new_turn(conversation).caller, conversation)
    assert known is not None
    return known.head


async def test_the_compactions_of_all_branches_are_returned_oldest_first(history: TurnRepository) -> None:
    def marker(text: str) -> Item:
        compaction = Compaction(retained_from=1, summary_digest=text)
        return Item(UserMessage(text), agent="sales", visible=False, compaction=compaction)

    root = await answered(history)
    state = ProviderState("openai", members={"compaction": {"retained_from": 1}})
    hidden = Item(UserMessage('"compaction":'), agent="sales", visible=False, state=state)
    for text in ("first", "second"):
        branch = await history.begin(new_turn("conv_a", parent=root.turn))
        assert await history.finish(the_end(branch.turn, items=[hidden, marker(text), ANSWER]))
    other = await answered(history, "conv_b", items=[marker("other")])

    assert await history.compactions(root.conversation) == [marker("first"), marker("second")]
    assert await history.compactions(other.conversation) == [marker("other")]


# --- beginning -----------------------------------------------------------------------------------------------


async def test_a_first_turn_makes_its_conversation(history: TurnRepository) -> None:
    begun = await history.begin(new_turn("conv_a", end_user="erin", created_at=100.0))

    assert await history.find_conversation("alice", "conv_a") == Conversation(
        key=begun.conversation,
        id="conv_a",
        caller="alice",
        end_user="erin",
        team="acme",
        head=None,
        created_at=100.0,
        metadata={},
        is_running=True,
    )


async def test_conversation_is_running_while_one_of_its_turns_is(history: TurnRepository) -> None:
    begun = await history.begin(new_turn("conv_a"))
    await history.finish(the_end(begun.turn))
    known = await history.find_conversation("alice", "conv_a")

    assert known is not None
    assert not known.is_running


async def test_a_running_turn_can_be_read_as_it_was_begun(history: TurnRepository) -> None:
    said = [Item(UserMessage([TextPart("Where is it?")]))]
    begun = await history.begin(
        new_turn(
            id="chatcmpl-1",
            end_user="erin",
            input=said,
            is_listed=True,
            metadata={"shop": "north ☃"},
            options=b'{"stream":true}',
            idempotency_key="again",
            body_digest=b"\x00\xff",
        )
    )

    assert await history.turn("alice", "chatcmpl-1") == TurnRecord(
        turn=begun.turn,
        id="chatcmpl-1",
        caller="alice",
        end_user="erin",
        conversation_id="conv_a",
        team="acme",
        model="acme-support",
        parent=None,
        status="running",
        is_history=False,
        agent="triage",
        is_stored=True,
        is_listed=True,
        metadata={"shop": "north ☃"},
        options=b'{"stream":true}',
        worker="w1",
        lease_until=130.0,
        created_at=100.0,
        finished_at=None,
        finish_reason=None,
        error_code=None,
        body_digest=b"\x00\xff",
        idempotency_key="again",
        input=said,
        items=[],
        uses=[],
        journal=b"",
    )


async def test_a_conversation_with_a_running_turn_is_busy(history: TurnRepository) -> None:
    await history.begin(new_turn("conv_a"))

    with pytest.raises(ConversationBusy):
        await history.begin(new_turn("conv_a", id="chatcmpl-second"))
    assert await history.turn("alice", "chatcmpl-second") is None


async def test_turns_with_different_slots_run_at_the_same_time(history: TurnRepository) -> None:
    first = await history.begin(new_turn("conv_a"))
    second = await history.begin(new_turn("conv_a", slot=7))
    with pytest.raises(ConversationBusy):
        await history.begin(new_turn("conv_a", slot=7))

    assert await history.finish(the_end(second.turn))
    assert await history.finish(the_end(first.turn))

    conversation = await history.find_conversation("alice", "conv_a")
    assert conversation is not None
    assert (first.conversation, conversation.head) == (second.conversation, second.turn)


async def test_a_conversation_is_free_again_when_its_turn_ended(history: TurnRepository) -> None:
    first = await answered(history)

    second = await history.begin(new_turn("conv_a", parent=first.turn))

    assert second.conversation == first.conversation
    assert second.turn > first.turn


async def test_of_many_who_begin_at_once_one_gets_the_conversation(history: TurnRepository) -> None:
    tries = await asyncio.gather(
        *(history.begin(new_turn("conv_a")) for _ in range(20)), return_exceptions=True
    )

    assert sum(isinstance(outcome, Begun) for outcome in tries) == 1
    assert sum(isinstance(outcome, ConversationBusy) for outcome in tries) == 19


async def test_who_is_refused_does_not_hold_up_the_others(history: TurnRepository) -> None:
    await history.begin(new_turn("conv_busy"))

    free, busy, also_free = await asyncio.gather(
        history.begin(new_turn("conv_a")),
        history.begin(new_turn("conv_busy")),
        history.begin(new_turn("conv_b")),
        return_exceptions=True,
    )

    assert isinstance(free, Begun)
    assert isinstance(also_free, Begun)
    assert isinstance(busy, ConversationBusy)


async def test_callers_who_use_the_same_id_have_separate_conversations(history: TurnRepository) -> None:
    of_alice = await history.begin(new_turn("conv_a", caller="alice"))
    of_bob = await history.begin(new_turn("conv_a", caller="bob"))

    assert of_alice.conversation != of_bob.conversation
    assert await history.find_conversation("carol", "conv_a") is None


async def test_a_conversation_without_an_end_user_gets_the_first_that_is_named(
    history: TurnRepository,
) -> None:
    await answered(history, "conv_a")

    for end_user in ("erin", "frank"):
        begun = await history.begin(new_turn("conv_a", end_user=end_user))
        await history.finish(the_end(begun.turn))

    conversation = await history.find_conversation("alice", "conv_a")
    assert conversation is not None
    assert conversation.end_user == "erin"


async def end_users(history: TurnRepository) -> list[str]:
    """The end users of the conversations conv_a of alice and of bob."""
    found = [await history.find_conversation(caller, "conv_a") for caller in ("alice", "bob")]
    return [
        conversation.end_user if conversation is not None else "no conversation" for conversation in found
    ]


@pytest.mark.parametrize("is_running", [False, True], ids=["finished", "running"])
async def test_an_end_user_is_not_stored_in_the_conversation_of_another_caller_with_the_same_id(
    history: TurnRepository, is_running: bool
) -> None:
    for caller in ("alice", "bob"):
        begun = await history.begin(new_turn("conv_a", caller=caller))
        await history.finish(the_end(begun.turn))

    begun = await history.begin(new_turn("conv_a", caller="bob", end_user="erin"))
    if not is_running:
        await history.finish(the_end(begun.turn))
    assert await end_users(history) == ["", "erin"]
    await history.begin(new_turn("conv_a", caller="alice", end_user="frank"))
    assert await end_users(history) == ["frank", "erin"]


async def test_the_end_user_of_a_stored_parent_is_not_stored_for_another_caller(
    history: TurnRepository,
) -> None:
    part = CompletedTurn(new_turn("conv_a", caller="bob", end_user="frank"), the_end(0))
    await history.begin(new_turn("conv_a", caller="alice"))

    await history.begin(new_turn("conv_a", caller="bob", end_user="erin"), parent=part)

    assert await end_users(history) == ["", "frank"]


async def test_a_turn_whose_lease_ran_out_gives_its_place_up(history: TurnRepository) -> None:
    await history.begin(new_turn("conv_a", id="chatcmpl-lost", lease_until=130.0))

    with pytest.raises(ConversationBusy):
        await history.begin(new_turn("conv_a", created_at=130.0))
    await history.begin(new_turn("conv_a", created_at=130.5))

    lost = await history.turn("alice", "chatcmpl-lost")
    assert lost is not None
    assert (lost.status, lost.is_history, lost.finished_at) == ("interrupted", False, 130.5)


# --- idempotency ---------------------------------------------------------------------------------------------


async def test_an_idempotency_key_is_taken_once_per_caller(history: TurnRepository) -> None:
    first = await history.begin(new_turn("conv_a", id="chatcmpl-1", idempotency_key="k"))

    with pytest.raises(IdempotencyKeyTaken):
        await history.begin(new_turn("conv_b", idempotency_key="k"))
    await history.begin(new_turn("conv_c", idempotency_key="k", caller="bob"))

    record = await history.turn_by_idempotency_key("alice", "k")
    assert record is not None
    assert record.turn == first.turn
    assert await history.turn_by_idempotency_key("carol", "k") is None


async def test_a_refused_key_leaves_nothing_behind(history: TurnRepository) -> None:
    await history.begin(new_turn("conv_a", idempotency_key="k"))

    with pytest.raises(IdempotencyKeyTaken):
        await history.begin(new_turn("conv_new", id="chatcmpl-2", idempotency_key="k"))

    assert await history.find_conversation("alice", "conv_new") is None
    assert await history.turn("alice", "chatcmpl-2") is None


async def test_a_repeated_idempotency_key_precedes_a_busy_conversation(history: TurnRepository) -> None:
    await history.begin(new_turn("conv_a", idempotency_key="k"))

    with pytest.raises(IdempotencyKeyTaken):
        await history.begin(new_turn("conv_a", idempotency_key="k"))


async def test_of_many_with_one_key_one_begins_and_the_rest_leave_nothing(history: TurnRepository) -> None:
    tries = await asyncio.gather(
        *(history.begin(new_turn(f"conv_{n}", idempotency_key="k")) for n in range(20)),
        return_exceptions=True,
    )

    assert sum(isinstance(outcome, Begun) for outcome in tries) == 1
    assert sum(isinstance(outcome, IdempotencyKeyTaken) for outcome in tries) == 19
    there = [await history.find_conversation("alice", f"conv_{n}") for n in range(20)]
    assert sum(conversation is not None for conversation in there) == 1


async def test_a_turn_and_its_new_parent_are_begun_together(history: TurnRepository) -> None:
    first = await answered(history)
    part = CompletedTurn(new_turn(), the_end(0, items=[ANSWER], journal=b"[]"))

    begun = await history.begin(new_turn(), parent=part)

    stored = await history.turn(part.turn.caller, part.turn.id)
    assert stored is not None
    assert (stored.status, stored.is_history, [*stored.items]) == ("completed", True, [ANSWER])
    assert stored.journal == b"[]"
    assert [turn.turn for turn in await history.chain(begun.turn)] == [stored.turn, begun.turn]
    # A branch that fails leaves the head as it was; one that completes becomes the head.
    assert await head_of(history) == first.turn
    await history.finish(the_end(begun.turn))
    assert await head_of(history) == begun.turn


async def test_a_refused_turn_leaves_no_new_parent_behind(history: TurnRepository) -> None:
    first = await history.begin(new_turn(idempotency_key="k"))
    await history.finish(the_end(first.turn))
    part = CompletedTurn(new_turn(), the_end(0))

    with pytest.raises(IdempotencyKeyTaken):
        await history.begin(new_turn(idempotency_key="k"), parent=part)
    running = await history.begin(new_turn())
    with pytest.raises(ConversationBusy):
        await history.begin(new_turn(), parent=part)

    assert await history.turn(part.turn.caller, part.turn.id) is None
    assert await head_of(history) == first.turn
    assert await history.finish(the_end(running.turn))


@pytest.mark.parametrize("status", ["failed", "cancelled", "interrupted"])
async def test_an_end_that_is_not_history_gives_the_key_back(history: TurnRepository, status: str) -> None:
    begun = await history.begin(new_turn("conv_a", idempotency_key="k"))

    if status == "interrupted":
        await history.interrupt(now=200.0)
    else:
        await history.finish(the_end(begun.turn, status=status, is_history=False))

    assert await history.turn_by_idempotency_key("alice", "k") is None
    await history.begin(new_turn("conv_a", idempotency_key="k"))


@pytest.mark.parametrize("conversation", ["conv_a", "conv_b"])
async def test_a_turn_whose_lease_ran_out_gives_its_key_up(
    history: TurnRepository, conversation: str
) -> None:
    lost = await history.begin(new_turn("conv_a", lease_until=130.0, idempotency_key="k"))

    begun = await history.begin(
        new_turn(conversation, created_at=131.0, lease_until=160.0, idempotency_key="k")
    )

    record = await history.turn_by_idempotency_key("alice", "k")
    assert record is not None
    assert record.turn == begun.turn
    assert not await history.finish(the_end(lost.turn))


@pytest.mark.parametrize("is_together", [False, True])
async def test_each_of_several_ends_keeps_what_it_should(history: TurnRepository, is_together: bool) -> None:
    names = ("answered", "failed", "acted", "taken over")
    begun = [
        await history.begin(
            new_turn(
                f"conv_{name}", id=f"chatcmpl-{name}", idempotency_key=name, input_fingerprint=name.encode()
            )
        )
        for name in names
    ]
    failure: dict[str, Any] = {"status": "failed", "is_history": False, "items": []}
    ends = [
        the_end(begun[0].turn, journal=b"[1]"),
        the_end(begun[1].turn, keeps_key=False, journal=b"[2]", **failure),
        the_end(begun[2].turn, keeps_key=True, ran_effects=True, is_found_by_input=True, **failure),
        the_end(begun[3].turn, fence=1),
    ]

    if is_together:
        reported = await asyncio.gather(*map(history.finish, ends))
    else:
        reported = [await history.finish(end) for end in ends]

    assert reported == [True, True, True, False]
    records = [await history.turn("alice", f"chatcmpl-{name}") for name in names]
    assert [(record.status, record.journal, record.idempotency_key) for record in records if record] == [
        ("completed", b"[1]", "answered"),
        ("failed", b"[2]", None),
        ("failed", b"", "acted"),
        ("running", b"", "taken over"),
    ]
    found = [await history.find_by_input([name.encode()]) for name in names]
    assert [[match.turn for match in matches] for matches in found] == [
        [],
        [],
        [begun[2].turn],
        [begun[3].turn],
    ]


async def test_history_keeps_its_key(history: TurnRepository) -> None:
    begun = await history.begin(new_turn("conv_a", idempotency_key="k"))
    await history.finish(the_end(begun.turn))

    with pytest.raises(IdempotencyKeyTaken):
        await history.begin(new_turn("conv_a", idempotency_key="k"))


async def with_body(
    history: TurnRepository, conversation: str, turn_id: str, status: str, **changes: Any
) -> None:
    begun = await history.begin(new_turn(conversation, **{"id": turn_id, "body_digest": b"d", **changes}))
    if status != "running":
        await history.finish(the_end(begun.turn, status=status, is_history=status == "completed"))


async def test_the_newest_turn_with_a_body_is_found(history: TurnRepository) -> None:
    await with_body(history, "conv_a", "old", "completed", created_at=100.0)
    assert await history.turn_by_body("alice", b"d", since=101.0) is None
    await with_body(history, "conv_b", "newer", "running", created_at=105.0)

    found = await history.turn_by_body("alice", b"d", since=100.0)
    assert found is not None
    assert found.id == "newer"
    assert await history.turn_by_body("bob", b"d", since=100.0) is None
    assert await history.turn_by_body("alice", b"e", since=100.0) is None


async def test_behind_a_turn_that_failed_none_with_its_body_is_found(history: TurnRepository) -> None:
    await with_body(history, "conv_a", "old", "completed")
    await with_body(history, "conv_b", "new", "failed")

    assert await history.turn_by_body("alice", b"d", since=0.0) is None


@pytest.mark.parametrize(("status", "is_found"), [("running", False), ("completed", False), ("failed", True)])
async def test_a_repeated_body_is_not_found_after_the_conversation_continued(
    history: TurnRepository, status: str, is_found: bool
) -> None:
    await with_body(history, "conv_a", "old", "completed")
    old = await history.turn("alice", "old")
    assert old is not None
    await with_body(history, "conv_a", "other", status, body_digest=b"e", parent=old.turn)

    found = await history.turn_by_body("alice", b"d", since=0.0)
    assert (found is not None) == is_found


@pytest.mark.parametrize("status", ["running", "completed"])
async def test_a_repeated_body_is_found_next_to_another_branch(history: TurnRepository, status: str) -> None:
    await with_body(history, "conv_a", "old", "completed")
    await with_body(history, "conv_a", "branch", status, body_digest=b"e", slot=1)

    found = await history.turn_by_body("alice", b"d", since=0.0)

    assert found is not None
    assert found.id == "old"


async def test_a_turn_begins_only_behind_the_present_head(history: TurnRepository) -> None:
    late = {"id": "late", "is_at_head": True, "input": [WHO]}
    first = await history.begin(new_turn("conv_a", is_at_head=True))
    await history.finish(the_end(first.turn))

    with pytest.raises(ConversationBusy):
        await history.begin(new_turn("conv_a", **late))

    assert await history.running_turn("alice", "conv_a") is None
    begun = await history.begin(new_turn("conv_a", parent=first.turn, **late))
    await history.finish(the_end(begun.turn))
    branch = await history.begin(new_turn("conv_a", parent=first.turn))
    assert branch.conversation == begun.conversation


async def test_turns_of_one_group_begin_if_another_one_is_behind_an_old_head(history: TurnRepository) -> None:
    first = await history.begin(new_turn("conv_a"))
    await history.finish(the_end(first.turn))

    late, other = await asyncio.gather(
        history.begin(new_turn("conv_a", is_at_head=True)),
        history.begin(new_turn("conv_b", is_at_head=True)),
        return_exceptions=True,
    )

    assert isinstance(late, ConversationBusy)
    assert isinstance(other, Begun)


# --- ending --------------------------------------------------------------------------------------------------


async def test_an_end_is_written_whole(history: TurnRepository) -> None:
    call = ToolCall("call_1", FunctionCall("look_up", '{"what": "rocket"}'))
    produced = [
        Item(AssistantMessage(None, tool_calls=[call]), "triage", visible=False),
        Item(ToolMessage("call_1", "found"), "triage", visible=False),
        Item(AssistantMessage("Here it is."), "sales"),
    ]
    uses = [
        ModelUse("triage", "gpt-5-mini", 2, Usage(100, 20, cached=64)),
        ModelUse("sales", "gpt-5-mini", 1, Usage(50, 9)),
    ]
    begun = await history.begin(new_turn(id="chatcmpl-1"))

    assert await history.finish(
        the_end(
            begun.turn, items=produced, uses=uses, journal=b'[{"type":"started"}]', finish_reason="tool_calls"
        )
    )

    record = await history.turn("alice", "chatcmpl-1")
    assert record is not None
    assert (record.status, record.is_history, record.agent) == ("completed", True, "sales")
    assert (record.finished_at, record.finish_reason, record.error_code) == (110.0, "tool_calls", None)
    assert record.input == [WHO]
    assert record.items == produced
    assert record.uses == uses
    assert record.journal == b'[{"type":"started"}]'


async def test_a_long_journal_comes_back_as_it_was(history: TurnRepository) -> None:
    journal = b"[" + b'{"type":"text","text":"word"},' * 20_000 + b"{}]"
    begun = await history.begin(new_turn(id="chatcmpl-1"))

    await history.finish(the_end(begun.turn, journal=journal))

    record = await history.turn("alice", "chatcmpl-1")
    assert record is not None
    assert record.journal == journal


async def test_history_becomes_the_head(history: TurnRepository) -> None:
    begun = await answered(history)

    conversation = await history.find_conversation("alice", "conv_a")
    assert conversation is not None
    assert conversation.head == begun.turn


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_turns_outside_the_history_are_stored_but_not_found(
    history: TurnRepository, status: str
) -> None:
    first = await answered(history)
    second = await history.begin(new_turn("conv_a", id="chatcmpl-2", parent=first.turn))

    await history.finish(
        the_end(
            second.turn,
            status=status,
            is_history=False,
            fingerprint=b"f",
            last_answer=b"a",
            error_code="upstream_error",
            finish_reason=None,
        )
    )

    conversation = await history.find_conversation("alice", "conv_a")
    assert conversation is not None
    assert conversation.head == first.turn
    assert await place_of(history, b"f") is None
    assert await history.find_last_answer(b"a") is None
    record = await history.turn("alice", "chatcmpl-2")
    assert record is not None
    assert (record.status, record.error_code, record.items) == (status, "upstream_error", [ANSWER])


async def test_what_was_cancelled_on_request_can_be_history(history: TurnRepository) -> None:
    begun = await answered(history, status="cancelled", fingerprint=b"f")

    place = await place_of(history, b"f")
    assert place is not None
    assert place.turn == begun.turn


async def test_ending_a_turn_again_changes_nothing(history: TurnRepository) -> None:
    begun = await history.begin(new_turn(id="chatcmpl-1"))
    end = the_end(begun.turn, pending=["call_1"], fingerprint=b"f")
    assert await history.finish(end)
    as_it_was = await history.turn("alice", "chatcmpl-1")

    assert await history.finish(end)

    assert await history.turn("alice", "chatcmpl-1") == as_it_was
    assert await history.find_pending("alice", ["call_1"]) == [("call_1", begun.turn)]


async def test_another_end_of_a_finished_turn_is_refused(history: TurnRepository) -> None:
    begun = await answered(history)

    assert not await history.finish(the_end(begun.turn, status="failed", is_history=False, finished_at=111.0))

    assert [turn.items for turn in await history.chain(begun.turn)] == [[WHO, ANSWER]]


async def test_the_same_end_handed_in_twice_at_once_is_written_once(history: TurnRepository) -> None:
    begun = await history.begin(new_turn())
    end = the_end(begun.turn)

    assert list(await asyncio.gather(history.finish(end), history.finish(end))) == [True, True]

    assert [turn.items for turn in await history.chain(begun.turn)] == [[WHO, ANSWER]]


async def test_of_two_ends_handed_in_at_once_one_is_written(history: TurnRepository) -> None:
    begun = await history.begin(new_turn(id="chatcmpl-1"))

    reported = await asyncio.gather(
        history.finish(the_end(begun.turn, items=[])),
        history.finish(the_end(begun.turn, status="failed", is_history=False)),
    )

    assert sorted(reported) == [False, True]
    record = await history.turn("alice", "chatcmpl-1")
    assert record is not None
    assert record.status == ("completed" if reported[0] else "failed")


async def test_who_lost_the_lease_cannot_end_the_turn(history: TurnRepository) -> None:
    lost = await history.begin(new_turn("conv_a", id="chatcmpl-lost"))
    await history.begin(new_turn("conv_a", created_at=200.0, lease_until=230.0))

    assert not await history.finish(the_end(lost.turn, fingerprint=b"f"))

    record = await history.turn("alice", "chatcmpl-lost")
    assert record is not None
    assert (record.status, record.items, record.finished_at) == ("interrupted", [], 200.0)
    assert record.error_code == "turn_lease_lost"
    assert await place_of(history, b"f") is None


async def test_the_end_of_an_unknown_turn_is_refused(history: TurnRepository) -> None:
    assert not await history.finish(the_end(999_999))


# --- turns without store -------------------------------------------------------------------------------------


async def test_a_turn_that_is_not_stored_keeps_no_content(history: TurnRepository) -> None:
    begun = await history.begin(new_turn(id="chatcmpl-1", is_stored=False, metadata={"secret": "word"}))

    await history.finish(the_end(begun.turn, fingerprint=b"f", last_answer=b"a", journal=b'["secret"]'))

    record = await history.turn("alice", "chatcmpl-1")
    assert record is not None
    assert (record.input, record.items, record.journal, record.metadata) == ([], [], b"", {})
    assert await history.chain(begun.turn) == [
        ChainTurn(begun.turn, "sales", False, [], (), "conv_a", "", b"f", id="chatcmpl-1", is_head=True)
    ]
    place = TurnMatch(begun.turn, begun.conversation, "conv_a", "sales", b"f", is_unique=True)
    assert await place_of(history, b"f") == place
    assert await history.find_last_answer(b"a") == place


# --- chains --------------------------------------------------------------------------------------------------


async def test_a_chain_begins_at_the_root_and_leaves_other_branches_out(history: TurnRepository) -> None:
    async def turn(parent: int | None, said: str) -> Begun:
        begun = await history.begin(
            new_turn("conv_a", id=said, parent=parent, input=[Item(UserMessage(said))], end_user="erin")
        )
        await history.finish(
            the_end(
                begun.turn, items=[Item(AssistantMessage(said.upper()), "sales")], fingerprint=said.encode()
            )
        )
        return begun

    root = await turn(None, "one")
    await turn(root.turn, "other")
    leaf = await turn(root.turn, "two")

    assert await history.chain(leaf.turn) == [
        ChainTurn(
            turn=begun.turn,
            agent="sales",
            is_stored=True,
            items=[Item(UserMessage(said)), Item(AssistantMessage(said.upper()), "sales")],
            pending=(),
            conversation_id="conv_a",
            end_user="erin",
            fingerprint=said.encode(),
            id=said,
            is_head=begun is leaf,
        )
        for begun, said in ((root, "one"), (leaf, "two"))
    ]


async def test_an_unknown_turn_has_no_chain(history: TurnRepository) -> None:
    assert await history.chain(999_999) == []


async def test_a_chain_has_pending_calls_in_order(history: TurnRepository) -> None:
    begun = await answered(history, pending=["call_2", "call_1"])

    (turn,) = await history.chain(begun.turn)

    assert list(turn.pending) == ["call_2", "call_1"]


async def test_long_chains_come_whole_and_in_order(history: TurnRepository) -> None:
    parent = None
    for n in range(50):
        begun = await history.begin(
            new_turn(parent=parent, input=[Item(UserMessage(f"{n} a")), Item(UserMessage(f"{n} b"))])
        )
        await history.finish(the_end(begun.turn, items=[Item(AssistantMessage(f"{n} c"))] * 3))
        parent = begun.turn
    assert parent is not None

    chain = await history.chain(parent)

    said = [item.message.content for turn in chain for item in turn.items]
    assert said == [f"{n} {word}" for n in range(50) for word in "abccc"]


async def test_a_branch_has_the_last_turn_and_the_items_of_its_chain(history: TurnRepository) -> None:
    """For every turn of two branches, with and without content, fingerprints, calls and hidden items."""
    call = AssistantMessage(None, tool_calls=[ToolCall("c", FunctionCall("f", "{}"))])
    state = ProviderState("openai", members={"reasoning_content": "Hm"})
    said: list[list[Item]] = [
        [Item(AssistantMessage("Hello!"), "sales", tokens=12)],
        [
            Item(call, "triage", visible=False, state=state),
            Item(ToolMessage("c", "f \u20ac"), "triage", visible=False),
        ],
        [],
        [
            Item(AssistantMessage("a, b],[{"), None),
            Item(UserMessage("s"), "x", False, compaction=Compaction(1)),
        ],
    ]
    keys: list[int | None] = [None]
    for number in range(12):
        begun = await history.begin(
            new_turn(
                parent=keys[-1] if number != 7 else keys[3],
                input=[Item(UserMessage(f"{number}"))] * (number % 3),
                is_stored=number != 5,
                end_user="erin",
            )
        )
        await history.finish(
            the_end(
                begun.turn,
                items=said[number % 4],
                pending=["call_1"] if number % 4 == 1 else (),
                fingerprint=b"%d" % number if number % 4 == 0 else None,
            )
        )
        keys.append(begun.turn)

    for key in keys[1:]:
        assert key is not None
        chain = await history.chain(key)
        assert await history.branch(key) == Branch.of(chain)
    assert await history.branch(999_999) is None


async def test_a_long_branch_is_whole_and_in_order(history: TurnRepository) -> None:
    parent = None
    for n in range(50):
        begun = await history.begin(
            new_turn(parent=parent, input=[Item(UserMessage(f"{n} a")), Item(UserMessage(f"{n} b"))])
        )
        await answered(history, "conv_b")
        await history.finish(the_end(begun.turn, items=[Item(AssistantMessage(f"{n} c"), f"agent {n}")] * 3))
        parent = begun.turn
    assert parent is not None

    branch = await history.branch(parent)

    assert branch is not None
    assert [(item.message.content, item.agent) for item in branch.items] == [
        (f"{n} {word}", None if word in "ab" else f"agent {n}") for n in range(50) for word in "abccc"
    ]
    assert branch.last.items == branch.items[-5:]


# --- finding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", [0, 7, 8, 519, 520, 1100])
async def test_the_last_known_fingerprint_is_found_with_its_branch(
    unknown: int, history: TurnRepository
) -> None:
    await answered(history, "conv_a", fingerprint=b"0", last_answer=b"a")
    one = await answered(history, "conv_b", fingerprint=b"1", last_answer=b"a", agent="triage")
    boundaries = [(2, b"x"), (4, b"0"), (5, b"1"), *((10 + n, b"x%d" % n) for n in range(unknown))]

    found = await history.find_longest(boundaries, b"a")

    place = TurnMatch(one.turn, one.conversation, "conv_b", "triage", b"1", is_unique=True)
    assert found == LongestMatch(place, 5, await history.branch(one.turn))
    assert found.branch is not None
    assert await history.find_longest(boundaries, b"a", with_branch=False) == LongestMatch(place, 5)


async def test_a_turn_that_is_not_unique_is_found_without_its_branch(history: TurnRepository) -> None:
    await answered(history, "conv_a", fingerprint=b"f")
    newest = await answered(history, "conv_b", fingerprint=b"f")

    place = TurnMatch(newest.turn, newest.conversation, "conv_b", "sales", b"f", is_unique=False)
    assert await history.find_longest([(1, b"f"), (3, b"x")], None) == LongestMatch(place, 1)


async def test_the_newest_of_identical_turns_is_marked_not_unique(history: TurnRepository) -> None:
    await answered(history, "conv_a", fingerprint=b"f", last_answer=b"a")
    newest = await answered(history, "conv_b", fingerprint=b"f", last_answer=b"a")

    place = TurnMatch(newest.turn, newest.conversation, "conv_b", "sales", b"f", is_unique=False)
    assert await place_of(history, b"f") == place
    assert await history.find_last_answer(b"a") == place


async def test_the_newest_of_identical_turns_of_one_conversation_is_unique(history: TurnRepository) -> None:
    await answered(history, "conv_a", fingerprint=b"f", last_answer=b"a")
    newest = await answered(history, "conv_a", fingerprint=b"f", last_answer=b"a")

    place = TurnMatch(newest.turn, newest.conversation, "conv_a", "sales", b"f", is_unique=True)
    assert await place_of(history, b"f") == place
    assert await history.find_last_answer(b"a") == place

    await answered(history, "conv_b", fingerprint=b"f", last_answer=b"a")
    again = await answered(history, "conv_a", fingerprint=b"f", last_answer=b"a")

    place = TurnMatch(again.turn, again.conversation, "conv_a", "sales", b"f", is_unique=False)
    assert await place_of(history, b"f") == place
    assert await history.find_last_answer(b"a") == place


async def test_within_a_conversation_only_its_turns_count(history: TurnRepository) -> None:
    own = await answered(history, "conv_a", fingerprint=b"f", last_answer=b"a")
    await answered(history, "conv_b", fingerprint=b"f", last_answer=b"a")

    place = TurnMatch(own.turn, own.conversation, "conv_a", "sales", b"f", is_unique=True)
    assert await place_of(history, b"f", conversation=own.conversation) == place
    assert await history.find_last_answer(b"a", conversation=own.conversation) == place
    assert await history.find_last_answer(b"b", conversation=own.conversation) is None
    assert await place_of(history, b"f", conversation=999_999) is None


async def test_the_last_answer_is_found_if_no_fingerprint_is(history: TurnRepository) -> None:
    own = await answered(history, "conv_a", fingerprint=b"f", last_answer=b"a")
    newest = await answered(history, "conv_b", fingerprint=b"g", last_answer=b"a")
    place = TurnMatch(own.turn, own.conversation, "conv_a", "sales", b"f", is_unique=True)
    latest = TurnMatch(newest.turn, newest.conversation, "conv_b", "sales", b"g", is_unique=False)
    unknown, within = [(n, b"x%d" % n) for n in range(600)], own.conversation

    assert await history.find_longest(unknown, b"a") == LongestMatch(latest=latest)
    assert await history.find_longest([], b"a", conversation=within) == LongestMatch(latest=place)
    assert await history.find_longest([(1, b"g")], b"a", conversation=within) == LongestMatch(latest=place)
    assert await history.find_longest([(1, b"g")], b"b", conversation=within) == LongestMatch()
    assert await history.find_longest(unknown, None) == LongestMatch()
    assert await history.find_longest([], None) == LongestMatch()


async def test_calls_that_are_waited_for_are_found_newest_first(history: TurnRepository) -> None:
    first = await answered(history, "conv_a", pending=["call_1", "call_2"])
    second = await answered(history, "conv_b", pending=["call_1"])

    found = await history.find_pending("alice", ["call_1", "call_2", "call_3"])
    assert found[0] == ("call_1", second.turn)
    assert set(found[1:]) == {("call_1", first.turn), ("call_2", first.turn)}
    assert await history.find_pending("alice", ["call_1"], conversation=first.conversation) == [
        ("call_1", first.turn)
    ]
    assert await history.find_pending("bob", ["call_1"]) == []
    assert await history.find_pending("alice", []) == []


async def test_turns_of_other_callers_do_not_exist(history: TurnRepository) -> None:
    await history.begin(new_turn("conv_a", id="chatcmpl-1", idempotency_key="k"))

    assert await history.turn("bob", "chatcmpl-1") is None
    assert await history.turn("alice", "chatcmpl-2") is None
    assert not await history.request_cancel("bob", "chatcmpl-1")


# --- workers -------------------------------------------------------------------------------------------------


async def test_a_worker_keeps_its_turns_alive_and_hears_what_is_to_stop(history: TurnRepository) -> None:
    await history.begin(new_turn("conv_a", id="chatcmpl-1", worker="w1"))
    await history.begin(new_turn("conv_b", id="chatcmpl-2", worker="w1"))
    await history.begin(new_turn("conv_c", id="chatcmpl-3", worker="w2"))

    assert await history.request_cancel("alice", "chatcmpl-2")
    assert await history.request_cancel("alice", "chatcmpl-3")

    assert await history.renew("w1", lease_until=500.0) == ["chatcmpl-2"]
    records = [await history.turn("alice", f"chatcmpl-{n}") for n in (1, 2, 3)]
    assert [record and record.lease_until for record in records] == [500.0, 500.0, 130.0]


async def test_a_turn_that_ended_cannot_be_cancelled(history: TurnRepository) -> None:
    begun = await history.begin(new_turn(id="chatcmpl-1"))
    await history.finish(the_end(begun.turn))

    assert not await history.request_cancel("alice", "chatcmpl-1")
    assert await history.renew("w1", lease_until=500.0) == []


async def test_turns_of_the_dead_are_interrupted(history: TurnRepository) -> None:
    await history.begin(new_turn("conv_a", id="old", worker="w1", lease_until=130.0))
    await history.begin(new_turn("conv_b", id="dead", worker="w2", lease_until=900.0))
    await history.begin(new_turn("conv_c", id="alive", worker="w3", lease_until=900.0))
    assert sorted(await history.running_workers()) == ["w1", "w2", "w3"]

    assert await history.interrupt(now=200.0, dead_workers=["w2", "w9"]) == 2

    records = [await history.turn("alice", turn) for turn in ("old", "dead", "alive")]
    assert [record and record.status for record in records] == ["interrupted", "interrupted", "running"]
    assert await history.running_workers() == ["w3"]
    assert await history.interrupt(now=200.0) == 0
    await history.begin(new_turn("conv_b"))


async def test_status_of_turns_and_conversations_is_polled_together(history: TurnRepository) -> None:
    running = await history.begin(new_turn("conv_a", lease_until=130.5))
    ended = await answered(history, "conv_b")
    failed = await history.begin(new_turn("conv_b", parent=ended.turn))
    await history.finish(the_end(failed.turn, status="failed", is_history=False))
    added = await history.begin(new_turn("conv_c", worker=""))
    await history.finish(the_end(added.turn))

    conversations = [running.conversation, ended.conversation, added.conversation, 10**9]
    standing = await history.poll(turns=[running.turn, ended.turn, 10**9], conversations=conversations)

    newest = {running.conversation: running.turn, ended.conversation: failed.turn, added.conversation: 0}
    assert standing == PollResult({running.turn: 130.5}, newest, {running.turn: "w1"})
    assert await history.poll(turns=[], conversations=[]) == PollResult({}, {})


# --- many at once, and strange words --------------------------------------------------------------------------


async def test_two_hundred_conversations_at_once_do_not_mix(history: TurnRepository) -> None:
    async def talk(name: str) -> list[str]:
        parent = None
        for n in range(3):
            begun = await history.begin(
                new_turn(name, parent=parent, input=[Item(UserMessage(f"{name} asks {n}"))])
            )
            assert await history.finish(
                the_end(begun.turn, items=[Item(AssistantMessage(f"{name} hears {n}"))])
            )
            parent = begun.turn
        assert parent is not None
        return [str(item.message.content) for turn in await history.chain(parent) for item in turn.items]

    names = [f"conv_{n}" for n in range(200)]
    reported = await asyncio.gather(*map(talk, names))

    assert reported == [
        [f"{name} {verb} {n}" for n in range(3) for verb in ("asks", "hears")] for name in names
    ]


async def test_messages_are_returned_unchanged(history: TurnRepository) -> None:
    texts = "nul \0, quote ' \" \\, emoji 🦄, line\u2028break, \x1b[0m"
    begun = await history.begin(new_turn(input=[Item(UserMessage(texts))]))

    await history.finish(the_end(begun.turn, items=[Item(AssistantMessage(texts, name="a"), "sales")]))

    (turn,) = await history.chain(begun.turn)
    assert turn.items == [Item(UserMessage(texts)), Item(AssistantMessage(texts, name="a"), "sales")]


async def test_no_name_from_outside_breaks_the_store(history: TurnRepository) -> None:
    odd = "\0 \ud800 " + "x" * 5000
    begun = await history.begin(
        new_turn(
            odd, caller=odd, end_user=odd, model=odd, metadata={odd: odd}, idempotency_key=odd, worker=odd
        )
    )
    await history.finish(the_end(begun.turn, pending=[odd], error_code=odd))

    assert await history.find_pending(odd, [odd]) == [(odd, begun.turn)]
    conversation = await history.find_conversation(odd, odd)
    assert conversation is not None
    assert conversation.key == begun.conversation
    record = await history.turn_by_idempotency_key(odd, odd)
    assert record is not None
    assert record.turn == begun.turn
    assert await history.turn("alice", odd) is None


async def test_half_a_surrogate_pair_from_a_tool_does_not_lose_the_turn(history: TurnRepository) -> None:
    begun = await history.begin(new_turn())

    assert await history.finish(the_end(begun.turn, items=[Item(ToolMessage("c", "half \ud800 a pair"))]))

    (turn,) = await history.chain(begun.turn)
    assert str(turn.items[-1].message.content).startswith("half ")


async def test_it_is_ready(history: TurnRepository) -> None:
    assert await history.is_ready()


async def test_the_last_items_of_a_turn_are_in_order(history: TurnRepository) -> None:
    requested = [Item(UserMessage(f"Question {number}.")) for number in range(3)]
    begun = await history.begin(new_turn(input=requested))
    await history.finish(the_end(begun.turn))

    assert await history.last_items(begun.turn, limit=2) == [requested[2], ANSWER]
    assert await history.last_items(begun.turn, limit=9) == [*requested, ANSWER]
    assert await history.last_items(begun.turn + 1, limit=2) == []


async def test_a_long_list_is_stored_like_a_short_one(history: TurnRepository) -> None:
    """From 32 messages on, the SQL stores insert them with one statement."""
    requested = [
        Item(message)
        for number in range(40)
        for message in (
            UserMessage(
                f'"Quoted" \\u0041 \u20ac \U0001f600 {number}\n\ttab nul \0 \x1b[0m \x7f \u2028 </b> [{{,'
            ),
            AssistantMessage(content=None, tool_calls=[ToolCall(f"c{number}", FunctionCall("f", "{}"))]),
            ToolMessage(f"c{number}", [TextPart("result")]),
        )
    ]
    parent = await answered(history)
    begun = await history.begin(new_turn(input=requested, parent=parent.turn))
    answers = [Item(AssistantMessage(f"Answer {number}."), "sales") for number in range(40)]
    hidden = [Item(AssistantMessage(f"Hidden {number}."), "sales", visible=False) for number in range(40)]
    await history.finish(the_end(begun.turn, items=[*answers, *hidden]))

    first, turn = await history.chain(begun.turn)
    assert list(first.items) == [WHO, ANSWER]
    assert list(turn.items) == [*requested, *answers, *hidden]


async def test_a_long_list_with_state_and_one_with_half_a_surrogate_pair_are_stored(
    history: TurnRepository,
) -> None:
    state = ProviderState("", members={"reasoning_content": "Hm"})
    with_state = [*[WHO] * 40, Item(AssistantMessage("Hello!"), state=state)]
    halved = [*[WHO] * 40, Item(UserMessage("half \ud800 a pair"))]
    first = await history.begin(new_turn(input=with_state))
    await history.finish(the_end(first.turn))
    second = await history.begin(new_turn(input=halved, parent=first.turn))
    await history.finish(the_end(second.turn))

    one, two = await history.chain(second.turn)
    assert list(one.items) == [*with_state, ANSWER]
    assert len(two.items) == 42
    assert str(two.items[40].message.content).startswith("half ")


async def test_a_conversation_is_running_while_a_turn_of_it_is(history: TurnRepository) -> None:
    begun = await history.begin(new_turn("conv_a"))
    running = await history.find_conversation("alice", "conv_a")
    await history.finish(the_end(begun.turn))
    ended = await history.find_conversation("alice", "conv_a")

    assert running is not None
    assert ended is not None
    assert (running.is_running, ended.is_running) == (True, False)
