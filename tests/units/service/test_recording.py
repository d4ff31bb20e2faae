"""The stored end of a turn, and the log that is rebuilt from it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from proxy.conversations.fingerprints import Transcript, last_answer_of
from proxy.conversations.resolver import ResolvedTurn
from proxy.errors import AnswerNotStored, InternalTurnError, TurnLeaseLost
from proxy.events import (
    Cancelled,
    ClosingEvent,
    Completed,
    Entry,
    Event,
    Failed,
    ModelCalled,
    Started,
    TextDelta,
    decode_journal,
    encode_journal,
)
from proxy.messages import AssistantMessage, FunctionCall, Item, ToolCall, ToolMessage, Usage, UserMessage
from proxy.service.recording import StoredTurnContext, end_of, entries_of, failed_end_of, replay, stored_log
from proxy.turns.contract import TeamOutcome
from proxy.turns.live import LiveTurn
from proxy.turns.log_reader import TERMINAL_POSITION
from proxy.turns.recorder import Recorder
from proxy.turns.records import ModelUse, NewApproval, TurnEnd, TurnRecord
from proxy.turns.request import TurnRequest
from proxy.turns.turn import ApprovalRequest, Turn
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.turn_records import new_turn, the_end

SCOPE = b"s" * 16
USAGE = Usage(prompt=7, completion=3)
USED = ModelCalled("sales", "model-a", USAGE, 0.5)
QUESTION = Item(UserMessage("Hi"))
ANSWER = Item(AssistantMessage("Hello!"), "sales")
CALL = ToolCall("c1", FunctionCall("look_up", "{}"))
REQUESTED = Item(AssistantMessage(None, tool_calls=[CALL]), "sales", visible=False)
RESULT = Item(ToolMessage("c1", "a rocket"), "sales", visible=False)
DONE = Completed("sales", "stop", USAGE)
STOPPED = Cancelled("requested", "sales", USAGE)
LEFT = Cancelled("client_left", "sales", USAGE)
BROKEN = Failed("internal_error", "The turn failed.", USAGE)


def context_of(*, is_stored: bool = True, continued: str = "") -> StoredTurnContext:
    request = TurnRequest(caller="alice", model="shop", messages=[UserMessage("Hi")], is_stored=is_stored)
    resolved = ResolvedTurn(
        conversation_id="conv_a",
        match="entry",
        parent=None,
        agent="sales",
        context=(),
        input=(QUESTION,),
        new_messages=(QUESTION,),
        overlay=(),
        transcript=Transcript(SCOPE),
        scope=SCOPE,
        continued=continued,
    )
    return StoredTurnContext(request, resolved, began=100.0, key=5)


def stored_end(
    closing: ClosingEvent,
    outcome: TeamOutcome | None = None,
    *,
    context: StoredTurnContext | None = None,
    text: str = "Hello!",
    **of_turn: Any,
) -> TurnEnd:
    live = LiveTurn("t")
    recorder = Recorder(live)
    live.emit(Started("t", "sales"), at=100.0)
    events: list[Event] = [*([TextDelta(text)] if text else []), USED]
    for event in events:
        recorder.emit(event)
    turn = Turn("t", "conv_a", "alice", "sales", (QUESTION,), **of_turn)
    return end_of(context or context_of(), live, turn, closing, outcome, recorder, now=110.0)


def test_a_completed_turn_is_history_with_items_usage_events_and_fingerprints() -> None:
    end = stored_end(DONE, TeamOutcome("stop"), items=[ANSWER])
    journal = decode_journal(end.journal).entries()

    assert replace(end, journal=b"") == TurnEnd(
        turn=5,
        status="completed",
        is_history=True,
        agent="sales",
        items=[ANSWER],
        uses=[ModelUse("sales", "model-a", 1, USAGE)],
        finished_at=110.0,
        fingerprint=Transcript(SCOPE).answer("Hello!"),
        last_answer=last_answer_of(SCOPE, "Hello!"),
        finish_reason="stop",
        keeps_key=True,
    )
    assert [entry.event for entry in journal] == [Started("t", "sales"), TextDelta("Hello!"), USED, DONE]
    assert (journal[0].time, journal[-1].time) == (100.0, 110.0)


def test_a_continued_answer_is_found_with_the_text_before_it() -> None:
    end = stored_end(
        DONE, TeamOutcome("stop"), context=context_of(continued="Well, "), text="hello!", items=[ANSWER]
    )

    assert end.fingerprint == Transcript(SCOPE).answer("Well, hello!")
    assert end.last_answer == last_answer_of(SCOPE, "hello!")


def test_content_of_a_turn_that_is_not_stored_is_left_out() -> None:
    end = stored_end(DONE, TeamOutcome("stop"), context=context_of(is_stored=False), items=[ANSWER])

    assert (end.items, end.journal, end.pause) == ((), b"", None)
    assert (end.is_history, end.fingerprint) == (True, Transcript(SCOPE).answer("Hello!"))


@pytest.mark.parametrize(
    ("closing", "text", "of_turn", "is_history", "keeps_key"),
    [
        pytest.param(BROKEN, "Hel", {}, False, False, id="failure"),
        pytest.param(BROKEN, "", {"ran_tools": True}, True, False, id="failure after a tool"),
        pytest.param(BROKEN, "", {"ran_effects": True}, False, True, id="failure after effects"),
        pytest.param(STOPPED, "Hel", {"draft": ["Hel"]}, True, True, id="stopped with text"),
        pytest.param(STOPPED, "", {}, False, False, id="stopped without text"),
        pytest.param(LEFT, "Hel", {"draft": ["Hel"]}, False, False, id="left by its client"),
    ],
)
def test_a_turn_without_outcome_is_history_if_its_text_or_tools_are_stored(
    closing: ClosingEvent, text: str, of_turn: dict[str, Any], is_history: bool, keeps_key: bool
) -> None:
    end = stored_end(closing, text=text, **of_turn)

    assert (end.is_history, end.keeps_key, end.finish_reason) == (is_history, keeps_key, None)
    assert (end.fingerprint is not None) is is_history


def test_tools_of_a_turn_without_storage_make_no_history() -> None:
    assert not stored_end(BROKEN, context=context_of(is_stored=False), ran_tools=True).is_history


@pytest.mark.parametrize(
    ("closing", "status", "code"),
    [(BROKEN, "failed", "internal_error"), (STOPPED, "cancelled", "requested"), (DONE, "completed", None)],
)
def test_status_and_code_are_those_of_the_closing_event(
    closing: ClosingEvent, status: str, code: str | None
) -> None:
    end = stored_end(closing)

    assert (end.status, end.error_code) == (status, code)


def test_an_interrupted_turn_has_its_items_so_far() -> None:
    end = stored_end(
        LEFT, items=[REQUESTED], call_results={"c1": "a rocket"}, draft=["It", " is"], ran_effects=True
    )

    assert end.items == [REQUESTED, RESULT, Item(AssistantMessage("It is"), "sales")]
    assert (end.ran_effects, end.is_found_by_input) == (True, True)


def test_calls_of_client_tools_are_pending() -> None:
    requested = Item(REQUESTED.message, "sales")
    end = stored_end(DONE, TeamOutcome("tool_calls", pending=("c1",)), text="", items=[requested])

    assert (end.pending, end.finish_reason, end.fingerprint) == (("c1",), "tool_calls", None)


def test_a_request_for_approval_is_stored_with_what_resumes_it() -> None:
    approval = ApprovalRequest("appr_1", "c1", "look_up", "{}")
    end = stored_end(DONE, TeamOutcome("stop", approvals=(approval,)), items=[REQUESTED])

    assert end.pause is not None
    assert list(end.pause.approvals) == [NewApproval("appr_1", "c1", "look_up", "{}")]


def test_a_turn_whose_result_was_not_stored_has_failed() -> None:
    turn = Turn("t", "conv_a", "alice", "sales", (QUESTION,), items=[ANSWER], ran_effects=True)

    assert failed_end_of(context_of(), turn, TurnLeaseLost(), now=110.0) == TurnEnd(
        turn=5,
        status="failed",
        is_history=False,
        agent="sales",
        items=(),
        uses=(),
        finished_at=110.0,
        error_code="turn_lease_lost",
        keeps_key=True,
        ran_effects=True,
        is_found_by_input=True,
    )


# --- from the store ---


async def record_of(*, is_stored: bool = True, **end: Any) -> TurnRecord:
    history = MemoryHistory()
    new = new_turn(id="t", is_stored=is_stored)
    begun = await history.begin(new)
    await history.finish(the_end(begun.turn, **end))
    record = await history.turn("alice", "t")
    assert record is not None
    return record


JOURNAL = encode_journal([Started("t", "sales"), TextDelta("Hello!"), DONE], [100.0, 105.0, 110.0])


async def test_stored_events_are_the_log() -> None:
    record = await record_of(journal=JOURNAL)

    assert entries_of(record) == [
        Entry(1, Started("t", "sales"), 100.0),
        Entry(2, TextDelta("Hello!"), 105.0),
        Entry(3, DONE, 110.0),
    ]


@pytest.mark.parametrize("known", [0, 1, 2])
async def test_a_replay_adds_the_entries_that_are_missing(known: int) -> None:
    record = await record_of(journal=JOURNAL)
    live = LiveTurn("t")
    for entry in entries_of(record)[:known]:
        live.emit(entry.event, at=entry.time)

    replay(record, live)

    assert list(live.entries) == entries_of(record)
    assert not live.stop("requested")


async def test_a_replay_without_stored_events_adds_the_closing_one() -> None:
    record = await record_of(status="failed", error_code="internal_error", is_history=False)
    live = LiveTurn("t")
    for event in (Started("t", "sales"), TextDelta("Hel")):
        live.emit(event, at=100.0)

    replay(record, live)

    assert [entry.position for entry in live.entries] == [1, 2, TERMINAL_POSITION]
    assert isinstance(live.entries[-1].event, Failed)


@pytest.mark.parametrize(
    ("end", "closing"),
    [
        pytest.param({}, DONE, id="completed"),
        pytest.param({"status": "cancelled", "error_code": "client_left"}, LEFT, id="left"),
        pytest.param({"status": "cancelled", "error_code": "requested"}, STOPPED, id="stopped"),
        pytest.param(
            {"status": "failed", "error_code": "turn_timeout"},
            Failed("turn_timeout", "The turn failed. Its events were not stored.", USAGE),
            id="failed",
        ),
    ],
)
async def test_an_observer_gets_the_status_of_a_turn_without_stored_events(
    end: dict[str, Any], closing: ClosingEvent
) -> None:
    record = await record_of(uses=[ModelUse("sales", "model-a", 1, USAGE)], **end)

    assert entries_of(record, is_observer=True) == [
        Entry(1, Started("t", "sales"), 100.0),
        Entry(TERMINAL_POSITION, closing, 110.0),
    ]


async def test_a_reader_of_a_turn_without_stored_events_gets_a_failure_with_its_tools() -> None:
    record = await record_of(items=[REQUESTED, RESULT, ANSWER])
    closing = entries_of(record)[-1].event

    assert isinstance(closing, Failed)
    assert closing.code == InternalTurnError.code
    assert closing.message.startswith(InternalTurnError().message)
    assert "look_up" in closing.message
    assert not closing.is_repeatable


async def test_a_reader_of_a_turn_without_stored_content_gets_an_error_that_says_so() -> None:
    record = await record_of(is_stored=False)
    closing = entries_of(record)[-1].event

    assert isinstance(closing, Failed)
    assert (closing.code, closing.is_repeatable) == (AnswerNotStored.code, False)


async def test_the_log_of_a_deleted_turn_is_empty() -> None:
    history = MemoryHistory()
    begun = await history.begin(new_turn(id="t"))
    await history.finish(the_end(begun.turn, journal=JOURNAL))

    assert len(await stored_log(history, "alice", "t")) == 3
    assert await stored_log(history, "alice", "other") == ()
