"""Access to turns that exist: find one, attach to it, read its log, cancel it; in whichever worker it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from proxy.errors import CompletionNotFound, IdempotencyConflict
from proxy.events import Entry, decode_journal
from proxy.service.disconnected_turns import DisconnectedTurns
from proxy.service.orphaned_turns import OrphanedTurns
from proxy.service.recording import replay, stored_log
from proxy.service.remote_turns import RemoteTurns
from proxy.service.service_state import ServiceState
from proxy.service.turn_handle import TurnHandle
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from proxy.turns.records import TurnRecord
from proxy.turns.repository import TurnRepository, accessible_turn
from proxy.turns.request import Clock, TurnRequest

CANCEL_PAUSES = (0.02, 0.03, *(0.05,) * 9)
"""Seconds between the checks whether another worker has cancelled a turn: half a second, in steps that the client does
not notice after the turn has ended."""


class ExistingTurns:
    """Attaches to turns of all workers. ``retry_window`` is the time in seconds for which a retry is recognised."""

    def __init__(
        self,
        state: ServiceState,
        history: TurnRepository,
        clock: Clock,
        lives: LiveTurns,
        *,
        remote: RemoteTurns,
        disconnected: DisconnectedTurns,
        orphaned: OrphanedTurns,
        retry_window: float,
    ) -> None:
        self._state = state
        self._history = history
        self._clock = clock
        self._lives = lives
        self._remote = remote
        self._disconnected = disconnected
        self._orphaned = orphaned
        self._retry_window = retry_window

    async def find(self, caller: str, turn_id: str, end_user: str) -> TurnRecord:
        """Return a turn of the caller.

        Raises:
            CompletionNotFound: The caller has no such turn, or it belongs to another end user.
        """
        record = await accessible_turn(self._history, caller, turn_id, end_user)
        if record is None or not record.was_run:
            raise CompletionNotFound(turn_id)
        return record

    def attach(self, record: TurnRecord, *, is_observer: bool = False) -> TurnHandle:
        """Return a turn to read: running in this worker or another one, or ended."""
        live = self._lives.get(record.id)
        if live is not None:
            live.is_followed = True
        else:
            if record.status == "running":
                steps = self._state.teams.steps_of(record.model)
                live = self._remote.follow(record, steps=steps, is_observer=is_observer)
                if not is_observer:
                    self._disconnected.watch_remote(record, live, self._remote)
            else:
                live = LiveTurn(record.id, conversation_id=record.conversation_id, memory=self._lives.memory)
                replay(record, live, is_observer=is_observer)
                if record.journal:
                    live.load = partial(stored_log, self._history, record.caller, record.id)
        return TurnHandle(
            live=live,
            turn_id=record.id,
            created_at=record.created_at,
            conversation_id=record.conversation_id,
            match="same-turn",
            agent=record.agent,
            stored_options=record.options,
        )

    async def repeated(self, request: TurnRequest) -> TurnHandle | None:
        """Attach to the turn that this request repeats, by its idempotency key or as a retry; None if there is none.

        Raises:
            IdempotencyConflict: The idempotency key was used with another body.
        """
        record = await self._find_repeated(request)
        if record is not None and await self._orphaned.interrupt_if_lost(record):
            record = await self._find_repeated(request)
        return self.attach(record) if record is not None else None

    async def _find_repeated(self, request: TurnRequest) -> TurnRecord | None:
        record: TurnRecord | None = None
        if request.idempotency_key is not None:
            record = await self._history.turn_by_idempotency_key(request.caller, request.idempotency_key)
            if record is not None and record.body_digest != request.body_digest:
                raise IdempotencyConflict
        elif request.is_retry and request.body_digest is not None:
            since = self._clock() - self._retry_window
            record = await self._history.turn_by_body(request.caller, request.body_digest, since=since)
        return record

    def log_of(self, record: TurnRecord) -> Sequence[Entry]:
        """Return the events of a turn: so far if it runs here, else the stored ones; empty if none were stored."""
        live = self._lives.get(record.id)
        if live is not None:
            return live.entries
        return decode_journal(record.journal).entries() if record.journal else ()

    async def cancel(self, caller: str, turn_id: str, *, end_user: str = "") -> TurnRecord:
        """Cancel a turn in whichever worker it runs; its text so far is stored. Return the turn afterwards.

        Raises:
            CompletionNotFound: The caller has no such turn, or it belongs to another end user.
        """
        record = await self.find(caller, turn_id, end_user)
        live = self._lives.get(turn_id)
        if live is not None and live.task is not None:
            live.stop("requested")
            await asyncio.wait([live.task])
        elif record.status == "running":
            # The message does not wait for a commit. The store has the request too, in case that the message is lost.
            self._remote.cancel(record)
            if await self._history.request_cancel(caller, turn_id):
                return await self._stopped(record)
        return await self._history.turn(caller, turn_id) or record

    async def _stopped(self, record: TurnRecord) -> TurnRecord:
        """Return a turn that another worker is about to cancel, when it has; as it is if that takes too long."""
        for pause in CANCEL_PAUSES:
            await asyncio.sleep(pause)
            record = await self._history.turn(record.caller, record.id) or record
            if record.status != "running":
                break
        return record
