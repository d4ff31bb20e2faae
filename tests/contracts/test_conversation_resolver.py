"""Where a turn begins when its caller names another turn, or a conversation to add to; over every history."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from proxy.conversations.resolver import ConversationResolver, ResolvedTurn
from proxy.errors import ConversationBusy, ConversationNotFound
from proxy.events import (
    Completed,
    Handoff,
    ModelCalled,
    Started,
    TextDelta,
    ToolCompleted,
    ToolStarted,
    decode_journal,
    encode_journal,
)
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    FunctionCall,
    Item,
    Message,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from proxy.request_errors import ParentNotFound, ToolCallNotFound, ToolResultsMissing
from proxy.service.recording import step_turn
from proxy.store.turns import open_history
from proxy.turns.records import Begun
from proxy.turns.repository import TurnRepository
from proxy.turns.request import TurnRequest
from tests.fakes.models import ScriptedModel
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.teams import agent, team_of
from tests.fakes.turn_records import approvals_of, new_turn, the_end

PARENT = "chatcmpl-" + "1" * 32
PIRATE = DeveloperMessage("Talk like a pirate.")
MORE = UserMessage("Go on")
CALLING = AssistantMessage(None, tool_calls=[ToolCall("c1", FunctionCall("weather", "{}"))])
RESULT = ToolMessage("c1", "rain")
TRANSFER = Item(AssistantMessage("hidden"), "triage", visible=False)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def history(request: pytest.FixtureRequest) -> AsyncIterator[TurnRepository]:
    if request.param == "memory":
        yield MemoryHistory()
        return
    store = open_history(request.getfixturevalue(f"{request.param}_database"))
    yield store
    await store.close()


async def turn(
    history: TurnRepository, turn_id: str = PARENT, end: dict[str, Any] | None = None, **more: Any
) -> Begun:
    """A turn of alice's in conv_a that has ended."""
    begun = await history.begin(new_turn(**{"id": turn_id, "team": "shop", **more}))
    assert await history.finish(the_end(begun.turn, **(end or {})))
    return begun


async def recalled(history: TurnRepository, *messages: Message, **more: Any) -> ResolvedTurn:
    team = await team_of(agent("triage", ScriptedModel()), agent("sales", ScriptedModel()))
    ask = TurnRequest(**{"caller": "alice", "model": "shop", "messages": messages, **more})
    found = await ConversationResolver(history, approvals_of(history), time.time).resolve(ask, team)
    assert isinstance(found, ResolvedTurn)
    return found


def messages_of_items(items: Sequence[Item]) -> list[Message]:
    return [item.message for item in items]


# --- behind an event of a turn ---

JOURNAL = encode_journal(
    [
        Started(PARENT, "triage"),
        ModelCalled("triage", "m", Usage(3, 1), 0.1),
        Handoff("triage", "sales", "wants a rocket"),
        ModelCalled("sales", "m", Usage(5, 1), 0.1),
        ToolStarted("c1", "weather", "{}", "sales"),
        ToolCompleted("c1", "weather", "rain", 0.1),
        TextDelta("It rains."),
        ModelCalled("sales", "m", Usage(7, 2), 0.1),
        Completed("sales", "stop", Usage(15, 4)),
    ],
    [100.0 + second for second in range(9)],
)
STEPS = [
    Item(
        AssistantMessage(None, tool_calls=[ToolCall("h1", FunctionCall("transfer", "{}"))]), "triage", False
    ),
    Item(ToolMessage("h1", "transferred"), "triage", False),
    Item(CALLING, "sales", False),
    Item(RESULT, "sales", False),
    Item(AssistantMessage("It rains."), "sales"),
]


@pytest.mark.parametrize(
    ("position", "count", "active"),
    [(1, 0, "triage"), (2, 2, "sales"), (3, 2, "sales"), (4, 4, "sales"), (5, 4, "sales")],
)
async def test_branch_behind_an_event_has_whole_model_calls(
    position: int, count: int, active: str, history: TurnRepository
) -> None:
    root = await turn(history, "chatcmpl-0")
    original = await turn(history, parent=root.turn, end={"items": STEPS, "journal": JOURNAL})

    found = await recalled(history, MORE, parent=f"{PARENT}.{position}")

    assert found.step is not None
    assert (found.parent, found.agent, found.step.agent) == (root.turn, active, active)
    hi, hello = UserMessage("Hi."), AssistantMessage("Hello!")
    assert messages_of_items(found.context) == [hi, hello, hi, *messages_of_items(STEPS[:count])]
    following = new_turn(id="chatcmpl-3", parent=root.turn, conversation_id=found.conversation_id)
    part = step_turn(found.step, following, "chatcmpl-2")
    begun = await history.begin(following, parent=part)

    stored = await history.turn("alice", "chatcmpl-2")
    assert stored is not None
    chain = await history.chain(begun.turn)
    assert [one.turn for one in chain] == [root.turn, stored.turn, begun.turn]
    assert messages_of_items(chain[1].items) == [hi, *messages_of_items(STEPS[:count])]
    events = [entry.event for entry in decode_journal(stored.journal).entries()]
    assert events[0] == Started("chatcmpl-2", "triage")
    assert isinstance(events[-1], Completed)
    unchanged = await history.turn("alice", PARENT)
    assert unchanged is not None
    assert (unchanged.turn, messages_of_items(unchanged.items)) == (original.turn, messages_of_items(STEPS))


