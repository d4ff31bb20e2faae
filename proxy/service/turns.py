"""The exchange: opens turns, attaches to those that run or ran, and writes down how they end.

A turn is acknowledged only after its end is stored: ``Completed`` enters the log behind the commit. A turn that is not
stored ends as ``Failed``, whatever its agents said.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

from proxy.approvals.decisions import Account
from proxy.approvals.repository import Approval, Approvals, ApprovalsMoved
from proxy.conversations.resolver import NotOfConversation, Recall, Recalled
from proxy.conversations.steps import Step
from proxy.errors import (
    CompletionNotFound,
    ConversationBusy,
    IdempotencyConflict,
    InternalTurnError,
    InvalidRequest,
    LogMemoryExhausted,
    ModelNotFound,
    ProxyError,
    ShuttingDown,
    StoreUnavailable,
)
from proxy.events import Cancelled, ClosingEvent, Completed, Entry, Started, decode_journal
from proxy.messages import DeveloperMessage, Item, SystemMessage
from proxy.service.event_log import EventLog
from proxy.service.recording import Kept, bare_end_of, end_of, replay, step_end, step_turn
from proxy.service.remote_turns import Elsewhere, Listener
from proxy.service.resumption import ATTEMPTS, Resuming
from proxy.service.side_requests import is_side_request
from proxy.service.workers import is_dead, new_worker, retire
from proxy.turns.contract import Answered, Recorder, ServedTeam, Team, Turn, run
from proxy.turns.live import LiveTurn, LiveTurns, LogMemory
from proxy.turns.repository import Begun, Conversation, History, IdempotencyKeyTaken, NewTurn, TurnRecord
from proxy.turns.request import Ask, Clock, DisconnectPolicy, Match, Verdict
from proxy.turns.structured_output import answer_form
from proxy.wire.errors import failed_event

logger = logging.getLogger(__name__)

SWEEP_BEATS = 15
"""Heartbeats from one look for turns of dead workers to the next."""


class MadeTeams(Protocol):
    """The teams that callers made."""

    async def find_team(self, caller: str, model: str) -> tuple[ServedTeam, bool]:
        """Return the caller's team with this model id as it is now, and whether the id is that of side requests.

        Raises:
            ModelNotFound: There is none.
        """
        ...

    async def as_begun(self, caller: str, conversation_id: str, team: ServedTeam) -> ServedTeam:
        """Return the team as it was when the conversation began with it; ``team`` itself when it did not."""
        ...


class TurnWatcher(Protocol):
    """Is told what became of turns."""

    def turn_ended(self, caller: str, team: str, entries: Sequence[Entry]) -> None:
        """A turn of the caller's has ended here; ``entries`` is its whole log."""
        ...


class Teams(Protocol):
    """The teams that can be asked."""

    def find(self, model: str) -> tuple[ServedTeam, bool]:
        """Return the team with this model id, and whether the id is that of its side requests.

        Raises:
            ModelNotFound: There is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """How turns are run; times in seconds."""

    turn_time_limit: float = 600.0
    on_disconnect: DisconnectPolicy = "cancel"
    lease: float = 15.0
    """How long a conversation stays locked by a worker that is gone."""
    heartbeat: float = 2.0
    """How often leases are renewed, and cancellations asked for elsewhere are noticed."""
    follow: float = 0.25
    """How often turns of other workers that somebody waits for are looked at."""
    listen: float = 1.0
    """How often conversations that somebody listens to are looked at."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A turn to be read; ``is_replayed`` says that it was not begun by this request."""

    live: LiveTurn
    turn_id: str
    created_at: float
    conversation_id: str
    match: Match
    agent: str
    options: bytes
    is_replayed: bool = False
    ignored: Sequence[str] = ()
    """What was asked for and has no effect on this team."""


