"""Write a new turn as running, and start it in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from msgspec.structs import replace

from proxy.approvals.repository import Approvals
from proxy.conversations.resolver import ResolvedTurn
from proxy.errors import LogMemoryExhausted, StoreUnavailable
from proxy.request_errors import ParameterNotSupported
from proxy.service.checkpoints import CheckpointLog, continues_approvals, saved_turn
from proxy.service.disconnect_rules import disconnect_rules
from proxy.service.policy import Policy
from proxy.service.recording import StoredTurnContext, step_turn
from proxy.service.runner import TurnRunner
from proxy.service.side_requests import side_turn
from proxy.service.turn_factory import new_turn, new_turn_id, turn_of
from proxy.service.turn_handle import TurnHandle
from proxy.service.turn_launcher import TurnLauncher
from proxy.turns.checkpoints import CheckpointRepository
from proxy.turns.contract import AnsweringTeam, ServedTeam
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from proxy.turns.records import Begun, NewTurn
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock, TurnRequest
from proxy.turns.turn import Turn


class TurnStart:
    """Starts turns. ``policy`` has what the server does by default when clients disconnect."""

    def __init__(
        self,
        history: TurnRepository,
        approvals: Approvals,
        clock: Clock,
        lives: LiveTurns,
        *,
        policy: Policy,
        worker: str,
        checkpoints: CheckpointRepository | None,
        runner: TurnRunner,
        launcher: TurnLauncher,
    ) -> None:
        self._history = history
        self._approvals = approvals
        self._clock = clock
        self._lives = lives
        self._policy = policy
        self._worker = worker
        self._checkpoints = checkpoints
        self._runner = runner
        self._launcher = launcher
        self._is_store_available = True

    def check_memory(self) -> None:
        """Check that a turn can begin.

        Raises:
            LogMemoryExhausted: The logs of this process have reached their memory limit.
        """
        if self._lives.memory.is_exhausted and not self._lives.has_memory():
            raise LogMemoryExhausted

    def preview(self, request: TurnRequest, team: ServedTeam, resolved: ResolvedTurn) -> Turn:
        """Return the turn that ``start`` would run."""
        now = self._clock()
        new = new_turn(request, team, resolved, worker="", lease_until=now, now=now)
        return turn_of(request, new, resolved, self._approvals)

    def start_side(self, request: TurnRequest, team: ServedTeam) -> TurnHandle:
        """Start a turn without conversation, team or lock; nothing of it is stored."""
        turn = side_turn(new_turn_id(), request, team.side)
        ignored = ignored_parameters(request, team.side)
        live = LiveTurn(turn.id, cancel_on_disconnect=True, memory=self._lives.memory)
        self._runner.start(live, team.side, turn, None)
        return TurnHandle(
            live=live,
            turn_id=turn.id,
            created_at=self._clock(),
            conversation_id=request.conversation_id or "",
            match="side-request",
            agent=turn.agent,
            ignored=ignored,
        )

    async def start(
        self,
        request: TurnRequest,
        team: ServedTeam,
        resolved: ResolvedTurn,
        ignored: Sequence[str],
        *,
        slot: int = 0,
    ) -> TurnHandle | None:
        """Begin and start the turn; None if it waits for further approval decisions.

        Raises:
            ApprovalsMoved: Other decisions have changed the approvals of the turn.
            ConversationBusy: Another turn of the conversation is running in this slot.
            IdempotencyKeyTaken: Another turn has the idempotency key of the request.
        """
        now = self._clock()
        new = new_turn(
            request,
            team,
            resolved,
            worker=self._worker,
            lease_until=now + self._policy.lease,
            now=now,
            slot=slot,
        )
        turn = turn_of(request, new, resolved, self._approvals)
        rules = disconnect_rules(
            request.on_disconnect,
            team.on_disconnect or self._policy.on_disconnect,
            self._policy.disconnect_grace,
            has_key=request.idempotency_key is not None,
            is_repeatable=request.is_repeatable,
        )
        is_continuation = resolved.step is not None or resolved.resumption is not None
        context = StoredTurnContext(
            request, resolved, now, continues_approvals=is_continuation and continues_approvals(resolved)
        )
        live = LiveTurn(new.id, conversation_id=new.conversation_id, memory=self._lives.memory)
        # Like a question for approval, a checkpoint needs the stored content of the conversation.
        checkpoints = self._checkpoints if turn.may_ask else None
        # Checkpoints from the begin.
        is_lasting = checkpoints is not None and (
            rules.grace is None or rules.has_key or request.in_background
        )
        if is_lasting:
            new = replace(new, checkpoint=saved_turn(turn, request, resolved, rules))
        elif not (is_continuation or slot) and self._may_run_before_begin(request, resolved):
            # The call of the model and the commit take place at the same time.
            turn.begin = asyncio.get_running_loop().create_future()
            self._runner.start(live, team, turn, context)
        try:
            begun = await (self._begin_after(new, resolved) if is_continuation else self._history.begin(new))
        except BaseException as error:
            await self._withdraw(live, turn, error)
            raise
        self._is_store_available = True
        if begun is None:
            return None
        if checkpoints is not None:
            turn.steps = CheckpointLog(checkpoints, live, turn, context, rules, is_lasting)
        self._launcher.launch(begun, live, team, turn, context, rules)
        return TurnHandle(
            live, new.id, now, new.conversation_id, resolved.match, resolved.agent, ignored=ignored
        )

    def _may_run_before_begin(self, request: TurnRequest, resolved: ResolvedTurn) -> bool:
        """Whether the turn may call its model before it is stored as running.

        Not if it is likely that the turn cannot begin, because the call may be charged: a turn of the conversation is
        running, another request can have the same idempotency key, or the store was not available.
        """
        if not self._is_store_available or request.idempotency_key is not None:
            return False
        if resolved.conversation_id is None:
            return True
        if request.conversation_id is None:
            # Found by its messages: whether another worker runs a turn of it was not read.
            return False
        return not (resolved.is_running or self._lives.has_turn_of(resolved.conversation_id))

    def _begin_after(self, new: NewTurn, resolved: ResolvedTurn) -> Awaitable[Begun | None]:
        """Write a turn as running that follows a part of a turn, or a question; None if more decisions are missing."""
        resumption = resolved.resumption
        if resolved.step is not None:
            return self._history.begin(new, parent=step_turn(resolved.step, new, new_turn_id()))
        if resumption is None or resumption.update is None:
            return self._history.begin(new)
        return self._approvals.resume(new, resumption.update)

    async def _withdraw(self, live: LiveTurn, turn: Turn, error: BaseException) -> None:
        """Cancel what a turn has started that could not begin."""
        # Any other error, such as a cancellation, says nothing about the store.
        if isinstance(error, StoreUnavailable):
            self._is_store_available = False
        if turn.begin is not None:
            await self._runner.withdraw(live, turn)


def ignored_parameters(request: TurnRequest, team: AnsweringTeam) -> Sequence[str]:
    """Return the parameters that have no effect on the team.

    Raises:
        ParameterNotSupported: Parameters are strict and one has no effect. Tools are the exception: many clients send
            theirs with every request.
    """
    ignored = team.check_parameters(request)
    if request.is_strict and (refused := [name for name in ignored if name != "tools"]):
        raise ParameterNotSupported(refused[0])
    return ignored
