"""The turn, the agent and the new input that the resolver chooses for a list of messages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.conversations.fingerprints import Transcript, fingerprint_behind, last_answer_of, scope_of
from proxy.conversations.resolver import ConversationResolver, Resolution, ResolvedTurn
from proxy.conversations.resolver_query import UnrelatedMessages
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    FunctionMessage,
    Item,
    Message,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.request_errors import FunctionCallNotFound, ToolCallNotFound
from proxy.turns.records import Branch, ChainTurn, LongestMatch, TurnMatch
from proxy.turns.request import IdSource, TurnRequest
from proxy.wire.chat.message_validation import TRANSLATED_ID
from tests.fakes.models import ScriptedModel
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.teams import agent, team_of
from tests.fakes.turn_records import approvals_of, new_turn, the_end

SCOPE = scope_of("alice", "shop", "")
FIRST_USER, FIRST_ANSWER = UserMessage("Hi."), AssistantMessage("Hello!")
SECOND_USER, SECOND_ANSWER = UserMessage("A laptop?"), AssistantMessage("This one.")
NEXT = UserMessage("Go on")


async def store(
    history: MemoryHistory, shown: Sequence[Message], answer: str, agent_name: str, parent: int | None = None
) -> int:
    """Store a turn that answers the last message of the list; returns its key."""
    transcript = Transcript(SCOPE)
    transcript.extend(shown)
    begun = await history.begin(new_turn(team="shop", parent=parent, input=[Item(shown[-1])]))
    await history.finish(
        the_end(
            begun.turn,
            agent=agent_name,
            items=[Item(AssistantMessage(answer), agent_name)],
            fingerprint=transcript.answer(answer),
            last_answer=last_answer_of(SCOPE, answer),
        )
    )
    return begun.turn


async def resolve(history: MemoryHistory, *messages: Message, **fields: Any) -> ResolvedTurn:
    resolved = await resolve_any(history, *messages, **fields)
    assert isinstance(resolved, ResolvedTurn)
    return resolved


async def resolve_any(history: MemoryHistory, *messages: Message, **fields: Any) -> Resolution:
    team = await team_of(agent("triage", ScriptedModel()), agent("sales", ScriptedModel()))
    request = TurnRequest(caller="alice", model="shop", messages=messages, **fields)
    return await ConversationResolver(history, approvals_of(history), time.time).resolve(request, team)


def messages_of(items: Sequence[Item]) -> list[Message]:
    return [item.message for item in items]


@pytest.mark.parametrize("conversation_id", [None, "conv_a"])
async def test_of_identical_turns_of_one_conversation_the_newest_is_continued(
    conversation_id: str | None,
) -> None:
    history = MemoryHistory()
    await store(history, [FIRST_USER], "Hello!", "sales")
    second = await store(history, [FIRST_USER], "Hello!", "sales")
    await store(history, [FIRST_USER, FIRST_ANSWER, SECOND_USER], "This one.", "triage", parent=second)

    resolved = await resolve(history, FIRST_USER, FIRST_ANSWER, NEXT, conversation_id=conversation_id)

    assert (resolved.conversation_id, resolved.parent, resolved.agent) == ("conv_a", second, "sales")
    assert messages_of(resolved.context) == [FIRST_USER, FIRST_ANSWER]
    assert messages_of(resolved.input) == [NEXT]


async def test_of_identical_turns_the_head_of_the_named_conversation_is_continued() -> None:
    history = MemoryHistory()
    await store(history, [FIRST_USER], "Hello!", "sales")
    head = await store(history, [FIRST_USER], "Hello!", "sales")

    resolved = await resolve(history, FIRST_USER, FIRST_ANSWER, NEXT, conversation_id="conv_a")

    assert (resolved.parent, resolved.agent) == (head, "sales")
    assert messages_of(resolved.input) == [NEXT]


@pytest.mark.parametrize("conversation_id", [None, "conv_a"])
async def test_input_after_a_rewritten_message_excludes_the_known_answer_before_it(
    conversation_id: str | None,
) -> None:
    history = MemoryHistory()
    first = await store(history, [FIRST_USER], "Hello!", "triage")
    await store(history, [FIRST_USER, FIRST_ANSWER, SECOND_USER], "This one.", "sales", parent=first)
    rewritten = UserMessage("A notebook?")

    resolved = await resolve(
        history, FIRST_USER, FIRST_ANSWER, rewritten, SECOND_ANSWER, NEXT, conversation_id=conversation_id
    )

    assert (resolved.parent, resolved.agent) == (first, "sales")
    assert messages_of(resolved.context) == [FIRST_USER, FIRST_ANSWER]
    assert messages_of(resolved.input) == [rewritten, SECOND_ANSWER, NEXT]


@pytest.mark.parametrize("unknown", [7, 8, 519, 520])
async def test_newest_known_answer_is_found_at_any_distance_from_the_end(unknown: int) -> None:
    history = MemoryHistory()
    await store(history, [UserMessage("Start")], "First.", "triage")
    opening: list[Message] = [UserMessage("Start"), AssistantMessage("First.")]
    known = await store(history, [*opening, FIRST_USER], "Hello!", "sales")
    added: list[Message] = [
        message
        for number in range(unknown)
        for message in (UserMessage(f"Question {number}"), AssistantMessage(f"Answer {number}"))
    ]

    resolved = await resolve(history, *opening, FIRST_USER, FIRST_ANSWER, *added, NEXT)

    assert (resolved.parent, resolved.agent, resolved.match) == (known, "sales", "fingerprint")
    assert messages_of(resolved.input) == [*added, NEXT]


@pytest.mark.parametrize("results", [1, 2])
async def test_repeated_function_call_resumes_the_turn_that_its_result_answers(results: int) -> None:
    history = MemoryHistory()
    call = FunctionCall("weather", "{}")
    transcript = Transcript(SCOPE)
    transcript.add(FIRST_USER)
    turns: list[int] = []
    inputs: list[Message] = [FIRST_USER, ToolMessage("call_0", "rain")]
    for number, message in enumerate(inputs):
        if number:
            transcript.add(message)
        parent = turns[-1] if turns else None
        begun = await history.begin(new_turn(team="shop", parent=parent, input=[Item(message)]))
        created = AssistantMessage(None, tool_calls=[ToolCall(f"call_{number}", call)])
        await history.finish(
            the_end(
                begun.turn,
                items=[Item(created, "sales")],
                last_answer=transcript.call(call),
                pending=[f"call_{number}"],
            )
        )
        turns.append(begun.turn)
    shown: list[Message] = [FIRST_USER]
    for number in range(results):
        call_id = f"{TRANSLATED_ID}{number}"
        shown += [AssistantMessage(None, tool_calls=[ToolCall(call_id, call)]), ToolMessage(call_id, "rain")]

    resolved = await resolve(history, *shown)

    assert (resolved.parent, resolved.match) == (turns[results - 1], "tool-calls")
    assert messages_of(resolved.input) == [ToolMessage(f"call_{results - 1}", "rain")]


@pytest.mark.parametrize(
    ("id_source", "messages", "continues"),
    [
        ("conversation-id", [NEXT], True),
        ("conversation-id", [FIRST_USER], False),
        ("frontend-header", [NEXT], False),
    ],
    ids=["added message", "repeated first message", "frontend that sends the complete list"],
)
async def test_a_list_without_answers_continues_a_conversation_unless_it_starts_it_again(
    id_source: IdSource, messages: list[Message], continues: bool
) -> None:
    history = MemoryHistory()
    head = await store(history, [FIRST_USER], "Hello!", "sales")

    resolved = await resolve(history, *messages, conversation_id="conv_a", id_source=id_source)

    assert (resolved.conversation_id, resolved.match) == ("conv_a", id_source)
    assert (resolved.parent, resolved.agent) == ((head, "sales") if continues else (None, "triage"))


async def test_a_list_with_edited_answers_starts_a_branch_with_the_agent_of_its_user_messages() -> None:
    history = MemoryHistory()
    first = await store(history, [FIRST_USER], "Hello!", "triage")
    await store(history, [FIRST_USER, FIRST_ANSWER, SECOND_USER], "This one.", "sales", parent=first)
    edited: list[Message] = [
        FIRST_USER,
        AssistantMessage("Hey!"),
        SECOND_USER,
        AssistantMessage("That one."),
        NEXT,
    ]

    resolved = await resolve(history, *edited, conversation_id="conv_a")

    assert (resolved.conversation_id, resolved.parent, resolved.agent) == ("conv_a", None, "sales")
    assert messages_of(resolved.input) == edited


class DeletedMeanwhile(MemoryHistory):
    """A history whose conversations are deleted after their heads were read."""

    async def chain(self, turn: int) -> list[ChainTurn]:
        return []


@pytest.mark.parametrize("messages", [[NEXT], [FIRST_USER, AssistantMessage("Edited."), NEXT]])
async def test_a_conversation_that_is_deleted_meanwhile_begins_again(messages: list[Message]) -> None:
    history = DeletedMeanwhile()
    await store(history, [FIRST_USER], "Hello!", "sales")

    resolved = await resolve(history, *messages, conversation_id="conv_a")

    assert (resolved.parent, resolved.conversation_id, resolved.agent) == (None, "conv_a", "triage")


async def test_a_list_without_any_message_of_the_named_conversation_is_unrelated() -> None:
    history = MemoryHistory()
    await store(history, [FIRST_USER], "Hello!", "sales")

    resolved = await resolve_any(
        history, UserMessage("Make a title."), AssistantMessage("For what?"), NEXT, conversation_id="conv_a"
    )

    assert resolved == UnrelatedMessages()


@pytest.mark.parametrize(("is_addition", "parent"), [(False, 0), (True, 1)], ids=["list", "addition"])
async def test_unanswered_calls_select_their_turn_unless_all_messages_are_added_to_the_head(
    is_addition: bool, parent: int
) -> None:
    history = MemoryHistory()
    call = AssistantMessage(None, tool_calls=[ToolCall("call_1", FunctionCall("weather", "{}"))])
    calling = await history.begin(new_turn(team="shop", input=[Item(FIRST_USER)]))
    await history.finish(the_end(calling.turn, items=[Item(call, "sales")], pending=["call_1"]))
    head = await store(history, [FIRST_USER, FIRST_ANSWER, SECOND_USER], "This one.", "triage", calling.turn)

    resolved = await resolve(
        history, call, NEXT, conversation_id="conv_a", is_addition=is_addition, keeps_instructions=True
    )

    assert resolved.parent == (calling.turn, head)[parent]


async def test_a_conversation_without_turns_begins_with_the_agent_of_the_known_transcript() -> None:
    history = MemoryHistory()
    await store(history, [FIRST_USER], "Hello!", "sales")

    resolved = await resolve(history, FIRST_USER, FIRST_ANSWER, NEXT, conversation_id="conv_new")

    assert (resolved.conversation_id, resolved.parent, resolved.agent) == ("conv_new", None, "sales")
    assert messages_of(resolved.input) == [FIRST_USER, FIRST_ANSWER, NEXT]


class ObservedReads(MemoryHistory):
    """Notes how the store is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    async def find_longest(
        self,
        boundaries: Sequence[tuple[int, bytes]],
        digest: bytes | None,
        *,
        conversation: int | None = None,
        with_branch: bool = True,
    ) -> LongestMatch:
        before = [*self.reads]
        found = await super().find_longest(
            boundaries, digest, conversation=conversation, with_branch=with_branch
        )
        self.reads = [*before, "longest" if found.branch is None else "longest with branch"]
        return found

    async def branch(self, turn: int) -> Branch | None:
        self.reads.append("branch")
        return await super().branch(turn)

    async def find_last_answer(self, digest: bytes, *, conversation: int | None = None) -> TurnMatch | None:
        self.reads.append("last answer")
        return await super().find_last_answer(digest, conversation=conversation)