class Exchange:
    """One per process."""

    def __init__(
        self,
        teams: Teams,
        history: History,
        *,
        approvals: Approvals,
        policy: Policy,
        clock: Clock,
        event_log: EventLog | None = None,
        made: MadeTeams | None = None,
        watcher: TurnWatcher | None = None,
        log_memory_limit: int | None = None,
    ) -> None:
        self._teams = teams
        self._made = made
        self._history = history
        self._approvals = approvals
        self._policy = policy
        self._clock = clock
        self._event_log = event_log or EventLog()
        self._watcher = watcher
        self._recall = Recall(history, approvals, clock)
        self._resuming = Resuming(history, approvals, clock, self._go_on)
        self._lives = LiveTurns(memory=LogMemory(log_memory_limit))
        self._worker = new_worker()
        self._heart: asyncio.Task[None] | None = None
        self._elsewhere = Elsewhere(history, clock, follow=policy.follow, listen=policy.listen)
        self._is_closing = False
        self._is_over = False

    @property
    def running(self) -> int:
        """How many turns run in this process."""
        return len(self._lives)

    @property
    def log_bytes(self) -> int:
        """Estimated memory of the logs in this process, in bytes."""
        return self._lives.memory.used

    def running_turns(self) -> list[str]:
        """Return the ids of the turns that run in this process."""
        return [live.turn_id for live in self._lives.running()]

    @property
    def is_closing(self) -> bool:
        """Whether the server is about to stop."""
        return self._is_closing

    # --- life of the process ---

    async def start(self) -> None:
        """Mark turns that died with their worker as interrupted, and begin to renew leases."""
        await self._sweep()
        self._heart = asyncio.create_task(self._renew_leases(), name="leases")

    async def close(self, *, grace: float) -> None:
        """Take no new turns, let the running ones finish for ``grace`` seconds, then stop them and wait."""
        self._is_closing = True
        self._elsewhere.wake_listeners()
        if grace > 0 and (tasks := self._tasks()):
            await asyncio.wait(tasks, timeout=grace)
        self._is_over = True
        while tasks := self._tasks():
            for live in self._lives.running():
                live.stop("shutting_down")
            await asyncio.wait(tasks)
        await self._elsewhere.close()
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        retire(self._worker)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [live.task for live in self._lives.running() if live.task is not None]

    async def _sweep(self) -> None:
        workers = await self._history.running_workers()
        dead = [worker for worker in workers if is_dead(worker)]
        interrupted = await self._history.interrupt(now=self._clock(), dead_workers=dead)
        if interrupted:
            logger.warning("turns were interrupted by the end of their worker", extra={"turns": interrupted})
        if not self._is_closing:
            await self._resuming.take_up_lost()

    async def _renew_leases(self) -> None:
        for beat in count():
            await asyncio.sleep(self._policy.heartbeat)
            try:
                if beat % SWEEP_BEATS == SWEEP_BEATS - 1:
                    await self._sweep()
                if not self._lives:
                    continue
                stopped = await self._history.renew(
                    self._worker, lease_until=self._clock() + self._policy.lease
                )
            except StoreUnavailable:
                logger.warning("leases could not be renewed")
                continue
            for turn_id in stopped:
                live = self._lives.get(turn_id)
                if live is not None:
                    live.stop("requested")

    # --- opening and attaching ---

    async def open(self, ask: Ask) -> Opened:
        """Begin a turn, or attach to the one that this request repeats.

        Raises:
            ModelNotFound: No such team.
            InvalidRequest: The request does not fit the team or the conversation.
            ConversationBusy: Another turn of the conversation is under way.
            IdempotencyConflict: The key belongs to another body.
            StoreUnavailable: The store did not answer.
            LogMemoryExhausted: The logs of this process take as much memory as they may.
            ShuttingDown: No new turns are taken.
        """
        if self._is_closing:
            raise ShuttingDown
        team, is_side_model = await self._find(ask)
        if ask.is_side or is_side_model or (_may_be_side(ask) and is_side_request(ask.messages)):
            self._check_memory()
            return self._open_side(ask, team)
        repeated = await self._repeated(ask)
        if repeated is not None:
            return repeated
        self._check_memory()
        answer_form(ask.parameters.response_format)
        for _ in range(ATTEMPTS):
            team, ignored, recalled = await self._placed(ask, team)
            if isinstance(recalled, NotOfConversation):
                return self._open_side(ask, team)
            try:
                opened = await self._open_turn(ask, team, recalled, ignored)
            except ApprovalsMoved:
                continue
            if opened is not None:
                return opened
        raise ConversationBusy

    async def decide(self, caller: str, verdict: Verdict, *, end_user: str = "") -> Approval:
        """Decide about a call that waits for a person; see ``Resuming.decide``.

        Raises:
            ShuttingDown: No new turns are taken.
        """
        if self._is_closing:
            raise ShuttingDown
        self._check_memory()
        return await self._resuming.decide(caller, verdict, end_user=end_user)

    def _check_memory(self) -> None:
        if not self._lives.has_memory():
            raise LogMemoryExhausted

    async def approval(self, caller: str, approval_id: str, *, end_user: str = "") -> Approval:
        """Return an approval.

        Raises:
            ApprovalNotFound: The caller has no such approval, or it is another end user's.
        """
        return await self._resuming.find(caller, approval_id, end_user=end_user)

    async def _go_on(self, ask: Ask, recalled: Recalled) -> None:
        """Begin a turn that nobody asks for, with the agent that had the floor, if it is still there."""
        team, _ = await self._find(ask)
        if recalled.conversation_id is not None:
            team = await self._as_begun(ask, team, recalled.conversation_id)
        agent = recalled.agent if recalled.agent in team.agents else team.entry
        await self._open_turn(ask, team, replace(recalled, agent=agent), ())

    async def _find(self, ask: Ask) -> tuple[ServedTeam, bool]:
        try:
            return self._teams.find(ask.model)
        except ModelNotFound:
            if self._made is None:
                raise
        return await self._made.find_team(ask.caller, ask.model)

    async def _placed(
        self, ask: Ask, team: ServedTeam
    ) -> tuple[ServedTeam, Sequence[str], Recalled | NotOfConversation]:
        """Return the team as its conversation began with it, what has no effect on it, and where the turn begins."""
        ignored, recalled = await self._place(ask, team)
        if isinstance(recalled, Recalled) and recalled.conversation_id is not None:
            began_as = await self._as_begun(ask, team, recalled.conversation_id)
            if began_as is not team:
                return began_as, *await self._place(ask, began_as)
        return team, ignored, recalled

    async def _as_begun(self, ask: Ask, team: ServedTeam, conversation_id: str) -> ServedTeam:
        if self._made is None or team.snapshot is None:
            return team
        return await self._made.as_begun(ask.caller, conversation_id, team)

    async def _place(self, ask: Ask, team: ServedTeam) -> tuple[Sequence[str], Recalled | NotOfConversation]:
        """Return what of the request has no effect on the team, and where its turn begins."""
        team.check_client_tools(tuple(ask.tools))
        ignored = team.unheeded(ask)
        return ignored, await self._recall.recall(ask, team)

    async def attach(
        self, caller: str, turn_id: str, *, end_user: str = "", is_observer: bool = False
    ) -> Opened:
        """Return a turn of the caller's, running here, running elsewhere, or finished.

        An observer wants to know what happens and not the answer. It is told at once that a turn elsewhere began, how
        one ended of which no more is kept, and not that this worker stops (see ``LiveTurn.is_over``).

        Raises:
            CompletionNotFound: The caller has no such turn, or it is another end user's.
        """
        return self._attach(await self._turn(caller, turn_id, end_user), is_observer=is_observer)

    def listener(self, conversation: Conversation) -> AbstractContextManager[Listener]:
        """Return what waits for new turns of a conversation, on whatever worker they begin."""
        return self._elsewhere.listener(conversation.key)

    def log_of(self, record: TurnRecord) -> Sequence[Entry]:
        """Return what is known here of a turn's events: all so far when it runs here, or all when they were kept."""
        live = self._lives.get(record.id)
        if live is not None:
            return live.entries
        return decode_journal(record.journal).entries() if record.journal else ()

    async def cancel(self, caller: str, turn_id: str, *, end_user: str = "") -> TurnRecord:
        """Stop a turn wherever it runs; what was said stays. Returns the turn as it stands afterwards.

        Raises:
            CompletionNotFound: The caller has no such turn, or it is another end user's.
        """
        record = await self._turn(caller, turn_id, end_user)
        live = self._lives.get(turn_id)
        if live is not None and live.task is not None:
            live.stop("requested")
            await asyncio.wait([live.task])
        elif record.status == "running":
            await self._history.request_cancel(caller, turn_id)
        return await self._history.turn(caller, turn_id) or record

    async def _turn(self, caller: str, turn_id: str, end_user: str) -> TurnRecord:
        record = await self._history.turn(caller, turn_id)
        if record is None or not record.was_run:
            raise CompletionNotFound(turn_id)
        if end_user and record.end_user not in ("", end_user):
            raise CompletionNotFound(turn_id)
        return record

    async def _repeated(self, ask: Ask) -> Opened | None:
        record: TurnRecord | None = None
        if ask.idempotency_key is not None:
            record = await self._history.turn_by_idempotency_key(ask.caller, ask.idempotency_key)
            if record is not None and record.body_digest != ask.body_digest:
                raise IdempotencyConflict
        elif ask.is_retry and ask.body_digest is not None:
            since = self._clock() - self._policy.turn_time_limit
            record = await self._history.turn_by_body(ask.caller, ask.body_digest, since=since)
        return self._attach(record) if record is not None else None

    def _attach(self, record: TurnRecord, *, is_observer: bool = False) -> Opened:
        live = self._lives.get(record.id)
        if live is None:
            live = LiveTurn(record.id, conversation_id=record.conversation_id, memory=self._lives.memory)
            if record.status == "running":
                steps = self._steps_of(record.model)
                self._elsewhere.follow(record, live, steps=steps, is_observer=is_observer)
            else:
                replay(record, live, is_observer=is_observer)
        return Opened(
            live=live,
            turn_id=record.id,
            created_at=record.created_at,
            conversation_id=record.conversation_id,
            match="same-turn",
            agent=record.agent,
            options=record.options,
            is_replayed=True,
        )

    def _steps_of(self, model: str) -> tuple[str, ...]:
        try:
            return self._teams.find(model)[0].steps
        except ModelNotFound:
            return ()  # it is served by others only

    # --- running ---

    def _open_side(self, ask: Ask, team: ServedTeam) -> Opened:
        """Answer without conversation, team or lock; nothing is stored."""
        if ask.in_background:
            raise InvalidRequest(
                "Invalid 'background': a side request is not stored, so its answer could not be asked for later.",
                param="background",
                code="unsupported_value",
            )
        answer_form(ask.parameters.response_format)
        ignored = team.side.unheeded(ask)
        turn_id = _new_turn_id()
        overlay = [m for m in ask.messages if isinstance(m, SystemMessage | DeveloperMessage)]
        if ask.instructions:
            overlay.insert(0, SystemMessage(content=ask.instructions))
        said = [Item(m) for m in ask.messages if not isinstance(m, SystemMessage | DeveloperMessage)]
        turn = Turn(
            id=turn_id,
            conversation_id="",
            caller=ask.caller,
            agent=team.side.entry,
            context=said,
            overlay=overlay,
            parameters=ask.parameters,
            client_tools=ask.tools,
            tool_choice=ask.tool_choice,
            parallel_tool_calls=ask.parallel_tool_calls,
        )
        live = LiveTurn(turn_id, stops_when_left=True, memory=self._lives.memory)
        self._start(live, team.side, turn, None)
        return Opened(
            live=live,
            turn_id=turn_id,
            created_at=self._clock(),
            conversation_id=ask.conversation_id or "",
            match="side-request",
            agent=turn.agent,
            options=ask.options,
            ignored=ignored,
        )

    async def _open_turn(
        self, ask: Ask, team: ServedTeam, recalled: Recalled, ignored: Sequence[str]
    ) -> Opened | None:
        """Begin the turn; None when it awaits decisions about approvals."""
        now = self._clock()
        turn_id = _new_turn_id()
        conversation_id = recalled.conversation_id or f"conv_{secrets.token_hex(16)}"
        new = NewTurn(
            id=turn_id,
            caller=ask.caller,
            end_user=ask.end_user,
            conversation_id=conversation_id,
            team=team.name,
            model=ask.model,
            parent=recalled.parent,
            agent=recalled.agent,
            input=recalled.input,
            is_stored=ask.is_stored,
            is_listed=ask.is_listed,
            metadata=ask.metadata,
            options=ask.options,
            worker=self._worker,
            lease_until=now + self._policy.lease,
            created_at=now,
            idempotency_key=ask.idempotency_key,
            body_digest=ask.body_digest,
            snapshot=team.snapshot,
        )
        if recalled.step is not None:
            new = replace(new, parent=await self._store_step(recalled.step, new))
        resumption = recalled.resumption
        try:
            if resumption is None or resumption.resume is None:
                begun: Begun | None = await self._history.begin(new)
            else:
                begun = await self._approvals.resume(new, resumption.resume)
        except IdempotencyKeyTaken:
            repeated = await self._repeated(ask)
            if repeated is None:
                raise IdempotencyConflict from None
            return repeated
        if begun is None:
            return None
        turn = Turn(
            id=turn_id,
            conversation_id=conversation_id,
            caller=ask.caller,
            agent=recalled.agent,
            context=[*recalled.context, *recalled.said],
            overlay=recalled.overlay,
            parameters=ask.parameters,
            client_tools=ask.tools,
            tool_choice=ask.tool_choice,
            parallel_tool_calls=ask.parallel_tool_calls,
            max_tool_calls=ask.max_tool_calls,
            may_ask=ask.is_stored and recalled.is_kept,
            opening=replace(resumption.opening, runs=Account(self._approvals, turn_id))
            if resumption is not None
            else None,
        )
        policy = ask.on_disconnect or team.on_disconnect or self._policy.on_disconnect
        live = LiveTurn(
            turn_id,
            conversation_id=conversation_id,
            stops_when_left=policy == "cancel",
            began=now,
            memory=self._lives.memory,
        )
        self._start(live, team, turn, Kept(ask, begun, recalled))
        self._elsewhere.went_on(begun.conversation)
        return Opened(
            live=live,
            turn_id=turn_id,
            created_at=now,
            conversation_id=conversation_id,
            match=recalled.match,
            agent=recalled.agent,
            options=ask.options,
            ignored=ignored,
        )

    async def _store_step(self, step: Step, following: NewTurn) -> int:
        """Store the part of a turn that ``following`` follows as a turn of its own; return its key."""
        turn = step_turn(step, following, _new_turn_id())
        begun = await self._history.begin(turn)
        if not await self._history.finish(step_end(step, begun, turn)):
            raise ConversationBusy
        return begun.turn

    def _start(self, live: LiveTurn, team: Team, turn: Turn, kept: Kept | None) -> None:
        live.task = asyncio.create_task(self._answer(live, team, turn, kept), name=turn.id)
        live.listener = self._event_log.listener(live)
        self._lives.add(live)
        if self._is_over:
            # It was being opened when the others were stopped.
            live.stop("shutting_down")

    async def _answer(self, live: LiveTurn, team: Team, turn: Turn, kept: Kept | None) -> None:
        """The turn's own task: let the team answer, store the end, and only then tell it."""
        recorder = Recorder(live)
        answered: Answered | None = None
        closing: ClosingEvent
        try:
            if live.stop_reason is not None:
                recorder.emit(Started(turn.id, turn.agent, team.steps))
                raise asyncio.CancelledError
            answered = await run(
                team, turn, recorder, time_limit=team.time_limit or self._policy.turn_time_limit
            )
            closing = Completed(turn.agent, answered.finish_reason, recorder.usage)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            closing = Cancelled(live.stop_reason or "shutting_down", turn.agent, recorder.usage)
        except ProxyError as error:
            closing = failed_event(error, recorder.usage, ran_effects=turn.ran_effects)
        live.seal()
        now = round(self._clock(), 3)
        try:
            if kept is not None:
                closing = await self._store(kept, live, turn, closing, answered, recorder, now)
        finally:
            live.emit(closing, at=now)
            try:
                # Before the log is retired: retiring may discard its entries.
                if self._watcher is not None:
                    self._watcher.turn_ended(turn.caller, team.name, live.entries)
            finally:
                self._lives.retire(live)

    async def _store(
        self,
        kept: Kept,
        live: LiveTurn,
        turn: Turn,
        closing: ClosingEvent,
        answered: Answered | None,
        recorder: Recorder,
        now: float,
    ) -> ClosingEvent:
        """Write the end; return what is to be told, which is not success when nothing was written."""
        failure: ProxyError
        try:
            if await self._history.finish(end_of(kept, live, turn, closing, answered, recorder, now=now)):
                return closing
            logger.error("a turn lost its lease before it ended", extra={"turn_id": turn.id})
            failure = InternalTurnError()
        except StoreUnavailable as error:
            failure = error
        except Exception:
            logger.exception("the end of a turn could not be written", extra={"turn_id": turn.id})
            failure = InternalTurnError()
            # Or it would keep its conversation busy for as long as this worker lives.
            with suppress(StoreUnavailable):
                await self._history.finish(bare_end_of(kept, turn, failure, now=now))
        return failed_event(failure, recorder.usage, ran_effects=turn.ran_effects)


def _may_be_side(ask: Ask) -> bool:
    """Whether the words of a request may mark it; one that says where it belongs does not mean that."""
    return ask.parent is None and not ask.is_addition and not ask.in_background


def _new_turn_id() -> str:
    return f"chatcmpl-{secrets.token_hex(16)}"
