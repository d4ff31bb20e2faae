"""The right agent answers, whatever the client sends: driven with the official SDK against a server on a port."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import (
    HIDDEN,
    Caller,
    Messages,
    agent_of,
    assistant,
    shape_of,
    sold,
    user,
)
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served


async def test_a_stateless_follow_up_reaches_the_agent_with_the_question(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream)
    first = caller.conversation
    upstream.reply(text("Ten dollars"))

    assert await caller.ask([*messages, user("How much is it?")]) == "Ten dollars"
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == [*HIDDEN, "user:How much is it?"]
    assert (caller.match, caller.conversation) == ("fingerprint", first)


async def test_new_messages_alone_are_appended_to_the_conversation_with_the_id(
    served: Served, upstream: FakeUpstream
) -> None:
    caller, headers = Caller(served), {"X-Conversation-Id": "chat-1"}
    await sold(caller, upstream, headers=headers)
    upstream.reply(text("Ten dollars"))

    await caller.ask([user("How much is it?")], headers=headers)

    assert shape_of(upstream) == [*HIDDEN, "user:How much is it?"]
    assert (agent_of(upstream), caller.match, caller.conversation) == ("sales", "conversation-id", "chat-1")


async def test_a_full_list_with_an_id_is_aligned_and_not_appended_twice(
    served: Served, upstream: FakeUpstream
) -> None:
    caller, headers = Caller(served), {"X-Conversation-Id": "chat-1"}
    messages = await sold(caller, upstream, headers=headers)
    upstream.reply(text("Ten dollars"))

    await caller.ask([*messages, user("How much is it?")], headers=headers)

    assert shape_of(upstream) == [*HIDDEN, "user:How much is it?"]


@pytest.mark.parametrize(
    "headers", [None, {"X-Conversation-Id": "chat-1"}, {"X-OpenWebUI-Chat-Id": "chat-1"}]
)
async def test_an_edit_answers_with_the_agent_of_that_point_and_begins_a_branch(
    served: Served, upstream: FakeUpstream, headers: dict[str, str] | None
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, headers=headers)
    upstream.reply(
        calls(("transfer_back_to_triage", {})), calls(("transfer_to_repairs", {})), text("It broke?")
    )
    await caller.ask([*messages, user("Mine is broken")], headers=headers)
    assert agent_of(upstream) == "repairs"
    upstream.reply(text("Red costs ten"))

    await caller.ask([*messages, user("Red, please")], headers=headers)

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == [*HIDDEN, "user:Red, please"]


@pytest.mark.parametrize(
    "headers", [None, {"X-Conversation-Id": "chat-1"}, {"X-OpenWebUI-Chat-Id": "chat-1"}]
)
async def test_the_first_answer_can_be_regenerated(
    served: Served, upstream: FakeUpstream, headers: dict[str, str] | None
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, headers=headers)
    upstream.reply(text("Hello again"))

    await caller.ask(messages[:1], headers=headers)

    assert agent_of(upstream) == "triage"
    assert shape_of(upstream) == ["system", "user:I want a rocket"]


async def test_the_old_branch_can_still_be_continued(served: Served, upstream: FakeUpstream) -> None:
    caller, headers = Caller(served), {"X-OpenWebUI-Chat-Id": "chat-1"}
    messages = await sold(caller, upstream, headers=headers)
    upstream.reply(text("Ten dollars"), text("Twenty dollars"), text("Sold"))
    old = [*messages, user("Red")]
    old.append(assistant(await caller.ask(old, headers=headers)))
    await caller.ask([*messages, user("Blue")], headers=headers)

    await caller.ask([*old, user("Yes")], headers=headers)

    assert shape_of(upstream) == [*HIDDEN, "user:Red", "assistant:Ten dollars", "user:Yes"]


async def test_changing_system_messages_neither_break_the_match_nor_pile_up(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    clock = [{"role": "system", "content": "It is 10:00."}]
    upstream.reply(calls(("transfer_to_sales", {})), text("What colour?"), text("Ten"))
    await caller.ask([*clock, user("I want a rocket")])

    await caller.ask(
        [
            {"role": "developer", "content": "It is 10:05."},
            user("I want a rocket"),
            assistant("What colour?"),
            user("Red"),
        ]
    )

    assert caller.match == "fingerprint"
    assert upstream.requests[-1].body["messages"][0]["content"] == "You are sales.\n\nIt is 10:05."
    assert upstream.requests[1].body["messages"][0]["content"] == "You are sales.\n\nIt is 10:00."


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param("  What colour?\n", id="white space"),
        pytest.param([{"type": "text", "text": "What colour?"}], id="parts"),
        pytest.param("<think>They want a rocket</think>What colour?", id="reasoning kept in the text"),
    ],
)
async def test_the_same_text_in_another_form_is_recognised(
    served: Served, upstream: FakeUpstream, shown: Any
) -> None:
    caller = Caller(served)
    await sold(caller, upstream)
    upstream.reply(text("Ten"))

    await caller.ask([user(" I want a rocket "), assistant(shown), user("Red")])

    assert (agent_of(upstream), caller.match) == ("sales", "fingerprint")
    assert shape_of(upstream) == [*HIDDEN, "user:Red"]


async def test_a_client_that_rewrites_older_messages_still_reaches_the_agent(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    await sold(caller, upstream)
    upstream.reply(text("Ten"))

    await caller.ask([user("(summary of what was said)"), assistant("What colour?"), user("Red")])

    assert (agent_of(upstream), caller.match) == ("sales", "last-answer")
    assert shape_of(upstream) == [
        "system", "user:(summary of what was said)", "assistant:What colour?", "user:Red",
    ]  # fmt: skip


async def test_pairs_inserted_before_the_newest_message_do_not_lose_the_agent(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream)
    upstream.reply(text("Ten"))

    await caller.ask([*messages, user("I am not sharing files."), assistant("Ok."), user("Red")])

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == [*HIDDEN, "user:I am not sharing files.", "assistant:Ok.", "user:Red"]


async def test_an_answer_that_the_client_changed_or_dropped_keeps_the_agent_with_an_id(
    served: Served, upstream: FakeUpstream
) -> None:
    caller, headers = Caller(served), {"X-OpenWebUI-Chat-Id": "chat-1"}
    await sold(caller, upstream, headers=headers)
    upstream.reply(text("Ten"), text("Twenty"))

    await caller.ask(
        [user("I want a rocket"), assistant("Which colour would it be?"), user("Red")], headers=headers
    )

    assert agent_of(upstream) == "sales"


async def test_a_partial_answer_of_an_aborted_turn_is_accepted_as_history(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream)
    upstream.reply(text("Ten"))

    await caller.ask([*messages, user("How much?"), assistant("It is a mat"), user("Well?")])

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[:5] == HIDDEN


async def test_the_name_on_the_last_assistant_message_names_the_agent(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(text("Ten"))

    await caller.ask([user("From elsewhere"), assistant("Yes?", name="repairs"), user("It broke")])

    assert (agent_of(upstream), caller.match) == ("repairs", "agent-name")


async def test_an_unknown_list_starts_at_the_entry_with_the_list_as_its_history(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(text("Hi"))

    await caller.ask([user("one"), assistant("two"), user("three")])

    assert (agent_of(upstream), caller.match) == ("triage", "entry")
    assert shape_of(upstream) == ["system", "user:one", "assistant:two", "user:three"]


async def test_two_turns_that_look_alike_give_the_agent_but_nothing_hidden(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    await sold(caller, upstream)
    messages = await sold(caller, upstream)
    upstream.reply(text("Ten"))

    await caller.ask([*messages, user("Red")])

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == ["system", "user:I want a rocket", "assistant:What colour?", "user:Red"]


async def test_no_caller_reaches_what_belongs_to_another(served: Served, upstream: FakeUpstream) -> None:
    one, other = Caller(served, "key-one"), Caller(served, "key-two")
    messages = await sold(one, upstream, headers={"X-Conversation-Id": "shared"})
    upstream.reply(text("Hi"), text("Hello"))

    await other.ask([*messages, user("Red")])
    assert (agent_of(upstream), other.match) == ("triage", "entry")

    await other.ask([user("Red")], headers={"X-Conversation-Id": "shared"})
    assert shape_of(upstream) == ["system", "user:Red"]


@pytest.mark.parametrize(
    "naming",
    [
        pytest.param(lambda who: {"user": who}, id="user"),
        pytest.param(lambda who: {"safety_identifier": who}, id="safety_identifier"),
        pytest.param(lambda who: {"headers": {"X-OpenWebUI-User-Id": who}}, id="header"),
    ],
)
async def test_no_end_user_reaches_what_is_hidden_of_another(
    served: Served, upstream: FakeUpstream, naming: Any
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, **naming("alice"))
    conversation = caller.conversation
    upstream.reply(text("Hi"))

    await caller.ask([*messages, user("Red")], **naming("bob"))
    assert (agent_of(upstream), caller.match) == ("triage", "entry")

    given = naming("bob")
    headers = {**given.pop("headers", {}), "X-Conversation-Id": conversation}
    with pytest.raises(openai.NotFoundError):
        await caller.ask([user("Red")], headers=headers, **given)


async def test_a_list_without_the_end_user_continues_the_conversation_that_it_names(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, user="alice", headers={"X-Conversation-Id": "of-alice"})
    upstream.reply(text("Ten"))

    await caller.ask([*messages, user("Red")], headers={"X-Conversation-Id": "of-alice"})

    # With the handoff, which the list does not show.
    assert "tool" in [message["role"] for message in upstream.requests[-1].body["messages"]]


@pytest.mark.parametrize("source", ["X-Conversation-Id", "X-OpenWebUI-Chat-Id"])
@pytest.mark.parametrize(
    "end_users",
    [
        ("", "bob", "bob", "", "bob"),
        ("", "", "bob", "bob", ""),
        ("bob", "", "bob", "", "bob"),
        ("bob", "bob", "", "", "bob"),
    ],
)
async def test_a_conversation_continues_with_and_without_its_end_user(
    served: Served, upstream: FakeUpstream, end_users: tuple[str, ...], source: str
) -> None:
    def who(end_user: str) -> dict[str, Any]:
        return {"user": end_user} if end_user else {}

    caller = Caller(served)
    headers = {source: f"mixed-{source}-{'-'.join(end_users)}"}
    first, *others = end_users
    messages = await sold(caller, upstream, headers=headers, **who(first))

    for number, end_user in enumerate(others):
        upstream.reply(text(f"Answer {number}"))
        messages.append(user(f"Question {number}"))
        answer = await caller.ask(messages, headers=headers, **who(end_user))
        messages.append(assistant(answer))

        sent = shape_of(upstream)
        # With the handoff, which the list does not show.
        assert "result" in sent, f"message {number} began a branch"
        assert [shape for shape in sent if shape.startswith("user:Question")] == [
            f"user:Question {at}" for at in range(number + 1)
        ]

    # An edit begins a branch behind the handoff, and not at the root.
    upstream.reply(text("Edited"))
    edited = [*messages[:-2], user("Another question")]
    await caller.ask(edited, headers=headers, **who("bob"))
    assert "result" in shape_of(upstream)
    with pytest.raises(openai.NotFoundError):
        await caller.ask(messages, headers=headers, **who("anna"))


async def test_an_empty_conversation_header_counts_as_absent(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(text("Hi"))

    await caller.ask([user("Hello")], headers={"X-Conversation-Id": "", "X-OpenWebUI-Chat-Id": ""})

    assert caller.match == "entry"
    assert caller.conversation.startswith("conv_")


async def test_metadata_can_carry_the_id(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    await sold(caller, upstream, metadata={"conversation_id": "chat-9"})
    upstream.reply(text("Ten"))

    await caller.ask([user("Red")], metadata={"conversation_id": "chat-9"})

    assert (agent_of(upstream), caller.match, caller.conversation) == ("sales", "metadata", "chat-9")


async def test_a_bad_conversation_id_is_refused(served: Served) -> None:
    caller = Caller(served)

    with pytest.raises(openai.BadRequestError) as refused:
        await caller.ask([user("Hi")], headers={"X-Conversation-Id": "no spaces"})
    assert refused.value.param == "X-Conversation-Id"


async def test_with_store_false_only_the_agent_is_remembered(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, store=False)
    upstream.reply(text("Ten"))

    await caller.ask([*messages, user("Red")], store=False)

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == ["system", "user:I want a rocket", "assistant:What colour?", "user:Red"]
    database = (served.services.settings.data_dir / "handoff-proxy.sqlite").read_bytes()
    wal = served.services.settings.data_dir / "handoff-proxy.sqlite-wal"
    assert b"I want a rocket" not in database + (wal.read_bytes() if wal.exists() else b"")


async def test_a_thousand_messages_are_recognised(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    long: Messages = []
    for number in range(499):
        long += [user(f"question {number}"), assistant(f"answer {number}")]
    long.append(user("I want a rocket"))
    upstream.reply(calls(("transfer_to_sales", {})), text("What colour?"), text("Ten"))
    answer = await caller.ask(long)

    await caller.ask([*long, assistant(answer), user("Red")])

    assert (agent_of(upstream), caller.match) == ("sales", "fingerprint")
    assert len(upstream.requests[-1].body["messages"]) == 1 + 998 + 1 + 2 + 1 + 1


async def test_a_client_that_names_the_conversation_only_later_keeps_its_agent(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream)
    upstream.reply(text("Ten"), text("Sold"))

    await caller.ask([*messages, user("How much?")], headers={"X-Conversation-Id": "chat-1"})
    assert (agent_of(upstream), caller.conversation) == ("sales", "chat-1")

    await caller.ask([user("Deal")], headers={"X-Conversation-Id": "chat-1"})
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[-3:] == ["user:How much?", "assistant:Ten", "user:Deal"]
