"""Open the turn of a request: find its team, resolve where it begins, and start it or attach to an earlier turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace

from proxy.approvals.repository import ApprovalsMoved
from proxy.conversations.resolver import ConversationResolver, Resolution, ResolvedTurn
from proxy.conversations.resolver_query import UnrelatedMessages
from proxy.conversations.unfinished_turns import RunningMatch
from proxy.errors import ConversationBusy, IdempotencyConflict, ShuttingDown
from proxy.service.conflicts import Conflicts
from proxy.service.conversation_queues import ClientLeft, ConversationHeld, ConversationQueues
from proxy.service.existing_turns import ExistingTurns
from proxy.service.resumption import ATTEMPTS
from proxy.service.service_state import ServiceState
from proxy.service.side_requests import has_side_request_text, side_turn
from proxy.service.turn_handle import TurnHandle
from proxy.service.turn_start import TurnStart, ignored_parameters
from proxy.turns.contract import ServedTeam
from proxy.turns.repository import IdempotencyKeyTaken
from proxy.turns.request import TurnRequest
from proxy.turns.turn import Turn


class PreviewedTurn(Struct, frozen=True):
    """A turn that was not begun, and its team."""

    team: ServedTeam
    turn: Turn


class TurnOpener:
    """Opens the turns of requests, and those that are resumed without one."""

    def __init__(
        self,
        state: ServiceState,
        resolver: ConversationResolver,
        *,
        existing: ExistingTurns,
        conflicts: Conflicts,
        queues: ConversationQueues,
        turn_start: TurnStart,
    ) -> None:
        self._state = state
        self._resolver = resolver
        self._existing = existing
        self._conflicts = conflicts
        self._queues = queues
        self._turn_start = turn_start

    async def open(self, request: TurnRequest, *, left: ClientLeft | None = None) -> TurnHandle:
        """Begin a turn, or attach to the turn that this request repeats; errors as in ``TurnService.open``."""
        if self._state.is_closing:
            raise ShuttingDown
        teams = self._state.teams
        # Nearly every team is one of the files, and found without a coroutine.
        team, is_side_model = teams.find_in_files(request.model) or await teams.find(
            request.caller, request.model
        )
        if request.is_side or is_side_model or has_side_request_text(request):
            self._turn_start.check_memory()
            return self._turn_start.start_side(request, team)
        if request.idempotency_key is not None or request.is_retry:
            repeated = await self._existing.repeated(request)
            if repeated is not None:
                return repeated
        self._turn_start.check_memory()
        policy = request.busy or team.busy
        if policy is None or policy == "reject":
            return await self._open(request, team, is_patient=True)
        return await self._open_or_queue(request, team, left, interrupts=policy == "interrupt")

    async def preview(self, request: TurnRequest) -> PreviewedTurn:
        """Return the turn that a request would begin; errors as in ``TurnService.preview``."""
        team, _ = await self._state.teams.find(request.caller, request.model)
        team, _, resolved = await self._resolve(request, team)
        if isinstance(resolved, UnrelatedMessages):
            return PreviewedTurn(team, side_turn("", request, team))
        if not isinstance(resolved, ResolvedTurn):
            # The turn that it follows is still running.
            raise ConversationBusy
        return PreviewedTurn(team, self._turn_start.preview(request, team, resolved))

    async def resume(self, request: TurnRequest, resolved: ResolvedTurn) -> None:
        """Begin a turn without a request, with the agent that was active, or the entry agent if it no longer exists."""
        team, _ = await self._state.teams.find(request.caller, request.model)
        if resolved.conversation_id is not None:
            team = await self._state.teams.as_begun(request.caller, resolved.conversation_id, team)
        agent = resolved.agent if resolved.agent in team.agents else team.entry
        await self._turn_start.start(request, team, replace(resolved, agent=agent), ())

    async def _open_or_queue(
        self, request: TurnRequest, team: ServedTeam, left: ClientLeft | None, *, interrupts: bool
    ) -> TurnHandle:
        """Begin the turn now, or when the running turn of its conversation has ended."""
        conversation_id = request.conversation_id
        if not self._queues.has_queue(request.caller, conversation_id):
            try:
                return await self._open(request, team, is_patient=False)
            except ConversationHeld as held:
                conversation_id = held.conversation_id
        assert conversation_id is not None
        if request.on_disconnect == "detach" and left is not None:
            left = _staying(left)
        return await self._open_queued(request, team, conversation_id, left, interrupts=interrupts)

    async def _open_queued(
        self,
        request: TurnRequest,
        team: ServedTeam,
        conversation_id: str,
        left: ClientLeft | None,
        *,
        interrupts: bool,
    ) -> TurnHandle:
        """Begin the turn when no other turn of the conversation is running."""
        async with self._queues.place(request.caller, conversation_id, left):
            for _ in range(ATTEMPTS):
                await self._queues.wait(request, conversation_id, left, interrupts=interrupts)
                if self._state.is_closing:
                    raise ShuttingDown
                try:
                    return await self._open(request, team, is_patient=False)
                except ConversationHeld:
                    # A request of another worker was earlier.
                    continue
        raise ConversationHeld(conversation_id)

    async def _open(self, request: TurnRequest, team: ServedTeam, *, is_patient: bool) -> TurnHandle:
        slot, skips_running = 0, False
        for _ in range(ATTEMPTS):
            resolved: Resolution | None = None
            try:
                team, ignored, resolved = await self._resolve(request, team, skips_running=skips_running)
                if isinstance(resolved, ResolvedTurn):
                    if resolved.is_running and not slot:
                        # Its end changes where the next turn begins, so that is looked for again.
                        raise ConversationBusy
                    opened = await self._turn_start.start(request, team, resolved, ignored, slot=slot)
                elif isinstance(resolved, UnrelatedMessages):
                    return self._turn_start.start_side(request, team)
                else:
                    opened = await self._conflicts.open_earlier(request, resolved)
                    skips_running = opened is None and isinstance(resolved, RunningMatch)
            except ApprovalsMoved:
                continue
            except IdempotencyKeyTaken:
                # Another request has begun this turn in the meantime.
                opened = await self._existing.repeated(request)
                if opened is None:
                    raise IdempotencyConflict from None
            except ConversationHeld:
                raise
            except ConversationBusy:
                place = resolved if isinstance(resolved, ResolvedTurn) else None
                taken = await self._conflicts.after_conflict(request, team, place, is_patient=is_patient)
                if isinstance(taken, TurnHandle):
                    return taken
                slot = taken
                continue
            if opened is not None:
                return opened
        raise ConversationBusy

    async def _resolve(
        self, request: TurnRequest, team: ServedTeam, *, skips_running: bool = False
    ) -> tuple[ServedTeam, Sequence[str], Resolution]:
        """Return the team as its conversation began with it, the ignored parameters, and where the turn begins."""
        present = team
        while True:
            if request.tools:
                team.check_client_tools(tuple(request.tools))
            ignored = ignored_parameters(request, team)
            resolved = await self._resolver.resolve(request, team, skips_running=skips_running)
            if (
                team is not present
                or not isinstance(resolved, ResolvedTurn)
                or resolved.conversation_id is None
            ):
                return team, ignored, resolved
            team = await self._state.teams.as_begun(request.caller, resolved.conversation_id, present)
            if team is present:
                return team, ignored, resolved
            # With another version of the team it can begin with another agent, and even in another conversation, whose
            # version is not looked for: versions could alternate.


def _staying(left: ClientLeft) -> ClientLeft:
    """Return a wait that does not end when the client leaves."""

    async def stay() -> None:
        # Any exception means that the client has left.
        with suppress(Exception):
            await left()
        await asyncio.Event().wait()

    return stay