@pytest.mark.parametrize("position", [7, 8, 9])
async def test_branch_behind_the_last_model_call_follows_the_turn(
    position: int, history: TurnRepository
) -> None:
    parent = await turn(history, end={"items": STEPS, "journal": JOURNAL})

    found = await recalled(history, MORE, parent=f"{PARENT}.{position}")

    assert (found.parent, found.step, found.agent) == (parent.turn, None, "sales")


async def test_branch_behind_an_event_of_a_failed_turn_has_no_call_without_result(
    history: TurnRepository,
) -> None:
    await turn(
        history,
        end={"status": "failed", "is_history": False, "items": STEPS[:3], "journal": JOURNAL},
    )

    found = await recalled(history, MORE, parent=f"{PARENT}.5")

    assert found.step is not None
    assert (messages_of_items(found.step.items), found.step.agent) == (messages_of_items(STEPS[:2]), "sales")


@pytest.mark.parametrize("position", [0, 10])
async def test_branch_behind_an_unknown_event_is_rejected(position: int, history: TurnRepository) -> None:
    await turn(history, end={"items": STEPS, "journal": JOURNAL})

    with pytest.raises(ParentNotFound):
        await recalled(history, MORE, parent=f"{PARENT}.{position}")


# --- behind a turn -------------------------------------------------------------------------------------------


async def test_a_turn_continues_the_named_parent_with_its_full_context(
    history: TurnRepository,
) -> None:
    parent = await turn(history, end={"items": [TRANSFER, Item(AssistantMessage("Hello!"), "sales")]})
    child = await turn(history, "chatcmpl-2", parent=parent.turn, input=[Item(UserMessage("Other"))])

    found = await recalled(history, MORE, parent=PARENT)

    assert child.turn > parent.turn
    assert (found.parent, found.conversation_id, found.match, found.agent) == (
        parent.turn,
        "conv_a",
        "previous-response",
        "sales",
    )
    assert messages_of_items(found.context) == [
        UserMessage("Hi."),
        TRANSFER.message,
        AssistantMessage("Hello!"),
    ]
    assert messages_of_items(found.input) == [MORE]


@pytest.mark.parametrize(
    "more",
    [
        {"end": {"status": "failed", "is_history": False}},
        {"end": {"status": "cancelled", "is_history": False}},
        {"is_stored": False},
        {"caller": "bob"},
        {"end_user": "ann"},
        {"turn_id": "chatcmpl-9"},
    ],
    ids=["failed", "left", "not stored", "another caller's", "another end user's", "unknown"],
)
async def test_a_turn_that_cannot_be_continued_is_not_found(
    history: TurnRepository, more: dict[str, Any]
) -> None:
    await turn(history, **more)

    with pytest.raises(ParentNotFound) as rejected:
        await recalled(history, MORE, parent=PARENT, end_user="ben")

    assert rejected.value.reference == PARENT


async def test_a_turn_that_runs_has_to_end_first(history: TurnRepository) -> None:
    await history.begin(new_turn(id=PARENT))

    with pytest.raises(ConversationBusy):
        await recalled(history, MORE, parent=PARENT)


async def test_the_entry_agent_continues_an_answer_of_another_team(history: TurnRepository) -> None:
    await turn(history, end={"agent": "nobody of this team"})

    assert (await recalled(history, MORE, parent=PARENT)).agent == "triage"


@pytest.mark.parametrize("messages", [[RESULT], [RESULT, MORE]], ids=["results", "results and more"])
async def test_calls_that_wait_are_answered_behind_their_turn(
    history: TurnRepository, messages: list[Message]
) -> None:
    waiting = await turn(history, end={"items": [Item(CALLING, "sales")], "pending": ["c1"]})

    found = await recalled(history, *messages, parent=PARENT)

    assert found.parent == waiting.turn
    assert messages_of_items([*found.context, *found.input])[1:] == [CALLING, *messages]


