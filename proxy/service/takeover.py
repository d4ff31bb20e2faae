"""Continue turns whose worker has died, from their newest checkpoint.

The turn has the same id, log, positions and messages up to the checkpoint. A model reply that was not complete is
requested again. A tool without effects that was running is run again; of one with effects the model gets the result
that it is unknown whether it was executed.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from proxy.approvals.decisions import StoredApprovedCallLog, result_of_run
from proxy.approvals.repository import Approvals
from proxy.conversations.resolver import ResolvedTurn
from proxy.events import Entry, Started, decode_journal, with_positions
from proxy.messages import Item, is_instruction
from proxy.service.checkpoints import CheckpointLog, SavedTurn, decode_step, decode_turn
from proxy.service.disconnect_rules import DisconnectRules
from proxy.service.recording import StoredTurnContext
from proxy.service.resumption import request_of
from proxy.service.runner import RestoredLog
from proxy.service.turn_factory import requested_turn
from proxy.turns.checkpoints import Checkpoint, CheckpointRepository, TakenOver
from proxy.turns.contract import ServedTeam
from proxy.turns.live import LiveTurn
from proxy.turns.log_memory import LogMemory
from proxy.turns.records import TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock
from proxy.turns.steps import TurnStep
from proxy.turns.turn import ApprovalContinuation, ContinuationCall, Turn


class RestoredTurn(Struct, frozen=True):
    """A turn of another worker, ready to be run."""

    live: LiveTurn
    turn: Turn
    context: StoredTurnContext
    rules: DisconnectRules
    log: RestoredLog


class TakeOver(Struct, frozen=True):
    """Takes over turns for one worker. ``lease`` is the time in seconds that a lease lasts."""

    history: TurnRepository
    checkpoints: CheckpointRepository
    approvals: Approvals
    clock: Clock
    worker: str
    lease: float
    memory: LogMemory

    async def lost_turns(self, dead_workers: Sequence[str]) -> Sequence[TakenOver]:
        """Return turns of other workers that belong to this one from now on."""
        now = self.clock()
        return await self.checkpoints.take_over(
            self.worker, now=now, lease_until=now + self.lease, dead_workers=dead_workers
        )

    async def restore(self, taken: TakenOver, team: ServedTeam) -> RestoredTurn:
        """Return a turn as it was at its newest checkpoint.

        Raises:
            ProxyError, msgspec.ValidationError: It cannot be continued.
        """
        record = taken.record
        first, *steps = taken.checkpoints
        saved = decode_turn(first.state)
        request = await request_of(record.caller, record, saved.options)
        resolved = await self._resolved(record, saved)
        live = LiveTurn(
            record.id,
            conversation_id=record.conversation_id,
            memory=self.memory,
        )
        turn = requested_turn(
            request,
            record.id,
            record.conversation_id,
            agent=record.agent,
            context=[*resolved.context, *resolved.new_messages],
            overlay=resolved.overlay,
            may_ask=True,
            call_scope=record.first_attempt or record.id,
        )
        turn.is_strict = saved.is_strict
        if not steps:
            turn.continuation = await self._continuation(record, saved)
        log = _continue_after(turn, steps, Started(record.id, record.agent, team.steps), record.created_at)
        context = StoredTurnContext(
            request,
            resolved,
            record.created_at,
            fence=taken.fence,
            continues_approvals=saved.continues_approvals,
        )
        rules = saved.rules.restored()
        recorded = CheckpointLog(
            self.checkpoints, live, turn, context, rules, is_saved=True, first=first.state
        )
        if steps:
            recorded.continue_after(steps[-1].number, items=len(turn.items), events=len(log.entries))
        turn.steps = recorded
        if not steps:
            recorded.continue_after(0, items=0, events=0)
        return RestoredTurn(live, turn, context, rules, log)

    async def give_up(self, taken: TakenOver) -> None:
        """Interrupt a turn that cannot be continued.

        Raises:
            StoreUnavailable: It is not interrupted yet.
        """
        await self.checkpoints.interrupt(taken.record.turn, fence=taken.fence, now=self.clock())

    async def _continuation(self, record: TurnRecord, saved: SavedTurn) -> ApprovalContinuation | None:
        """Return what the turn begins with; calls that its worker has run have their results."""
        if saved.continuation is None or record.parent is None:
            return None
        known = {one.id: one for one in await self.approvals.of_turn(record.parent)}
        calls = []
        for one in saved.continuation.calls:
            result = one.result
            if result is None and one.approval_id in known:
                result = result_of_run(known[one.approval_id])
            calls.append(ContinuationCall(one.approval_id, one.name, one.arguments, result))
        runs = StoredApprovedCallLog(self.approvals, record.id)
        return ApprovalContinuation(saved.continuation.decided, saved.continuation.note, calls, runs)

    async def _resolved(self, record: TurnRecord, saved: SavedTurn) -> ResolvedTurn:
        branch = await self.history.branch(record.parent) if record.parent is not None else None
        before = branch.items if branch is not None else ()
        return ResolvedTurn(
            conversation_id=record.conversation_id,
            match="same-turn",
            parent=record.parent,
            agent=record.agent,
            context=[item for item in before if not is_instruction(item.message)],
            input=record.input,
            new_messages=[item for item in record.input if not is_instruction(item.message)],
            overlay=saved.options.overlay,
            transcript=saved.transcript.restored(),
            scope=saved.scope,
            continued=saved.continued,
        )


def _continue_after(turn: Turn, steps: Sequence[Checkpoint], first: Started, began: float) -> RestoredLog:
    """Let the turn continue after its steps; return its log. ``first`` is its first event, at the time ``began``."""
    if not steps:
        # The first event is the same at every worker.
        turn.resumed = TurnStep(turn.agent, 0, 0, 0, 0, 0)
        return RestoredLog([Entry(1, first, began)], [])
    newest = decode_step(steps[-1].state)
    items: list[Item] = [item for step in steps for item in step.items]
    turn.items = items
    turn.agent = newest.step.agent
    turn.ran_effects = newest.step.ran_effects
    turn.ran_tools = newest.step.ran_tools
    turn.resumed = newest.step
    events = [entry for step in steps if step.journal for entry in decode_journal(step.journal).entries()]
    return RestoredLog(with_positions(events, newest.takeovers), newest.takeovers)
