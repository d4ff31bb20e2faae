"""What a request does about the running turn of its conversation: attach to it, end it, run in parallel, or fail."""

from __future__ import annotations

import asyncio

from proxy.conversations.resolver import ResolvedTurn
from proxy.conversations.steps import split_step
from proxy.conversations.unfinished_turns import Repetition, RunningMatch
from proxy.errors import ConversationBusy
from proxy.service.conversation_queues import (
    ConversationHeld,
    has_same_input,
    is_repetition,
    parallel_slot,
)
from proxy.service.disconnected_turns import DisconnectedTurns
from proxy.service.existing_turns import ExistingTurns
from proxy.service.orphaned_turns import OrphanedTurns
from proxy.service.turn_handle import TurnHandle
from proxy.turns.contract import ServedTeam
from proxy.turns.records import TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import TurnRequest

LEAVING_ATTEMPTS, LEAVING_INTERVAL = 20, 0.05
"""Times to look whether the client of a turn has left, and seconds between them."""
LEAVING_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""The same before a request is rejected, in seconds: a client that stops an answer sends its next message at once, and
a proxy in front of the server, or another worker, can pass on the disconnect later than the message."""


class Conflicts:
    """Resolves conflicts of requests with turns that run."""

    def __init__(
        self,
        history: TurnRepository,
        *,
        existing: ExistingTurns,
        disconnected: DisconnectedTurns,
        orphaned: OrphanedTurns,
    ) -> None:
        self._history = history
        self._existing = existing
        self._disconnected = disconnected
        self._orphaned = orphaned

    async def open_earlier(self, request: TurnRequest, found: RunningMatch | Repetition) -> TurnHandle | None:
        """Attach to the turn that the request repeats; end a running one that it follows.

        None if the request has to be resolved again: the turn has ended, or its client has not left.

        Raises:
            ConversationHeld: The client of the turn has left, and the turn finishes without one.
        """
        for _ in range(LEAVING_ATTEMPTS):
            record = await self._history.turn(request.caller, found.turn_id)
            if record is None:
                return None
            if record.status != "running":
                return self._replayed(record) if isinstance(found, Repetition) else None
            if await self._orphaned.interrupt_if_lost(record):
                continue
            replaced = await self._replace_left(request, record)
            if replaced:
                return replaced if isinstance(replaced, TurnHandle) else None
            if request.conversation_id is None and self._disconnected.finishes_without_client(record):
                # A new conversation would not know what this turn does.
                raise ConversationHeld(record.conversation_id)
            # A client can send its next message before the server has noticed that it left.
            await asyncio.sleep(LEAVING_INTERVAL)
        return None

    def _replayed(self, record: TurnRecord) -> TurnHandle:
        """Attach to a completed turn. Its answer is read now, so the next equal request is another one."""
        handle = self._existing.attach(record)
        self._disconnected.watch_replay(record, handle.live)
        return handle

    async def after_conflict(
        self, request: TurnRequest, team: ServedTeam, resolved: ResolvedTurn | None, *, is_patient: bool
    ) -> TurnHandle | int:
        """Attach to the running turn if this request repeats it; else end it if its client has left.

        Returns the slot for the next attempt otherwise. With ``is_patient``, and if a turn next to the running one
        would repeat effects, a disconnect of the client that is noticed a moment later counts too.

        Raises:
            ConversationBusy: The turn has a client, or finishes without one.
        """
        conversation_id = resolved.conversation_id if resolved is not None else None
        if conversation_id is None and request.parent is not None:
            parent = await self._history.turn(request.caller, split_step(request.parent)[0])
            conversation_id = parent.conversation_id if parent is not None else None
        if conversation_id is None:
            raise ConversationBusy
        for pause in (*LEAVING_PAUSES, None):
            record = await self._history.running_turn(request.caller, conversation_id)
            if record is None or await self._orphaned.interrupt_if_lost(record):
                return 0
            replaced = await self._replace_left(request, record)
            if replaced:
                return replaced if isinstance(replaced, TurnHandle) else 0
            slot = parallel_slot(request, team, resolved, record) if resolved is not None else 0
            is_own = resolved is not None and record.team == team.name and has_same_input(resolved, record)
            if is_own and team.has_effects and self._disconnected.finishes_without_client(record):
                # The client that has left sent this request, which does not show what the turn does.
                slot = 0
            # That the client has left can be noticed a moment later.
            waits = is_own and self._disconnected.ran_effects(record) if slot else is_patient
            if pause is None or not waits:
                if slot:
                    return slot
                break
            await asyncio.sleep(pause)
        raise ConversationHeld(conversation_id)

    async def end_unattended(self, caller: str, conversation_id: str) -> bool:
        """End the running turn of a conversation if its client has left and it only waits for one.

        A disconnect that is noticed a moment later counts too. False also if no turn is running.
        """
        for pause in (*LEAVING_PAUSES, None):
            record = await self._history.running_turn(caller, conversation_id)
            if record is None:
                return False
            if await self._disconnected.end(record):
                return True
            if pause is not None:
                await asyncio.sleep(pause)
        return False

    async def _replace_left(self, request: TurnRequest, record: TurnRecord) -> TurnHandle | bool:
        """Attach to a running turn if this request repeats it; else end it if its client has left.

        Without a key or the mark of a retry, only a turn whose client has left is repeated. False if the turn is
        another one that has a client, or finishes without one.
        """
        if is_repetition(request, record):
            # Both arrived before either had begun.
            return self._existing.attach(record)
        is_detached = self._disconnected.finishes_without_client(record)
        has_left = is_detached or self._disconnected.is_unattended(record)
        # A turn that continues without a client can still start a tool with effects.
        if (
            has_left
            and self._is_same(request, record)
            and (is_detached or self._disconnected.ran_effects(record))
        ):
            return self._existing.attach(record)
        return await self._disconnected.end(record)

    @staticmethod
    def _is_same(request: TurnRequest, record: TurnRecord) -> bool:
        return request.body_digest is not None and record.body_digest == request.body_digest
