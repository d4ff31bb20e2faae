"""Run turns as tasks of this process, and store their results.

A turn is acknowledged only after its result is stored: ``Completed`` is logged after the commit. A turn whose result
could not be stored ends as ``Failed``, whatever its agents produced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from msgspec import Struct

from proxy.errors import (
    InternalTurnError,
    ProxyError,
    StoreUnavailable,
    TurnLeaseLost,
    TurnTakenOver,
    TurnTimeout,
)
from proxy.events import Cancelled, ClosingEvent, Completed, Entry, Failed, Started, TextDelta
from proxy.request_id import REQUEST_ID
from proxy.service.event_log import EventLog
from proxy.service.recording import StoredTurnContext, end_of, failed_end_of, stored_log
from proxy.service.turn_span import record_closing, start_turn_span
from proxy.tracing import TraceSpan, Tracing
from proxy.turns.checkpoints import MAX_TAKEOVERS
from proxy.turns.continued_text import ContinuedText
from proxy.turns.contract import Team, TeamOutcome
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from proxy.turns.log_reader import TERMINAL_POSITION
from proxy.turns.recorder import Recorder
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock
from proxy.turns.turn import Turn
from proxy.wire.errors import failed_event

logger = logging.getLogger(__name__)


class TurnObserver(Protocol):
    """Receives the log of each turn that ends in this process."""

    def turn_ended(self, caller: str, team: str, entries: Sequence[Entry]) -> None:
        """Handle the end of a turn of ``caller``; ``entries`` is the complete log."""
        ...


class RestoredLog(Struct, frozen=True):
    """The log of a turn of another worker up to its newest checkpoint; ``takeovers`` as in ``Journal``."""

    entries: Sequence[Entry]
    takeovers: Sequence[int]


class TurnRunner:
    """Runs turns. ``time_limit`` is in seconds and applies to teams that do not set their own."""

    def __init__(
        self,
        history: TurnRepository,
        lives: LiveTurns,
        clock: Clock,
        *,
        time_limit: float,
        event_log: EventLog,
        observer: TurnObserver | None,
        tracing: Tracing | None = None,
    ) -> None:
        self._history = history
        self._lives = lives
        self._clock = clock
        self._time_limit = time_limit
        self._event_log = event_log
        self._observer = observer
        self._tracing = tracing
        self._is_stopped = False
        self.has_handed_over = False
        """Whether turns are left to other workers."""

    def start(
        self,
        live: LiveTurn,
        team: Team,
        turn: Turn,
        context: StoredTurnContext | None,
        restored: RestoredLog | None = None,
    ) -> None:
        """Start the task of a turn; it is stored unless ``context`` is None.

        If the turn is not stored as running yet (``turn.begin``), ``confirm`` or ``withdraw`` has to follow.
        ``restored`` is the log of a turn that was taken over from another worker.
        """
        if self._tracing is None:
            work = self._run(live, team, turn, context, restored, None)
        else:
            work = self._run_traced(self._tracing, live, team, turn, context, restored)
        live.task = asyncio.get_running_loop().create_task(work, name=turn.id)
        if turn.begin is None:
            live.listener = self._event_log.listener(live)
        self._lives.add(live)
        if self._is_stopped:
            # The turn was being opened while ``stop`` ran.
            live.stop("shutting_down")

    def confirm(self, live: LiveTurn, turn: Turn) -> None:
        """Let a turn continue that is stored as running now."""
        assert turn.begin is not None
        listener = self._event_log.listener(live)
        if listener is not None:
            for entry in live.entries:
                listener(entry)
            live.listener = listener
        turn.begin.set_result(None)
        turn.begin = None

    async def withdraw(self, live: LiveTurn, turn: Turn) -> None:
        """Cancel a turn that could not begin, and wait until its model call has ended. Nothing of it remains."""
        assert turn.begin is not None
        assert live.task is not None
        # The request can be cancelled here too: until the task has ended, ``stop`` has to wait for it.
        live.task.add_done_callback(lambda _: self._lives.remove(live))
        turn.begin.cancel()
        live.task.cancel()
        await asyncio.wait([live.task])

    async def stop(self, *, grace: float) -> None:
        """Wait up to ``grace`` seconds for the running turns, then cancel them and all that start later."""
        if grace > 0 and (tasks := self._tasks()):
            await asyncio.wait(tasks, timeout=grace)
        self._is_stopped = True
        while tasks := self._tasks():
            for live in self._lives.running():
                live.stop("shutting_down")
            await asyncio.wait(tasks)

    def _tasks(self) -> list[asyncio.Task[object]]:
        return [live.task for live in self._lives.running() if live.task is not None]

    async def _run_traced(
        self,
        tracing: Tracing,
        live: LiveTurn,
        team: Team,
        turn: Turn,
        context: StoredTurnContext | None,
        restored: RestoredLog | None,
    ) -> None:
        """Do what ``_run`` does, as a span."""
        with start_turn_span(tracing, team, turn) as traced:
            await self._run(live, team, turn, context, restored, traced)

    async def _run(
        self,
        live: LiveTurn,
        team: Team,
        turn: Turn,
        context: StoredTurnContext | None,
        restored: RestoredLog | None,
        traced: TraceSpan | None,
    ) -> None:
        """Run the team within its time limit, store the result, then log the closing event."""
        # One coroutine, because each between the task and the team is called again at every wake-up.
        recorder = _recorder(live, context, restored)
        outcome: TeamOutcome | None = None
        closing: ClosingEvent
        # Not ``asyncio.timeout``, which takes ten calls: the end of the limit is one more reason to stop.
        limit = team.time_limit or self._time_limit
        timer = asyncio.get_running_loop().call_later(limit, live.stop, "timed_out")
        try:
            if turn.resumed is None:
                live.emit(
                    Started(turn.id, turn.agent, team.steps),
                    at=context.began if context is not None else None,
                )
            else:
                recorder.close_open_calls("the worker ended before the tool did")
            if live.stop_reason is not None:
                raise asyncio.CancelledError
            outcome = await team.answer(turn, recorder)
            closing = Completed(turn.agent, outcome.finish_reason, recorder.usage)
        except asyncio.CancelledError:
            if turn.begin is not None and turn.begin.cancelled():
                # The turn could not begin.
                raise
            closing = self._closing_of_cancelled(live, team, turn, recorder)
        except ProxyError as error:
            closing = _failure(error, turn, recorder)
        except Exception:
            logger.exception("turn failed", extra={"turn_id": turn.id})
            closing = _failure(InternalTurnError(), turn, recorder)
        finally:
            timer.cancel()
            recorder.close_open_calls()
        live.seal()
        if turn.begin is not None:
            # Not shielded as in ``wait_for_begin``: what cancels a sealed turn has cancelled its begin.
            await turn.begin
        now = round(self._clock(), 3)
        position: int | None = None
        try:
            if live.stop_reason == "shutting_down" and _is_continued(turn, context, closing):
                # Nothing is stored, as if this process had been killed: another worker continues the turn.
                closing = failed_event(TurnTakenOver(), recorder.usage, ran_effects=False)
                position = TERMINAL_POSITION
                self.has_handed_over = True
            elif context is not None:
                closing = await self._store(context, live, turn, closing, outcome, recorder, now)
        except BaseException:
            # Cancelled while it was stored: it is not known whether it is.
            closing = _failure(InternalTurnError(), turn, recorder)
            raise
        finally:
            live.emit(closing, at=now, position=position)
            try:
                if traced is not None:
                    record_closing(traced, closing)
                # Before the log is retired: retiring may discard its entries.
                if self._observer is not None and position is None:
                    self._observer.turn_ended(turn.caller, team.name, live.log.entries)
            finally:
                # It refers to the turn: as a cycle, both would wait for the garbage collector.
                turn.steps = None
                self._lives.retire(live)

    def _closing_of_cancelled(
        self, live: LiveTurn, team: Team, turn: Turn, recorder: Recorder
    ) -> ClosingEvent:
        """Return the closing event of a turn whose task was cancelled."""
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        if live.stop_reason is None:
            # Not by this server, which sets a reason: something that the team called cancelled itself or the task.
            logger.exception("turn was cancelled by something it called", extra={"turn_id": turn.id})
            return _failure(InternalTurnError(), turn, recorder)
        if live.stop_reason == "timed_out":
            return _failure(TurnTimeout(team.time_limit or self._time_limit), turn, recorder)
        return Cancelled(live.stop_reason, turn.agent, recorder.usage)

    async def _store(
        self,
        context: StoredTurnContext,
        live: LiveTurn,
        turn: Turn,
        closing: ClosingEvent,
        outcome: TeamOutcome | None,
        recorder: Recorder,
        now: float,
    ) -> ClosingEvent:
        """Store the result. Return the closing event to log: a ``Failed`` if the result was not stored."""
        failure: ProxyError
        try:
            if live.watcher is not None and not live.clients:
                # A repetition of the request reads it together with the end.
                await live.watcher.store_departure()
            if await self._history.finish(end_of(context, live, turn, closing, outcome, recorder, now=now)):
                if context.request.is_stored:
                    live.load = partial(stored_log, self._history, turn.caller, turn.id)
                return closing
            logger.error("turn lease expired before completion", extra={"turn_id": turn.id})
            failure = TurnLeaseLost()
        except StoreUnavailable as error:
            failure = error
        except Exception:
            logger.exception("failed to store turn result", extra={"turn_id": turn.id})
            failure = InternalTurnError()
            # Release the conversation lock. Otherwise requests get 409 for as long as this worker renews the lease.
            try:
                await self._history.finish(failed_end_of(context, turn, failure, now=now))
            except StoreUnavailable:
                pass
            except Exception:
                logger.exception("failed to store the failure of a turn", extra={"turn_id": turn.id})
        return failed_event(failure, recorder.usage, ran_effects=turn.ran_effects)


def _failure(error: ProxyError, turn: Turn, recorder: Recorder) -> Failed:
    """Return the closing event of a turn that failed."""
    return failed_event(error, recorder.usage, ran_effects=turn.ran_effects, request_id=REQUEST_ID.get())


def _is_continued(turn: Turn, context: StoredTurnContext | None, closing: ClosingEvent) -> bool:
    """Whether another worker can continue a turn that a shutdown has stopped."""
    has_checkpoints = turn.steps is not None and turn.steps.is_saved
    return (
        isinstance(closing, Cancelled)
        and has_checkpoints
        and context is not None
        and context.fence < MAX_TAKEOVERS
    )


def _recorder(live: LiveTurn, context: StoredTurnContext | None, restored: RestoredLog | None) -> Recorder:
    """Return the recorder of a turn, with the log that another worker recorded."""
    continued = context.resolved.continued if context is not None else ""
    if restored is None:
        return Recorder(ContinuedText(live, continued) if continued else live)
    live.restore(restored.entries, restored.takeovers)
    has_text = any(isinstance(entry.event, TextDelta) for entry in restored.entries)
    recorder = Recorder(ContinuedText(live, continued) if continued and not has_text else live)
    recorder.restore(entry.event for entry in restored.entries)
    return recorder
