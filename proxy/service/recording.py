"""Build the stored end of a turn, and rebuild the log of a turn from the store."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from msgspec import Struct
from msgspec.structs import replace

from proxy.conversations.fingerprints import last_answer_of
from proxy.conversations.resolver import ResolvedTurn
from proxy.conversations.steps import Step
from proxy.conversations.tool_results import pending_call
from proxy.errors import AnswerNotStored, InternalTurnError, ProxyError, TurnInterrupted, TurnLeaseLost
from proxy.events import (
    Cancelled,
    ClosingEvent,
    Completed,
    Entry,
    Failed,
    Started,
    decode_journal,
    encode_journal,
)
from proxy.messages import AssistantMessage, FinishReason, ToolCall, ToolMessage, Usage, text_of
from proxy.service.resumption import encode_options_of
from proxy.turns.contract import TeamOutcome
from proxy.turns.live import CancelReason, LiveTurn
from proxy.turns.log_reader import TERMINAL_POSITION
from proxy.turns.recorder import Recorder
from proxy.turns.records import (
    CompletedTurn,
    NewApproval,
    NewTurn,
    Pause,
    TurnEnd,
    TurnRecord,
    TurnStatus,
)
from proxy.turns.repository import TurnRepository
from proxy.turns.request import TurnRequest
from proxy.turns.turn import Turn
from proxy.wire.chat.answer_text import visible_text
from proxy.wire.errors import failed_event, tools_that_ran

_EVENT, _TIME = attrgetter("event"), attrgetter("time")


class StoredTurnContext(Struct, eq=False):
    """The parts of a running turn that its stored end needs. Side requests have none: they are not stored."""

    request: TurnRequest
    resolved: ResolvedTurn
    began: float
    """The time of ``Started``, in seconds since the epoch."""
    key: int = 0
    """The key of the turn in the store, once it is stored as running."""
    fence: int = 0
    continues_approvals: bool = False
    """Whether the turn continues from the approvals of its parent."""


def end_of(
    context: StoredTurnContext,
    live: LiveTurn,
    turn: Turn,
    closing: ClosingEvent,
    outcome: TeamOutcome | None,
    recorder: Recorder,
    *,
    now: float,
) -> TurnEnd:
    """Return the end to store. It is history if the turn has an answer, its tools ran, or it has text and was
    cancelled on request.
    """
    log = live.entries
    events, times = [*map(_EVENT, log)], [*map(_TIME, log), now]
    items = turn.items if outcome is not None else turn.items_so_far()
    text = visible_text(events) or "".join([text_of(item.message) for item in items if item.visible])
    events.append(closing)
    status: TurnStatus
    pending: Sequence[str]
    finish_reason: FinishReason | None
    if outcome is not None:
        error_code, status = None, "completed"
        has_answer, pending, finish_reason = True, outcome.pending, outcome.finish_reason
    else:
        status, error_code = _status_of(closing)
        has_answer = status == "cancelled" and error_code == "requested" and bool(text)
        pending, finish_reason = (), None
    resolved, is_stored = context.resolved, context.request.is_stored
    is_history = has_answer or (turn.ran_tools and is_stored)
    fingerprint = digest = None
    if is_history:
        # Clients that use the deprecated functions get no id for a call, which is therefore found by its content.
        call = pending_call(items, pending) if context.request.uses_functions else None
        digest = resolved.transcript.call(call.function) if call else last_answer_of(resolved.scope, text)
        # The client shows the answer as a part of the message that it continues.
        fingerprint = resolved.transcript.answer(resolved.continued + text, is_call=bool(pending))
    assert context.key
    # With more than 15 keyword arguments, a call builds a dictionary of them.
    end = TurnEnd(
        context.key,
        status,
        is_history,
        agent=turn.agent,
        items=items if is_stored else (),
        uses=recorder.uses,
        finished_at=now,
        fingerprint=fingerprint,
        last_answer=digest,
        pending=pending,
        finish_reason=finish_reason,
        error_code=error_code,
        journal=encode_journal(events, times, live.takeovers) if is_stored else b"",
        fence=context.fence,
        has_checkpoints=turn.steps is not None and turn.steps.is_saved,
        keeps_key=has_answer or turn.ran_effects,
        ran_effects=turn.ran_effects,
        is_found_by_input=turn.ran_tools or turn.ran_effects,
    )
    if context.continues_approvals:
        end = replace(end, took_up=resolved.parent)
    if outcome is not None and outcome.approvals and is_stored:
        end = replace(end, pause=_pause(turn, context, outcome))
    return end


def failed_end_of(context: StoredTurnContext, turn: Turn, failure: ProxyError, *, now: float) -> TurnEnd:
    """Return the end of a turn whose result could not be encoded or stored: it failed."""
    assert context.key
    return TurnEnd(
        turn=context.key,
        status="failed",
        is_history=False,
        agent=turn.agent,
        items=(),
        uses=(),
        finished_at=now,
        error_code=failure.code,
        keeps_key=turn.ran_effects,
        ran_effects=turn.ran_effects,
        is_found_by_input=turn.ran_effects,
        fence=context.fence,
        has_checkpoints=turn.steps is not None and turn.steps.is_saved,
        took_up=context.resolved.parent if context.continues_approvals else None,
    )


def step_turn(step: Step, following: NewTurn, turn_id: str) -> CompletedTurn:
    """Return the turn under which a step is stored; ``following`` is the turn that follows it.

    The usage stays with the original turn.
    """
    turn = replace(
        following,
        id=turn_id,
        end_user=step.record.end_user,
        model=step.record.model,
        parent=step.record.parent,
        agent=step.first_agent,
        input=step.record.input,
        is_stored=True,
        is_listed=False,
        metadata={},
        options=step.record.options,
        idempotency_key=None,
        body_digest=None,
    )
    end = TurnEnd(
        turn=0,
        status="completed",
        is_history=True,
        agent=step.agent,
        items=step.items,
        uses=(),
        finished_at=turn.created_at,
        fingerprint=step.fingerprint,
        finish_reason="stop",
        journal=step.journal(turn.id),
    )
    return CompletedTurn(turn, end)


def _pause(turn: Turn, context: StoredTurnContext, outcome: TeamOutcome) -> Pause:
    approvals = [NewApproval(one.id, one.call_id, one.tool, one.arguments) for one in outcome.approvals]
    return Pause(approvals, encode_options_of(turn, uses_functions=context.request.uses_functions))


def _status_of(closing: ClosingEvent) -> tuple[TurnStatus, str | None]:
    """Return the status of a turn, and its error code."""
    match closing:
        case Completed():
            return "completed", None
        case Failed():
            return "failed", closing.code
        case Cancelled():
            return "cancelled", closing.reason


async def stored_log(history: TurnRepository, caller: str, turn_id: str) -> Sequence[Entry]:
    """Read the log of a turn from the store; empty if it is not there any more."""
    record = await history.turn(caller, turn_id)
    return decode_journal(record.journal).entries() if record is not None and record.journal else ()


def replay(record: TurnRecord, live: LiveTurn, *, is_observer: bool = False) -> None:
    """Append to ``live`` the entries of an ended turn that it does not have yet."""
    live.seal()
    entries = entries_of(record, is_observer=is_observer)
    # Without a stored log, a reader that already has events only needs the closing one.
    missing = entries[live.length :] if record.journal else entries[min(live.length, 1) :]
    for entry in missing:
        live.emit(entry.event, at=entry.time, position=entry.position)


def entries_of(record: TurnRecord, *, is_observer: bool = False) -> list[Entry]:
    """Return the log of a turn that has ended.

    If its events are not stored (``store: false``, or its worker died), the log has ``Started`` and a closing event: a
    failure for a reader of the answer, the stored status for an observer.
    """
    if record.journal:
        return decode_journal(record.journal).entries()
    usage = sum((use.usage for use in record.uses), Usage())
    closing = _stored_closing(record, usage) if is_observer else _failure_without_log(record, usage)
    first = record.uses[0].agent if record.uses else record.agent
    return [
        Entry(1, Started(record.id, first), record.created_at),
        Entry(TERMINAL_POSITION, closing, record.finished_at or record.created_at),
    ]


def _failure_without_log(record: TurnRecord, usage: Usage) -> Failed:
    error: ProxyError = InternalTurnError()
    if record.status == "interrupted":
        error = TurnLeaseLost() if record.error_code == TurnLeaseLost.code else TurnInterrupted()
    elif not record.is_stored:
        error = AnswerNotStored()
    failed = failed_event(error, usage, ran_effects=record.ran_effects or record.status != "interrupted")
    ran = _ran_tools(record)
    if not ran:
        return failed
    return replace(failed, message=f"{failed.message} {tools_that_ran(ran)}")


def _ran_tools(record: TurnRecord) -> list[str]:
    """Return the names of the tools of a turn that have results."""
    messages = [item.message for item in record.items]
    results = {message.tool_call_id for message in messages if isinstance(message, ToolMessage)}
    return [
        call.function.name
        for message in messages
        if isinstance(message, AssistantMessage)
        for call in message.tool_calls or ()
        if isinstance(call, ToolCall) and call.id in results
    ]


def _stored_closing(record: TurnRecord, usage: Usage) -> ClosingEvent:
    match record.status:
        case "completed":
            return Completed(record.agent, record.finish_reason or "stop", usage)
        case "cancelled":
            return Cancelled(_reason_of(record), record.agent, usage)
        case "failed":
            code = record.error_code or InternalTurnError.code
            return Failed(code, "The turn failed. Its events were not stored.", usage)
        case _:
            if record.error_code == TurnLeaseLost.code:
                return _failure_without_log(record, usage)
            return Failed("turn_interrupted", "The worker that ran the turn has ended.", usage)


def _reason_of(record: TurnRecord) -> CancelReason:
    match record.error_code:
        case "client_left" | "shutting_down" as reason:
            return reason
        case _:
            return "requested"
