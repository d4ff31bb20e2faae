"""The turns that this worker runs, and what it exchanges about turns with other workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proxy.approvals.repository import Approvals
from proxy.background_tasks import BackgroundTasks
from proxy.service.disconnected_turns import DisconnectedTurns
from proxy.service.event_log import EventLog
from proxy.service.leases import Leases
from proxy.service.message_dispatch import dispatch
from proxy.service.orphaned_turns import OrphanedTurns
from proxy.service.policy import Policy
from proxy.service.progress import ProgressStore
from proxy.service.remote_turns import RemoteTurns
from proxy.service.runner import TurnObserver, TurnRunner
from proxy.service.service_state import ServiceState
from proxy.service.takeover import TakeOver
from proxy.service.turn_launcher import TurnLauncher
from proxy.service.turn_relay import TurnRelay
from proxy.tracing import Tracing
from proxy.turns.checkpoints import CheckpointRepository
from proxy.turns.live_turns import LiveTurns
from proxy.turns.log_memory import LogMemory
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock
from proxy.turns.worker_messages import LocalMessages, NoWorkerMessages, WorkerMessages


class WorkerTurns:
    """Runs turns and renews their leases, continues those of dead workers, and follows those of other workers.

    It does not know requests: ``TurnService`` begins their turns with ``launcher`` and ``runner``.
    """

    def __init__(
        self,
        state: ServiceState,
        history: TurnRepository,
        approvals: Approvals,
        clock: Clock,
        policy: Policy,
        *,
        event_log: EventLog | None,
        observer: TurnObserver | None,
        tracing: Tracing | None,
        log_memory_limit: int | None,
        messages: WorkerMessages | None,
        checkpoints: CheckpointRepository | None,
        after_sweep: Callable[[], Awaitable[None]],
    ) -> None:
        """``after_sweep`` as in ``Leases``, the rest as in ``TurnService``."""
        self.lives = LiveTurns(memory=LogMemory(log_memory_limit))
        self.runner = TurnRunner(
            history,
            self.lives,
            clock,
            time_limit=policy.turn_time_limit,
            event_log=event_log or EventLog(),
            observer=observer,
            tracing=tracing,
        )
        self.leases = Leases(
            history,
            self.lives,
            clock,
            lease=policy.lease,
            heartbeat=policy.heartbeat,
            after_sweep=after_sweep,
            take_over=lambda dead_workers: self.orphaned.continue_turns(dead_workers),
        )
        worker = self.leases.worker
        self._messages = LocalMessages(messages or NoWorkerMessages(), worker, self._receive)
        self._relay = TurnRelay(self.lives, self._messages)
        self.remote = RemoteTurns(
            history,
            clock,
            worker=worker,
            messages=self._messages,
            memory=self.lives.memory,
            follow=policy.follow,
            listen=policy.listen,
        )
        self._progress = ProgressStore(history)
        self.disconnected = DisconnectedTurns(history, self.lives, clock, interval=policy.follow)
        self.launcher = TurnLauncher(self.runner, self._progress, self.disconnected, self._relay, self.remote)
        take_over: TakeOver | None = None
        if checkpoints is not None:
            take_over = TakeOver(
                history, checkpoints, approvals, clock, worker, policy.lease, self.lives.memory
            )
        self.orphaned = OrphanedTurns(state, history, clock, take_over=take_over, launcher=self.launcher)

    async def start(self, background: BackgroundTasks) -> None:
        """Mark turns of dead workers as interrupted, and start to renew leases."""
        await self.leases.start(background)
        await self._messages.start(self.leases.worker, self._receive, is_expecting=self._is_expecting)

    async def wait_for_running(self) -> None:
        """Wait until the turns that run now have ended."""
        tasks = [live.task for live in self.lives.running() if live.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self, *, grace: float) -> None:
        """Wait up to ``grace`` seconds for the running turns, then cancel them and wait. None begins any more."""
        self.remote.wake_listeners()
        await self.disconnected.close()
        await self.runner.stop(grace=grace)
        await self._progress.close()
        await self._relay.close()
        await self.remote.close()
        await self.leases.close(has_handed_over=self.runner.has_handed_over)

    def _is_expecting(self) -> bool:
        return bool(self.lives) or self.remote.is_active

    def _receive(self, message: bytes) -> None:
        dispatch(message, self.lives, self._relay, self.remote)