async def test_a_call_may_be_answered_twice_in_separate_branches(history: TurnRepository) -> None:
    waiting = await turn(history, end={"items": [Item(CALLING, "sales")], "pending": ["c1"]})
    await turn(history, "chatcmpl-2", parent=waiting.turn, input=[Item(RESULT)])

    assert (await recalled(history, RESULT, parent=PARENT)).parent == waiting.turn


async def test_pending_calls_need_results(history: TurnRepository) -> None:
    await turn(history, end={"items": [Item(CALLING, "sales")], "pending": ["c1"]})

    with pytest.raises(ToolResultsMissing) as rejected:
        await recalled(history, MORE, parent=PARENT)

    assert rejected.value.call_ids == ["c1"]


async def test_results_need_pending_calls(history: TurnRepository) -> None:
    await turn(history, end={"items": [Item(CALLING, "sales")], "pending": ["c1"]})

    with pytest.raises(ToolCallNotFound) as rejected:
        await recalled(history, RESULT, ToolMessage("c2", "?"), parent=PARENT)

    assert (rejected.value.call_id, rejected.value.index) == ("c2", 1)


async def test_calls_of_the_input_may_bring_their_own_results(history: TurnRepository) -> None:
    await turn(history)

    assert messages_of_items((await recalled(history, CALLING, RESULT, MORE, parent=PARENT)).input) == [
        CALLING,
        RESULT,
        MORE,
    ]


# --- in a conversation ---------------------------------------------------------------------------------------


async def test_appended_messages_follow_the_head_even_if_they_look_like_history(
    history: TurnRepository,
) -> None:
    head = await turn(history)
    added: list[Message] = [UserMessage("Hi."), AssistantMessage("Never said"), MORE]

    found = await recalled(history, *added, conversation_id="conv_a", is_addition=True)

    assert (found.parent, found.match) == (head.turn, "conversation-id")
    assert messages_of_items(found.context) == [UserMessage("Hi."), AssistantMessage("Hello!")]
    assert messages_of_items(found.input) == added


async def test_a_conversation_that_waits_for_results_takes_another_word(history: TurnRepository) -> None:
    waiting = await turn(history, end={"items": [Item(CALLING, "sales")], "pending": ["c1"]})

    found = await recalled(history, MORE, conversation_id="conv_a", is_addition=True)

    assert (found.parent, messages_of_items(found.input)) == (waiting.turn, [MORE])


async def test_a_conversation_is_created_on_first_use_unless_it_has_to_exist(history: TurnRepository) -> None:
    created = await recalled(history, MORE, conversation_id="chat-1", is_addition=True)

    assert (created.conversation_id, created.parent) == ("chat-1", None)
    with pytest.raises(ConversationNotFound):
        await recalled(history, MORE, conversation_id="conv_x", is_addition=True, must_exist=True)


# --- instructions --------------------------------------------------------------------------------------------


async def test_stored_instructions_apply_to_later_turns(history: TurnRepository) -> None:
    first = await recalled(history, PIRATE, MORE, keeps_instructions=True, instructions="Be brief.")
    await turn(history, input=first.input)

    later = await recalled(history, PIRATE, UserMessage("And?"), keeps_instructions=True, parent=PARENT)
    chat = await recalled(history, UserMessage("And?"), conversation_id="conv_a")

    assert [message.content for message in first.overlay] == ["Be brief.", PIRATE.content]
    assert (messages_of_items(first.input), messages_of_items(first.new_messages)) == ([PIRATE, MORE], [MORE])
    assert (
        messages_of_items(later.context)
        == messages_of_items(chat.context)
        == [MORE, AssistantMessage("Hello!")]
    )
    assert later.overlay == chat.overlay == [PIRATE]
    assert messages_of_items(later.input) == [UserMessage("And?")]


async def test_a_complete_message_list_includes_its_instructions(history: TurnRepository) -> None:
    first = await recalled(history, PIRATE, MORE, keeps_instructions=True)
    await turn(history, input=first.input, end={"fingerprint": first.transcript.answer("Hello!")})

    found = await recalled(
        history, MORE, AssistantMessage("Hello!"), UserMessage("And?"), keeps_instructions=True
    )

    assert (found.match, list(found.overlay)) == ("fingerprint", [])
    assert messages_of_items(found.context) == [MORE, AssistantMessage("Hello!")]


async def test_instructions_of_a_chat_are_not_stored(history: TurnRepository) -> None:
    found = await recalled(history, PIRATE, MORE)

    assert (messages_of_items(found.input), list(found.overlay)) == ([MORE], [PIRATE])