@pytest.mark.parametrize(
    ("shown", "conversation_id", "reads"),
    [
        ([FIRST_USER, FIRST_ANSWER, NEXT], None, ["longest with branch"]),
        ([FIRST_USER, FIRST_ANSWER, NEXT], "conv_new", ["longest"]),
        ([SECOND_USER, SECOND_ANSWER, NEXT], None, ["longest"]),
        (
            [FIRST_USER, FIRST_ANSWER, SECOND_USER, SECOND_ANSWER, NEXT],
            None,
            ["longest with branch", "last answer"],
        ),
    ],
    ids=["continued", "only its agent", "unknown", "continued before an unknown answer"],
)
async def test_a_transcript_is_found_together_with_its_branch_if_that_is_needed(
    shown: list[Message], conversation_id: str | None, reads: list[str]
) -> None:
    history = ObservedReads()
    await store(history, [FIRST_USER], "Hello!", "sales")
    history.reads.clear()

    await resolve(history, *shown, conversation_id=conversation_id)

    assert history.reads == reads


@pytest.mark.parametrize(
    ("end_user", "owner", "is_resumed"),
    [("", "", True), ("", "ann", True), ("ann", "", True), ("ann", "ann", True), ("ben", "ann", False)],
)
async def test_results_resume_a_turn_of_the_same_end_user_only(
    end_user: str, owner: str, is_resumed: bool
) -> None:
    history = MemoryHistory()
    call = AssistantMessage(None, tool_calls=[ToolCall("call_1", FunctionCall("weather", "{}"))])
    calling = await history.begin(new_turn(team="shop", input=[Item(FIRST_USER)], end_user=owner))
    await history.finish(the_end(calling.turn, items=[Item(call, "sales")], pending=["call_1"]))

    try:
        resolved = await resolve(history, ToolMessage("call_1", "rain"), end_user=end_user)
    except ToolCallNotFound:
        assert not is_resumed
    else:
        assert (is_resumed, resolved.parent) == (True, calling.turn)


