"""Open, attach to and cancel turns: what a request does, whatever its API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from proxy.approvals.repository import Approval, Approvals, ApprovalsMoved
from proxy.background_tasks import BackgroundTasks
from proxy.conversations.resolver import ConversationResolver, Resolution, ResolvedTurn
from proxy.conversations.resolver_query import UnrelatedMessages
from proxy.conversations.steps import split_step
from proxy.conversations.unfinished_turns import Repetition, RunningMatch
from proxy.errors import (
    CompletionNotFound,
    ConversationBusy,
    IdempotencyConflict,
    LogMemoryExhausted,
    ShuttingDown,
    StoreUnavailable,
    TurnInterrupted,
)
from proxy.events import Entry, decode_journal
from proxy.request_errors import ParameterNotSupported
from proxy.service.busy import BusyConversations, ClientLeft, ConversationHeld, parallel_slot
from proxy.service.checkpoints import CheckpointLog, can_be_continued, saved_turn
from proxy.service.event_log import EventLog
from proxy.service.forwarding import TurnForwarding
from proxy.service.leases import Leases, is_dead
from proxy.service.left_turns import DisconnectRules, LeftTurns
from proxy.service.new_turns import new_turn, new_turn_id, turn_of
from proxy.service.progress import ProgressStore
from proxy.service.recording import StoredTurnContext, replay, step_turn, stored_log
from proxy.service.remote_turns import Listener, RemoteTurns
from proxy.service.resumption import ATTEMPTS, ApprovalResumption
from proxy.service.runner import TurnObserver, TurnRunner
from proxy.service.side_requests import has_side_request_text, side_turn
from proxy.service.takeover import TakeOver
from proxy.service.team_lookup import CustomTeams, TeamLookup, Teams
from proxy.service.turn_messages import (
    CancelTurn,
    FollowTurn,
    ListenToConversations,
    TurnBegan,
    TurnEvents,
    UnfollowTurn,
    decode,
)
from proxy.tracing import Tracing
from proxy.turns.checkpoints import CheckpointRepository, TakenOver
from proxy.turns.contract import AnsweringTeam, ServedTeam, Turn
from proxy.turns.live import LiveTurn, LiveTurns, LogMemory
from proxy.turns.repository import (
    Begun,
    Conversation,
    IdempotencyKeyTaken,
    NewTurn,
    TurnRecord,
    TurnRepository,
    accessible_turn,
)
from proxy.turns.request import Clock, DisconnectPolicy, Match, TurnRequest
from proxy.turns.worker_messages import LocalMessages, NoWorkerMessages, WorkerMessages
from proxy.wire.approvals import ApprovalDecision

logger = logging.getLogger(__name__)

CANCEL_PAUSES = (0.02, 0.03, 0.05, 0.1, 0.3)
"""Seconds between the checks whether another worker has cancelled a turn."""


@dataclass(frozen=True, slots=True)
class PreviewedTurn:
    """A turn that was not begun, and its team."""

    team: ServedTeam
    turn: Turn


LEAVING_ATTEMPTS, LEAVING_INTERVAL = 20, 0.05
"""Times to look whether the client of a turn has left, and seconds between them."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and intervals of turns, in seconds."""

    turn_time_limit: float = 600.0
    on_disconnect: DisconnectPolicy = "cancel"
    disconnect_grace: float = 30.0
    """Time for which a turn waits for a client that has disconnected."""
    lease: float = 15.0
    """Time until the lock of a dead worker's turn expires."""
    heartbeat: float = 2.0
    """Interval at which leases are renewed and cancellation requests from other workers are read."""
    follow: float = 0.25
    """Polling interval for turns of other workers that have a reader here."""
    listen: float = 1.0
    """Polling interval for conversations that have a listener here."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A turn to read."""

    live: LiveTurn
    turn_id: str
    created_at: float
    conversation_id: str
    match: Match
    agent: str
    stored_options: bytes | None = None
    """Options of the earlier request that began the turn, as JSON; None if this request began it."""
    ignored: Sequence[str] = ()
    """Parameters of the request that have no effect on this team."""

    @property
    def is_replayed(self) -> bool:
        """Whether an earlier request began the turn."""
        return self.stored_options is not None


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
        self._teams = teams if isinstance(teams, TeamLookup) else TeamLookup(teams, custom_teams)
        self._history = history
        self._approvals = approvals
        self._policy = policy
        self._clock = clock
        self._resolver = ConversationResolver(history, approvals, clock)
        self._resumption = ApprovalResumption(history, approvals, clock, self._resume)
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
            take_over=self._take_over_lost,
        )
        self._checkpoints = checkpoints
        self._take_over: TakeOver | None = None
        if checkpoints is not None:
            self._take_over = TakeOver(
                history, checkpoints, clock, self._leases.worker, self._leases.until, self._lives.memory
            )
        self._unrestored: list[TakenOver] = []
        """Turns that belong to this worker and could not be continued yet."""
        self._messages = LocalMessages(messages or NoWorkerMessages(), self._leases.worker, self._receive)
        self._forwarding = TurnForwarding(self._lives, self._messages)
        self._remote = RemoteTurns(
            history,
            clock,
            worker=self._leases.worker,
            messages=self._messages,
            memory=self._lives.memory,
            follow=policy.follow,
            listen=policy.listen,
        )
        self._progress = ProgressStore(history)
        self._left = LeftTurns(history, self._lives, clock, interval=policy.follow)
        self._busy = BusyConversations(
            history,
            self._lives,
            self.cancel,
            self._left.end,
            poll=policy.follow,
            time_limit=policy.turn_time_limit,
        )
        self._is_closing = False

    def use_teams(self, teams: TeamLookup) -> None:
        """Use other teams for the turns that begin from now on."""
        self._teams = teams

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
        return len(self._left)

    @property
    def queued(self) -> int:
        """Number of requests of this process that wait for a turn of their conversation."""
        return len(self._busy)

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
        return self._is_closing

    async def start(self, background: BackgroundTasks) -> None:
        """Mark turns of dead workers as interrupted, and start to renew leases."""
        await self._leases.start(background)
        await self._messages.start(self._leases.worker, self._receive, is_expecting=self._is_expecting)

    async def close(self, *, grace: float) -> None:
        """Reject new turns, wait up to ``grace`` seconds for the running ones, then cancel them and wait."""
        self._is_closing = True
        self._remote.wake_listeners()
        await self._left.close()
        await self._runner.stop(grace=grace)
        await self._progress.close()
        await self._forwarding.close()
        await self._remote.close()
        await self._leases.close()

    # --- open ---

    async def open(self, request: TurnRequest, *, left: ClientLeft | None = None) -> Opened:
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
        if self._is_closing:
            raise ShuttingDown
        team, is_side_model = await self._teams.find(request.caller, request.model)
        if request.is_side or is_side_model or has_side_request_text(request):
            self._check_memory()
            return self._open_side(request, team)
        repeated = await self._repeated(request)
        if repeated is not None:
            return repeated
        self._check_memory()
        policy = request.busy or team.busy or "reject"
        conversation_id = request.conversation_id
        if policy == "reject" or not self._busy.has_queue(request.caller, conversation_id):
            try:
                return await self._open(request, team)
            except ConversationHeld as held:
                if policy == "reject":
                    raise
                conversation_id = held.conversation_id
        assert conversation_id is not None
        if request.on_disconnect == "detach":
            left = None
        return await self._open_queued(request, team, conversation_id, left, interrupts=policy == "interrupt")

    async def _open_queued(
        self,
        request: TurnRequest,
        team: ServedTeam,
        conversation_id: str,
        left: ClientLeft | None,
        *,
        interrupts: bool,
    ) -> Opened:
        """Begin the turn when no other turn of the conversation is running."""
        async with self._busy.place(request.caller, conversation_id, left):
            for _ in range(ATTEMPTS):
                await self._busy.wait(request.caller, conversation_id, left, interrupts=interrupts)
                if self._is_closing:
                    raise ShuttingDown
                try:
                    return await self._open(request, team)
                except ConversationHeld:
                    # A request of another worker was earlier.
                    continue
        raise ConversationHeld(conversation_id)

    async def _open(self, request: TurnRequest, team: ServedTeam) -> Opened:
        slot, skips_running = 0, False
        for _ in range(ATTEMPTS):
            resolved: Resolution | None = None
            try:
                team, ignored, resolved = await self._resolve(request, team, skips_running=skips_running)
                if isinstance(resolved, UnrelatedMessages):
                    return self._open_side(request, team)
                if isinstance(resolved, ResolvedTurn):
                    opened = await self._open_turn(request, team, resolved, ignored, slot=slot)
                else:
                    opened = await self._open_earlier(request, resolved)
                    skips_running = opened is None and isinstance(resolved, RunningMatch)
            except ApprovalsMoved:
                continue
            except ConversationBusy:
                place = resolved if isinstance(resolved, ResolvedTurn) else None
                taken = await self._after_conflict(request, team, place)
                if isinstance(taken, Opened):
                    return taken
                slot = taken
                continue
            if opened is not None:
                return opened
        raise ConversationBusy

    async def _open_earlier(self, request: TurnRequest, found: RunningMatch | Repetition) -> Opened | None:
        """Attach to the turn that the request repeats; end a running one that it follows.

        None if the request has to be resolved again: the turn has ended, or its client has not left.
        """
        for _ in range(LEAVING_ATTEMPTS):
            record = await self._history.turn(request.caller, found.turn_id)
            if record is None:
                return None
            if record.status != "running":
                return self._attach(record) if isinstance(found, Repetition) else None
            if await self._interrupt_if_lost(record):
                continue
            replaced = await self._replace_left(request, record)
            if replaced:
                return replaced if isinstance(replaced, Opened) else None
            # A client can send its next message before the server has noticed that it left.
            await asyncio.sleep(LEAVING_INTERVAL)
        return None

    async def _after_conflict(
        self, request: TurnRequest, team: ServedTeam, resolved: ResolvedTurn | None
    ) -> Opened | int:
        """Attach to the running turn if its client has left and this request repeats it; else end it.

        Returns the slot for the next attempt otherwise.

        Raises:
            ConversationBusy: The turn has a client, or finishes without one.
        """
        conversation_id = resolved.conversation_id if resolved is not None else None
        if conversation_id is None and request.parent is not None:
            parent = await self._history.turn(request.caller, split_step(request.parent)[0])
            conversation_id = parent.conversation_id if parent is not None else None
        if conversation_id is None:
            raise ConversationBusy
        record = await self._history.running_turn(request.caller, conversation_id)
        if record is None or await self._interrupt_if_lost(record):
            return 0
        replaced = await self._replace_left(request, record)
        if replaced:
            return replaced if isinstance(replaced, Opened) else 0
        slot = parallel_slot(request, team, resolved, record) if resolved is not None else 0
        if not slot:
            raise ConversationHeld(conversation_id)
        return slot

    async def _replace_left(self, request: TurnRequest, record: TurnRecord) -> Opened | bool:
        """Attach to a running turn whose client has left if this request repeats it; else end it.

        False if the turn has a client, or finishes without one.
        """
        is_same = request.body_digest is not None and record.body_digest == request.body_digest
        if is_same and self._left.is_unattended(record) and self._left.ran_effects(record):
            return self._attach(record)
        return await self._left.end(record)

    async def end_unattended(self, caller: str, conversation_id: str) -> bool:
        """End the running turn of a conversation if its client has left and it only waits for one."""
        record = await self._history.running_turn(caller, conversation_id)
        return record is not None and await self._left.end(record)

    async def preview(self, request: TurnRequest) -> PreviewedTurn:
        """Return the turn that a request would begin; nothing is begun or stored.

        Raises:
            ModelNotFound: The caller has no team with this model id.
            RejectedRequest: The request does not fit the team or the conversation.
            ConversationBusy: It follows a turn that is running.
        """
        team, _ = await self._teams.find(request.caller, request.model)
        team, _, resolved = await self._resolve(request, team)
        if isinstance(resolved, UnrelatedMessages):
            return PreviewedTurn(team, side_turn("", request, team))
        if not isinstance(resolved, ResolvedTurn):
            # The turn that it follows is still running.
            raise ConversationBusy
        now = self._clock()
        new = new_turn(request, team, resolved, worker="", lease_until=now, now=now)
        return PreviewedTurn(team, turn_of(request, new, resolved, self._approvals))

    def _check_memory(self) -> None:
        if not self._lives.has_memory():
            raise LogMemoryExhausted

    async def _resolve(
        self, request: TurnRequest, team: ServedTeam, *, skips_running: bool = False
    ) -> tuple[ServedTeam, Sequence[str], Resolution]:
        """Return the team as its conversation began with it, the ignored parameters, and where the turn begins."""
        ignored, resolved = await self._resolve_for(request, team, skips_running=skips_running)
        if isinstance(resolved, ResolvedTurn) and resolved.conversation_id is not None:
            began_as = await self._teams.as_begun(request.caller, resolved.conversation_id, team)
            if began_as is not team:
                return began_as, *await self._resolve_for(request, began_as, skips_running=skips_running)
        return team, ignored, resolved

    async def _resolve_for(
        self, request: TurnRequest, team: ServedTeam, *, skips_running: bool
    ) -> tuple[Sequence[str], Resolution]:
        team.check_client_tools(tuple(request.tools))
        ignored = _ignored(request, team)
        return ignored, await self._resolver.resolve(request, team, skips_running=skips_running)

    def _open_side(self, request: TurnRequest, team: ServedTeam) -> Opened:
        """Start a turn without conversation, team or lock; nothing of it is stored."""
        turn = side_turn(new_turn_id(), request, team.side)
        ignored = _ignored(request, team.side)
        live = LiveTurn(turn.id, cancel_on_disconnect=True, memory=self._lives.memory)
        self._runner.start(live, team.side, turn, None)
        return Opened(
            live=live,
            turn_id=turn.id,
            created_at=self._clock(),
            conversation_id=request.conversation_id or "",
            match="side-request",
            agent=turn.agent,
            ignored=ignored,
        )

    async def _open_turn(
        self,
        request: TurnRequest,
        team: ServedTeam,
        resolved: ResolvedTurn,
        ignored: Sequence[str],
        *,
        slot: int = 0,
    ) -> Opened | None:
        """Begin and start the turn; None if it waits for further approval decisions."""
        now = self._clock()
        new = new_turn(
            request,
            team,
            resolved,
            worker=self._leases.worker,
            lease_until=self._leases.until(now),
            now=now,
            slot=slot,
        )
        turn = turn_of(request, new, resolved, self._approvals)
        rules = self._disconnect_rules(request, team)
        is_lasting = self._is_lasting(request, resolved, rules)
        if is_lasting:
            new = replace(new, checkpoint=saved_turn(turn, request, resolved, rules))
        try:
            begun = await self._begin(new, resolved)
        except IdempotencyKeyTaken:
            repeated = await self._repeated(request)
            if repeated is None:
                raise IdempotencyConflict from None
            return repeated
        if begun is None:
            return None
        live = LiveTurn(
            new.id,
            conversation_id=new.conversation_id,
            began=new.created_at,
            memory=self._lives.memory,
        )
        turn.progress = self._progress.of_turn(begun.turn, is_stored=request.is_stored)
        if self._checkpoints is not None and can_be_continued(request, resolved):
            first = None if is_lasting else partial(saved_turn, turn, request, resolved, rules)
            turn.steps = CheckpointLog(self._checkpoints, live, turn, begun.turn, 0, first)
        self._left.watch(live, turn, begun.turn, rules)
        self._runner.start(live, team, turn, StoredTurnContext(request, begun, resolved))
        self._remote.notify_turn_started(begun.conversation)
        self._forwarding.turn_began(new.id, begun.conversation)
        return Opened(
            live=live,
            turn_id=new.id,
            created_at=new.created_at,
            conversation_id=new.conversation_id,
            match=resolved.match,
            agent=new.agent,
            ignored=ignored,
        )

    def _is_lasting(self, request: TurnRequest, resolved: ResolvedTurn, rules: DisconnectRules) -> bool:
        """Whether the turn has checkpoints from its begin."""
        if self._checkpoints is None or not can_be_continued(request, resolved):
            return False
        return rules.grace is None or request.in_background or request.idempotency_key is not None

    def _disconnect_rules(self, request: TurnRequest, team: ServedTeam) -> DisconnectRules:
        policy = request.on_disconnect or team.on_disconnect or self._policy.on_disconnect
        is_immediate = request.on_disconnect == "cancel"
        grace = 0.0 if is_immediate else self._policy.disconnect_grace
        return DisconnectRules(
            None if policy == "detach" else grace,
            is_immediate=is_immediate,
            has_key=request.idempotency_key is not None,
            is_repeatable=request.is_repeatable,
        )

    async def _begin(self, new: NewTurn, resolved: ResolvedTurn) -> Begun | None:
        """Write the turn as running; None if it waits for further approval decisions."""
        if resolved.step is not None:
            return await self._history.begin(new, parent=step_turn(resolved.step, new, new_turn_id()))
        resumption = resolved.resumption
        if resumption is None or resumption.update is None:
            return await self._history.begin(new)
        return await self._approvals.resume(new, resumption.update)

    # --- approvals ---

    async def decide(self, caller: str, decision: ApprovalDecision, *, end_user: str = "") -> Approval:
        """Decide a pending approval as ``Resuming.decide`` does, within the limits of this process.

        Raises:
            LogMemoryExhausted: The logs of this process have reached their memory limit.
            ShuttingDown: ``close`` was called.
        """
        if self._is_closing:
            raise ShuttingDown
        self._check_memory()
        try:
            return await self._resumption.decide(caller, decision, end_user=end_user)
        except ConversationBusy:
            approval = await self._resumption.find(caller, decision.approval_id, end_user=end_user)
            if not await self.end_unattended(caller, approval.conversation_id):
                raise
        return await self._resumption.decide(caller, decision, end_user=end_user)

    async def approval(self, caller: str, approval_id: str, *, end_user: str = "") -> Approval:
        """Return an approval.

        Raises:
            ApprovalNotFound: The caller has no such approval, or it belongs to another end user.
        """
        return await self._resumption.find(caller, approval_id, end_user=end_user)

    async def _resume(self, request: TurnRequest, resolved: ResolvedTurn) -> None:
        """Begin a turn without a request, with the agent that was active, or the entry agent if it no longer exists."""
        team, _ = await self._teams.find(request.caller, request.model)
        if resolved.conversation_id is not None:
            team = await self._teams.as_begun(request.caller, resolved.conversation_id, team)
        agent = resolved.agent if resolved.agent in team.agents else team.entry
        await self._open_turn(request, team, replace(resolved, agent=agent), ())

    async def _resume_lost(self) -> None:
        if not self._is_closing:
            await self._resumption.resume_lost()

    # --- take over ---

    async def _take_over_lost(self, dead_workers: Sequence[str]) -> None:
        """Continue turns of other workers that have died."""
        if self._take_over is None or self._is_closing:
            return
        turns = [*self._unrestored, *await self._take_over.lost_turns(dead_workers)]
        self._unrestored = []
        for taken in turns:
            try:
                await self._continue(self._take_over, taken)
            except StoreUnavailable:
                self._unrestored.append(taken)

    async def _continue(self, take_over: TakeOver, taken: TakenOver) -> None:
        record = taken.record
        try:
            team, _ = await self._teams.find(record.caller, record.model)
            team = await self._teams.as_begun(record.caller, record.conversation_id, team)
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
        restored.turn.progress = self._progress.of_turn(record.turn, is_stored=True)
        self._left.watch(live, restored.turn, record.turn, restored.rules)
        self._runner.start(live, team, restored.turn, restored.context, restored.log)
        self._forwarding.turn_began(record.id, taken.conversation)
        logger.warning("continuing a turn of another worker", extra={"turn_id": record.id})
        live.on_client_disconnect()

    # --- attach ---

    async def attach(
        self, caller: str, turn_id: str, *, end_user: str = "", is_observer: bool = False
    ) -> Opened:
        """Return a turn of the caller: running in this worker or another one, or ended.

        An observer (event feed) of a turn in another worker gets ``Started`` immediately. It gets the stored status
        if the events were not stored, and no ``Cancelled`` when this worker shuts down (see ``LiveTurn.is_over``).

        Raises:
            CompletionNotFound: The caller has no such turn, or it belongs to another end user.
        """
        return self._attach(await self._find_turn(caller, turn_id, end_user), is_observer=is_observer)

    def listener(self, conversation: Conversation) -> AbstractContextManager[Listener]:
        """Return a listener for new turns of a conversation, in all workers."""
        return self._remote.listener(conversation.key)

    def log_of(self, record: TurnRecord) -> Sequence[Entry]:
        """Return the events of a turn: so far if it runs here, else the stored ones; empty if none were stored."""
        live = self._lives.get(record.id)
        if live is not None:
            return live.entries
        return decode_journal(record.journal).entries() if record.journal else ()

    async def _find_turn(self, caller: str, turn_id: str, end_user: str) -> TurnRecord:
        record = await accessible_turn(self._history, caller, turn_id, end_user)
        if record is None or not record.was_run:
            raise CompletionNotFound(turn_id)
        return record

    async def _repeated(self, request: TurnRequest) -> Opened | None:
        record = await self._find_repeated(request)
        if record is not None and await self._interrupt_if_lost(record):
            record = await self._find_repeated(request)
        return self._attach(record) if record is not None else None

    async def _find_repeated(self, request: TurnRequest) -> TurnRecord | None:
        record: TurnRecord | None = None
        if request.idempotency_key is not None:
            record = await self._history.turn_by_idempotency_key(request.caller, request.idempotency_key)
            if record is not None and record.body_digest != request.body_digest:
                raise IdempotencyConflict
        elif request.is_retry and request.body_digest is not None:
            since = self._clock() - self._policy.turn_time_limit
            record = await self._history.turn_by_body(request.caller, request.body_digest, since=since)
        return record

    async def _interrupt_if_lost(self, record: TurnRecord) -> bool:
        """Take over or interrupt a running turn whose worker has certainly ended; return whether it was one."""
        now = self._clock()
        if record.status != "running" or not (record.lease_until < now or is_dead(record.worker)):
            return False
        dead = [record.worker] if is_dead(record.worker) else []
        await self._take_over_lost(dead)
        await self._history.interrupt(now=now, dead_workers=dead)
        return True

    def _attach(self, record: TurnRecord, *, is_observer: bool = False) -> Opened:
        live = self._lives.get(record.id)
        if live is not None:
            live.is_followed = True
        else:
            if record.status == "running":
                steps = self._teams.steps_of(record.model)
                live = self._remote.follow(record, steps=steps, is_observer=is_observer)
                if not is_observer:
                    self._left.watch_remote(record, live, self._remote)
            else:
                live = LiveTurn(record.id, conversation_id=record.conversation_id, memory=self._lives.memory)
                replay(record, live, is_observer=is_observer)
                if record.journal:
                    live.load = stored_log(self._history, record.caller, record.id)
        return Opened(
            live=live,
            turn_id=record.id,
            created_at=record.created_at,
            conversation_id=record.conversation_id,
            match="same-turn",
            agent=record.agent,
            stored_options=record.options,
        )

    # --- cancel ---

    async def cancel(self, caller: str, turn_id: str, *, end_user: str = "") -> TurnRecord:
        """Cancel a turn in whichever worker it runs; its text so far is stored. Return the turn afterwards.

        Raises:
            CompletionNotFound: The caller has no such turn, or it belongs to another end user.
        """
        record = await self._find_turn(caller, turn_id, end_user)
        live = self._lives.get(turn_id)
        if live is not None and live.task is not None:
            live.stop("requested")
            await asyncio.wait([live.task])
        elif record.status == "running" and await self._history.request_cancel(caller, turn_id):
            self._remote.cancel(record)
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

    # --- other workers ---

    def _is_expecting(self) -> bool:
        return bool(self._lives) or self._remote.is_active

    def _receive(self, message: bytes) -> None:
        """Handle a message of another worker."""
        match decode(message):
            case FollowTurn() as follow:
                self._forwarding.follow(follow)
            case UnfollowTurn(worker, turn_id, is_observer):
                self._forwarding.unfollow(turn_id, worker, is_observer=is_observer)
            case TurnEvents() as events:
                self._remote.receive(events)
            case CancelTurn(turn_id):
                live = self._lives.get(turn_id)
                if live is not None:
                    live.stop("requested")
            case ListenToConversations() as listen:
                self._forwarding.listen(listen)
            case TurnBegan(conversation):
                self._remote.notify_turn_started(conversation)
            case None:
                logger.debug("message of a newer worker")


def _ignored(request: TurnRequest, team: AnsweringTeam) -> Sequence[str]:
    """Return the parameters that have no effect on the team.

    Raises:
        ParameterNotSupported: Parameters are strict and one has no effect. Tools are the exception: many clients send
            theirs with every request.
    """
    ignored = team.check_parameters(request)
    if request.is_strict and (refused := [name for name in ignored if name != "tools"]):
        raise ParameterNotSupported(refused[0])
    return ignored
