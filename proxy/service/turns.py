"""Open, attach to and cancel turns: what a request does, whatever its API.

``TurnService`` builds the parts and passes each call to the part that does it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager

from proxy.approvals.repository import Approval, Approvals
from proxy.background_tasks import BackgroundTasks
from proxy.conversations.resolver import ConversationResolver
from proxy.errors import ShuttingDown
from proxy.events import Entry
from proxy.service.conflicts import Conflicts
from proxy.service.conversation_queues import ClientLeft, ConversationQueues
from proxy.service.event_log import EventLog
from proxy.service.existing_turns import ExistingTurns
from proxy.service.policy import Policy
from proxy.service.remote_turns import Listener
from proxy.service.resumption import ApprovalResumption
from proxy.service.runner import TurnObserver
from proxy.service.service_state import ServiceState
from proxy.service.team_lookup import CustomTeams, TeamLookup, Teams
from proxy.service.turn_handle import TurnHandle
from proxy.service.turn_opener import PreviewedTurn, TurnOpener
from proxy.service.turn_start import TurnStart
from proxy.service.worker_turns import WorkerTurns
from proxy.tracing import Tracing
from proxy.turns.checkpoints import CheckpointRepository
from proxy.turns.records import Conversation, TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock, TurnRequest
from proxy.turns.worker_messages import WorkerMessages
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
        worker = self._worker = WorkerTurns(
            self._state,
            history,
            approvals,
            clock,
            policy,
            event_log=event_log,
            observer=observer,
            tracing=tracing,
            log_memory_limit=log_memory_limit,
            messages=messages,
            checkpoints=checkpoints,
            after_sweep=self._resume_lost,
        )
        self._existing = ExistingTurns(
            self._state,
            history,
            clock,
            worker.lives,
            remote=worker.remote,
            disconnected=worker.disconnected,
            orphaned=worker.orphaned,
            retry_window=policy.turn_time_limit,
        )
        self._conflicts = Conflicts(
            history, existing=self._existing, disconnected=worker.disconnected, orphaned=worker.orphaned
        )
        self._queues = ConversationQueues(
            history,
            worker.lives,
            self._existing.cancel,
            worker.disconnected.end,
            poll=policy.follow,
            time_limit=policy.turn_time_limit,
        )
        self._turn_start = TurnStart(
            history,
            approvals,
            clock,
            worker.lives,
            policy=policy,
            worker=worker.leases.worker,
            checkpoints=checkpoints,
            runner=worker.runner,
            launcher=worker.launcher,
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
        await self._worker.wait_for_running()

    @property
    def running(self) -> int:
        """Number of turns that run in this process."""
        return len(self._worker.lives)

    @property
    def unattended(self) -> int:
        """Number of turns of this process that wait for a client or finish without one."""
        return len(self._worker.disconnected)

    @property
    def queued(self) -> int:
        """Number of requests of this process that wait for a turn of their conversation."""
        return len(self._queues)

    @property
    def log_bytes(self) -> int:
        """Estimated memory of the logs in this process, in bytes."""
        return self._worker.lives.memory.used

    def running_turns(self) -> list[str]:
        """Return the ids of the turns that run in this process."""
        return [live.turn_id for live in self._worker.lives.running()]

    @property
    def is_closing(self) -> bool:
        """Whether ``close`` was called."""
        return self._state.is_closing

    async def start(self, background: BackgroundTasks) -> None:
        """Mark turns of dead workers as interrupted, and start to renew leases."""
        await self._worker.start(background)

    async def close(self, *, grace: float) -> None:
        """Reject new turns, wait up to ``grace`` seconds for the running ones, then cancel them and wait."""
        self._state.is_closing = True
        await self._worker.close(grace=grace)

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
        return self._worker.remote.listener(conversation.key)

    def log_of(self, record: TurnRecord) -> Sequence[Entry]:
        """Return the events of a turn: so far if it runs here, else the stored ones; empty if none were stored."""
        return self._existing.log_of(record)

    async def cancel(self, caller: str, turn_id: str, *, end_user: str = "") -> TurnRecord:
        """Cancel a turn in whichever worker it runs; its text so far is stored. Return the turn afterwards.

        Raises:
            CompletionNotFound: The caller has no such turn, or it belongs to another end user.
        """
        return await self._existing.cancel(caller, turn_id, end_user=end_user)

    async def _resume_lost(self) -> None:
        if not self._state.is_closing:
            await self._resumption.resume_lost()