async def test_two_results_of_one_function_call_are_rejected() -> None:
    history = MemoryHistory()
    call = AssistantMessage(None, tool_calls=[ToolCall("call_1", FunctionCall("weather", "{}"))])
    calling = await history.begin(new_turn(team="shop", input=[Item(FIRST_USER)]))
    await history.finish(the_end(calling.turn, items=[Item(call, "sales")], pending=["call_1"]))
    results = [FunctionMessage("weather", "rain"), FunctionMessage("weather", "sun")]

    with pytest.raises(FunctionCallNotFound) as rejected:
        await resolve(history, *results, conversation_id="conv_a")

    resumed = await resolve(history, results[0], conversation_id="conv_a")
    assert rejected.value.index == 0
    assert (resumed.parent, messages_of(resumed.input)) == (calling.turn, [ToolMessage("call_1", "rain")])


def test_items_that_end_with_a_user_message_have_no_fingerprint() -> None:
    transcript = Transcript(SCOPE)
    transcript.add(FIRST_USER)
    branch = Branch.of([ChainTurn(1, "sales", True, [], (), fingerprint=transcript.answer("Hello!"))])

    assert fingerprint_behind(branch, [SECOND_USER, SECOND_ANSWER, NEXT]) is None
    transcript.extend([SECOND_USER, SECOND_ANSWER])
    assert fingerprint_behind(branch, [SECOND_USER, SECOND_ANSWER]) == transcript.fingerprint
