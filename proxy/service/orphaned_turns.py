"""Running turns whose worker has died: continue them here, or mark them as interrupted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from proxy.errors import StoreUnavailable, TurnInterrupted
from proxy.service.leases import is_dead
from proxy.service.service_state import ServiceState
from proxy.service.takeover import TakeOver
from proxy.service.turn_launcher import TurnLauncher
from proxy.turns.checkpoints import TakenOver
from proxy.turns.records import Begun, TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock

logger = logging.getLogger(__name__)


class OrphanedTurns:
    """Continues the turns of dead workers in this process; without ``take_over`` they are only interrupted."""

    def __init__(
        self,
        state: ServiceState,
        history: TurnRepository,
        clock: Clock,
        *,
        take_over: TakeOver | None,
        launcher: TurnLauncher,
    ) -> None:
        self._state = state
        self._history = history
        self._clock = clock
        self._take_over = take_over
        self._launcher = launcher
        self._unrestored: list[TakenOver] = []
        """Turns that belong to this worker and could not be continued yet."""

    async def continue_turns(self, dead_workers: Sequence[str]) -> None:
        """Continue turns of other workers that have died."""
        if self._take_over is None or self._state.is_closing:
            return
        turns = [*self._unrestored, *await self._take_over.lost_turns(dead_workers)]
        self._unrestored = []
        for taken in turns:
            try:
                await self._continue(self._take_over, taken)
            except StoreUnavailable:
                self._unrestored.append(taken)

    async def interrupt_if_lost(self, record: TurnRecord) -> bool:
        """Take over or interrupt a running turn whose worker has certainly ended; return whether it was one."""
        now = self._clock()
        if record.status != "running" or not (record.lease_until < now or is_dead(record.worker)):
            return False
        dead = [record.worker] if is_dead(record.worker) else []
        await self.continue_turns(dead)
        await self._history.interrupt(now=now, dead_workers=dead)
        return True

    async def _continue(self, take_over: TakeOver, taken: TakenOver) -> None:
        record = taken.record
        try:
            team, _ = await self._state.teams.find(record.caller, record.model)
            team = await self._state.teams.as_begun(record.caller, record.conversation_id, team)
            restored = await take_over.restore(taken, team)
            if restored.turn.agent not in team.agents:
                raise TurnInterrupted
        except StoreUnavailable:
            raise
        except Exception as error:
            # One turn must not stop the others.
            facts = {"turn_id": record.id, "cause": type(error).__name__}
            logger.exception("turn of another worker cannot be continued", extra=facts)
            await take_over.give_up(taken)
            return
        live = restored.live
        live.is_followed = True
        begun = Begun(record.turn, taken.conversation)
        self._launcher.launch(
            begun, live, team, restored.turn, restored.context, restored.rules, restored.log
        )
        logger.warning("continuing a turn of another worker", extra={"turn_id": record.id})
        live.on_client_disconnect()
