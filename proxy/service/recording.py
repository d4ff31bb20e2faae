"""How a turn is written down when it ends, and read back when somebody asks for it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from proxy.conversations.fingerprints import last_answer_of
from proxy.conversations.resolver import ResolvedTurn
from proxy.conversations.steps import Step
from proxy.conversations.tool_results import pending_call
from proxy.errors import InternalTurnError, ProxyError, TurnLeaseLost
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
from proxy.messages import Item, Usage, text_of
from proxy.service.resumption import circumstances_of
from proxy.turns.contract import Recorder, TeamOutcome, Turn
from proxy.turns.live import TERMINAL_POSITION, LiveTurn, StopReason
from proxy.turns.repository import (
    Begun,
    ModelUse,
    NewApproval,
    NewTurn,
    Pause,
    TurnEnd,
    TurnRecord,
    TurnRepository,
    TurnStatus,
)
from proxy.turns.request import TurnRequest
from proxy.wire.chat.answer_text import visible_text
from proxy.wire.errors import failed_event


@dataclass(frozen=True, slots=True)
class StoredTurnContext:
    """What ties a running turn to the store; side requests have none."""

    request: TurnRequest
    begun: Begun
    recalled: ResolvedTurn


def end_of(
    kept: StoredTurnContext,
    live: LiveTurn,
    turn: Turn,
    closing: ClosingEvent,
    answered: TeamOutcome | None,
    recorder: Recorder,
    *,
    now: float,
) -> TurnEnd:
    """Return what is to be stored. Only answers, and what was said before a requested stop, are history."""
    items = turn.items if answered is not None else turn.said_so_far()
    events = [entry.event for entry in live.entries]
    said = visible_text(events) or "".join(text_of(item.message) for item in items if item.visible)
    was_stopped = isinstance(closing, Cancelled) and closing.reason == "requested"
    is_history = answered is not None or (was_stopped and bool(said))
    pending = answered.pending if answered is not None else ()
    is_stored = kept.request.is_stored
    mark = _mark(kept, items, pending, said) if is_history else None
    return TurnEnd(
        turn=kept.begun.turn,
        status=_status_of(closing),
        is_history=is_history,
        agent=turn.agent,
        items=items if is_stored else (),
        uses=[ModelUse(*use) for use in recorder.uses],
        finished_at=now,
        fingerprint=kept.recalled.transcript.answer(said, is_call=bool(pending)) if is_history else None,
        last_answer=mark,
        pending=pending,
        finish_reason=answered.finish_reason if answered is not None else None,
        error_code=_code_of(closing),
        journal=encode_journal([*events, closing], [*(entry.time for entry in live.entries), now])
        if is_stored
        else b"",
        pause=_pause(turn, kept, answered) if is_stored and answered is not None else None,
        took_up=kept.recalled.parent if _takes_up(kept) else None,
    )


def bare_end_of(kept: StoredTurnContext, turn: Turn, failure: ProxyError, *, now: float) -> TurnEnd:
    """Return the end of a turn of which no more can be written down than that it failed."""
    return TurnEnd(
        turn=kept.begun.turn,
        status="failed",
        is_history=False,
        agent=turn.agent,
        items=(),
        uses=(),
        finished_at=now,
        error_code=failure.code,
        took_up=kept.recalled.parent if _takes_up(kept) else None,
    )


def step_turn(step: Step, following: NewTurn, turn_id: str) -> NewTurn:
    """Return the turn under which a step is stored; ``following`` is the turn that follows it."""
    return replace(
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


def step_end(step: Step, begun: Begun, turn: NewTurn) -> TurnEnd:
    """Return the end of the turn under which a step is stored. The original turn has the usage."""
    return TurnEnd(
        turn=begun.turn,
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


def _pause(turn: Turn, kept: StoredTurnContext, answered: TeamOutcome) -> Pause | None:
    if not answered.approvals:
        return None
    asked = [NewApproval(one.id, one.call_id, one.tool, one.arguments) for one in answered.approvals]
    return Pause(asked, circumstances_of(turn, uses_functions=kept.request.uses_functions))


def _takes_up(kept: StoredTurnContext) -> bool:
    return kept.recalled.resumption is not None and kept.recalled.resumption.update is not None


def _mark(kept: StoredTurnContext, items: Sequence[Item], pending: Sequence[str], said: str) -> bytes | None:
    """Return what finds the turn by its answer alone, or by its call when that has no id for the client."""
    call = pending_call(items, pending) if kept.request.uses_functions else None
    if call is not None:
        return kept.recalled.transcript.call(call.function)
    return last_answer_of(kept.recalled.scope, said)


def _code_of(closing: ClosingEvent) -> str | None:
    match closing:
        case Completed():
            return None
        case Failed():
            return closing.code
        case Cancelled():
            return closing.reason


def _status_of(closing: ClosingEvent) -> TurnStatus:
    match closing:
        case Completed():
            return "completed"
        case Failed():
            return "failed"
        case Cancelled():
            return "cancelled"


def stored_log(
    history: TurnRepository, caller: str, turn_id: str
) -> Callable[[], Awaitable[Sequence[Entry]]]:
    """Return a function that reads the log of a turn from the store; empty if it is not there any more."""

    async def load() -> Sequence[Entry]:
        record = await history.turn(caller, turn_id)
        return decode_journal(record.journal).entries() if record is not None and record.journal else ()

    return load


def replay(record: TurnRecord, live: LiveTurn, *, is_observer: bool = False) -> None:
    """Fill the log of a turn that has ended with what is not in it yet, from what was kept."""
    live.seal()
    for entry in entries_of(record, is_observer=is_observer)[len(live.entries) :]:
        live.emit(entry.event, at=entry.time, position=entry.position)


def entries_of(record: TurnRecord, *, is_observer: bool = False) -> list[Entry]:
    """Return the log of a turn that has ended.

    Who wants the answer of a turn whose worker died, or that kept no content, is told that it failed; an observer is
    told what is known.
    """
    if record.journal:
        return decode_journal(record.journal).entries()
    usage = sum((use.usage for use in record.uses), Usage())
    closing = _known_end(record, usage) if is_observer else _lost_answer(record, usage)
    first = record.uses[0].agent if record.uses else record.agent
    return [
        Entry(1, Started(record.id, first), record.created_at),
        Entry(TERMINAL_POSITION, closing, record.finished_at or record.created_at),
    ]


def _lost_answer(record: TurnRecord, usage: Usage) -> Failed:
    error = TurnLeaseLost() if record.error_code == TurnLeaseLost.code else InternalTurnError()
    return failed_event(error, usage, ran_effects=True)


def _known_end(record: TurnRecord, usage: Usage) -> ClosingEvent:
    match record.status:
        case "completed":
            return Completed(record.agent, record.finish_reason or "stop", usage)
        case "cancelled":
            return Cancelled(_reason_of(record), record.agent, usage)
        case "failed":
            code = record.error_code or InternalTurnError.code
            return Failed(code, "The turn failed; no more of it is kept.", usage)
        case _:
            if record.error_code == TurnLeaseLost.code:
                return _lost_answer(record, usage)
            return Failed("turn_interrupted", "The server that ran the turn is gone.", usage)


def _reason_of(record: TurnRecord) -> StopReason:
    match record.error_code:
        case "client_left" | "shutting_down" as reason:
            return reason
        case _:
            return "requested"
