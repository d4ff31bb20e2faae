"""Open, attach to and cancel turns: what a request does, whatever its API.

``TurnService`` builds the parts and passes each call to the part that does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager

from proxy.approvals.repository import Approval, Approvals
from proxy.background_tasks import BackgroundTasks
from proxy.conversations.resolver import ConversationResolver
from proxy.errors import ShuttingDown
from proxy.events import Entry
from proxy.service.conflicts import Conflicts
from proxy.service.conversation_queues import ClientLeft, ConversationQueues
from proxy.service.disconnected_turns import DisconnectedTurns
from proxy.service.event_log import EventLog
from proxy.service.existing_turns import ExistingTurns
from proxy.service.leases import Leases
from proxy.service.message_dispatch import dispatch
from proxy.service.orphaned_turns import OrphanedTurns
from proxy.service.policy import Policy
from proxy.service.progress import ProgressStore
from proxy.service.remote_turns import Listener, RemoteTurns
from proxy.service.resumption import ApprovalResumption
from proxy.service.runner import TurnObserver, TurnRunner
from proxy.service.service_state import ServiceState
from proxy.service.takeover import TakeOver
from proxy.service.team_lookup import CustomTeams, TeamLookup, Teams
from proxy.service.turn_handle import TurnHandle
from proxy.service.turn_launcher import TurnLauncher
from proxy.service.turn_opener import PreviewedTurn, TurnOpener
from proxy.service.turn_relay import TurnRelay
from proxy.service.turn_start import TurnStart
from proxy.tracing import Tracing
from proxy.turns.checkpoints import CheckpointRepository
from proxy.turns.live_turns import LiveTurns
from proxy.turns.log_memory import LogMemory
from proxy.turns.records import Conversation, TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock, TurnRequest
from proxy.turns.worker_messages import LocalMessages, NoWorkerMessages, WorkerMessages
from proxy.wire.approvals import ApprovalDecision

__all__ = ["Policy", "PreviewedTurn", "TurnHandle", "TurnService"]


class TurnService:
    """Turns of this process and access to those of other workers; one instance per process."""

    def __init__(
        self,
        teams: Teams | TeamLookup,
        history: TurnRepository,
        *,
        approvals: Approvals,
        policy: Policy,
        clock: Clock,
        event_log: EventLog | None = None,
        custom_teams: CustomTeams | None = None,
        observer: TurnObserver | None = None,
        tracing: Tracing | None = None,
        log_memory_limit: int | None = None,
        messages: WorkerMessages | None = None,
        checkpoints: CheckpointRepository | None = None,
    ) -> None:
        """Without ``messages``, turns of other workers are followed only through the store.

        Without ``checkpoints``, the turns of a worker end with it.
        """
        lookup = teams if isinstance(teams, TeamLookup) else TeamLookup(teams, custom_teams)
        self._state = ServiceState(lookup)
        self._lives = LiveTurns(memory=LogMemory(log_memory_limit))
        self._runner = TurnRunner(
            history,
            self._lives,
            clock,
            time_limit=policy.turn_time_limit,
            event_log=event_log or EventLog(),
            observer=observer,
            tracing=tracing,
        )
        self._leases = Leases(
            history,
            self._lives,
            clock,
            lease=policy.lease,
            heartbeat=policy.heartbeat,
            after_sweep=self._resume_lost,
            take_over=self._continue_lost,
        )
        worker = self._leases.worker
        self._messages = LocalMessages(messages or NoWorkerMessages(), worker, self._receive)
        self._relay = TurnRelay(self._lives, self._messages)
        self._remote = RemoteTurns(
            history,
            clock,
            worker=worker,
            messages=self._messages,
            memory=self._lives.memory,
            follow=policy.follow,
            listen=policy.listen,
        )
        self._progress = ProgressStore(history)
        self._disconnected = DisconnectedTurns(history, self._lives, clock, interval=policy.follow)
        take_over: TakeOver | None = None
        if checkpoints is not None:
            take_over = TakeOver(
                history, checkpoints, approvals, clock, worker, self._leases.until, self._lives.memory
            )
        launcher = TurnLauncher(
            history, self._runner, self._progress, self._disconnected, self._relay, self._remote
        )
        self._orphaned = OrphanedTurns(self._state, history, clock, take_over=take_over, launcher=launcher)
        self._existing = ExistingTurns(
            self._state,
            history,
            clock,
            self._lives,
            remote=self._remote,
            disconnected=self._disconnected,
            orphaned=self._orphaned,
            retry_window=policy.turn_time_limit,
        )
        self._conflicts = Conflicts(
            history, existing=self._existing, disconnected=self._disconnected, orphaned=self._orphaned
        )
        self._queues = ConversationQueues(
            history,
            self._lives,
            self._existing.cancel,
            self._disconnected.end,
            poll=policy.follow,
            time_limit=policy.turn_time_limit,
        )
        self._turn_start = TurnStart(
            history,
            approvals,
            clock,
            self._lives,
            policy=policy,
            leases=self._leases,
            checkpoints=checkpoints,
            runner=self._runner,
            launcher=launcher,
        )
        self._opener = TurnOpener(
            self._state,
            ConversationResolver(history, approvals, clock),
            existing=self._existing,
            conflicts=self._conflicts,
            queues=self._queues,
            turn_start=self._turn_start,
        )
        self._resumption = ApprovalResumption(
            history, approvals, clock, self._opener.resume, self._conflicts.end_unattended
        )

    def use_teams(self, teams: TeamLookup) -> None:
        """Use other teams for the turns that begin from now on."""
        self._state.teams = teams

    async def wait_for_running(self) -> None:
        """Wait until the turns that run now have ended."""
        tasks = [live.task for live in self._lives.running() if live.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    @property
    def running(self) -> int:
        """Number of turns that run in this process."""
        return len(self._lives)

    @property
    def unattended(self) -> int:
        """Number of turns of this process that wait for a client or finish without one."""
        return len(self._disconnected)

    @property
    def queued(self) -> int:
        """Number of requests of this process that wait for a turn of their conversation."""
        return len(self._queues)

    @property
    def log_bytes(self) -> int:
        """Estimated memory of the logs in this process, in bytes."""
        return self._lives.memory.used

    def running_turns(self) -> list[str]:
        """Return the ids of the turns that run in this process."""
        return [live.turn_id for live in self._lives.running()]

    @property
    def is_closing(self) -> bool:
        """Whether ``close`` was called."""
        return self._state.is_closing

    async def start(self, background: BackgroundTasks) -> None:
        """Mark turns of dead workers as interrupted, and start to renew leases."""
        await self._leases.start(background)
        await self._messages.start(self._leases.worker, self._receive, is_expecting=self._is_expecting)

    async def close(self, *, grace: float) -> None:
        """Reject new turns, wait up to ``grace`` seconds for the running ones, then cancel them and wait."""
        self._state.is_closing = True
        self._remote.wake_listeners()
        await self._disconnected.close()
        await self._runner.stop(grace=grace)
        await self._progress.close()
        await self._relay.close()
        await self._remote.close()
        await self._leases.close()

    def open(
        self, request: TurnRequest, *, left: ClientLeft | None = None
    ) -> Coroutine[object, object, TurnHandle]:
        """Begin a turn, or attach to the turn that this request repeats.

        ``left`` ends the wait of a request that queues for its conversation.

        Raises:
            ModelNotFound: The caller has no team with this model id.
            RejectedRequest: The request does not fit the team or the conversation.
            ConversationBusy: Another turn of the conversation is running.
            IdempotencyConflict: The idempotency key was used with another body.
            StoreUnavailable: The database did not answer.
            LogMemoryExhausted: The logs of this process have reached their memory limit.
            ShuttingDown: ``close`` was called.
        """
        return self._opener.open(request, left=left)

    async def end_unattended(self, caller: str, conversation_id: str) -> bool:
        """End the running turn of a conversation if its client has left and it only waits for one."""
        return await self._conflicts.end_unattended(caller, conversation_id)

    async def preview(self, request: TurnRequest) -> PreviewedTurn:
        """Return the turn that a request would begin; nothing is begun or stored.

        Raises:
            ModelNotFound: The caller has no team with this model id.
            RejectedRequest: The request does not fit the team or the conversation.
            ConversationBusy: It follows a turn that is running.
        """
        return await self._opener.preview(request)

    async def decide(self, caller: str, decision: ApprovalDecision, *, end_user: str = "") -> Approval:
        """Decide a pending approval as ``ApprovalResumption.decide`` does, within the limits of this process.

        Raises:
            LogMemoryExhausted: The logs of this process have reached their memory limit.
            ShuttingDown: ``close`` was called.
        """
        if self._state.is_closing:
            raise ShuttingDown
        self._turn_start.check_memory()
        return await self._resumption.decide(caller, decision, end_user=end_user)

    async def approval(self, caller: str, approval_id: str, *, end_user: str = "") -> Approval:
        """Return an approval.

        Raises:
            ApprovalNotFound: The caller has no such approval, or it belongs to another end user.
        """
        return await self._resumption.find(caller, approval_id, end_user=end_user)

    async def attach(
        self, caller: str, turn_id: str, *, end_user: str = "", is_observer: bool = False
    ) -> TurnHandle:
        """Return a turn of the caller: running in this worker or another one, or ended.

        An observer (event feed) of a turn in another worker gets ``Started`` immediately. It gets the stored status
        if the events were not stored, and no ``Cancelled`` when this worker shuts down (see ``LiveTurn.is_over``).

        Raises:
            CompletionNotFound: The caller has no such turn, or it belongs to another end user.
        """
        record = await self._existing.find(caller, turn_id, end_user)
        return self._existing.attach(record, is_observer=is_observer)

    def listener(self, conversation: Conversation) -> AbstractContextManager[Listener]:
        """Return a listener for new turns of a conversation, in all workers."""
        return self._remote.listener(conversation.key)

    def log_of(self, record: TurnRecord) -> Sequence[Entry]:
        """Return the events of a turn: so far if it runs here, else the stored ones; empty if none were stored."""
        return self._existing.log_of(record)

    async def cancel(self, caller: str, turn_id: str, *, end_user: str = "") -> TurnRecord:
        """Cancel a turn in whichever worker it runs; its text so far is stored. Return the turn afterwards.

        Raises:
            CompletionNotFound: The caller has no such turn, or it belongs to another end user.
        """
        return await self._existing.cancel(caller, turn_id, end_user=end_user)

    async def _continue_lost(self, dead_workers: Sequence[str]) -> None:
        await self._orphaned.continue_turns(dead_workers)

    async def _resume_lost(self) -> None:
        if not self._state.is_closing:
            await self._resumption.resume_lost()

    def _is_expecting(self) -> bool:
        return bool(self._lives) or self._remote.is_active

    def _receive(self, message: bytes) -> None:
        dispatch(message, self._lives, self._relay, self._remote)
