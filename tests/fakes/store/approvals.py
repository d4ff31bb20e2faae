"""``Approvals`` in memory, over what a ``MemoryHistory`` holds."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from proxy.approvals.repository import (
    MAX_ATTEMPTS,
    Approval,
    ApprovalQuery,
    ApprovalsMoved,
    ApprovalStatus,
    ApprovalUpdate,
    DecisionRecord,
)
from proxy.auth import may_access
from proxy.turns.records import Begun, NewTurn, Page
from tests.fakes.store.conversations import page_of
from tests.fakes.store.turns import Asked, MemoryHistory


class MemoryApprovals:
    """``Approvals`` in memory."""

    def __init__(self, history: MemoryHistory) -> None:
        self._history = history

    async def find(self, caller: str, approval_id: str) -> Approval | None:
        asked = self._history.asked.get(approval_id)
        # Nor of a turn whose answer was deleted.
        if asked is None or self._history.turns[asked.turn].record.caller != caller:
            return None
        return self._approval(asked)

    async def page(self, caller: str, query: ApprovalQuery) -> Page[Approval] | None:
        after = query.page.after
        if after is not None and await self.find(caller, after) is None:
            return None
        start = self._history.asked[after].key if after is not None else None
        found = [
            (asked.key, approval)
            for asked in self._history.asked.values()
            if self._history.turns[asked.turn].record.caller == caller
            and query.status in (None, (approval := self._approval(asked)).status)
            and query.conversation_id in (None, approval.conversation_id)
            and may_access(query.end_user, approval.end_user)
        ]
        return page_of(found, start, query.page)

    async def of_turn(self, turn: int) -> Sequence[Approval]:
        return [self._approval(asked) for asked in self._of_turn(turn)]

    async def circumstances(self, turn: int) -> bytes | None:
        stored = self._history.turns.get(turn)
        return stored.circumstances if stored is not None else None

    async def resume(self, turn: NewTurn, resume: ApprovalUpdate) -> Begun | None:
        asked = {one.id: one for one in self._of_turn(resume.turn)}
        conversation = self._history.conversations.get((turn.caller, turn.conversation_id))
        head = conversation.head if conversation is not None else None
        if head != resume.turn or any(one.resumed_by != resume.expected_turn_id for one in asked.values()):
            raise ApprovalsMoved
        if resume.expected != {one.id: one.decision for one in asked.values()}:
            raise ApprovalsMoved
        decided = {one.approval_id: _decided(asked[one.approval_id], one) for one in resume.decisions}
        waiting = [one for one in asked.values() if one.decision is None and one.id not in decided]
        if resume.awaits_others and waiting:
            self._history.asked |= decided
            return None
        begun = await self._history.begin(turn)
        for one in (asked | decided).values():
            self._history.asked[one.id] = replace(
                one, resumed_by=turn.id, attempts=one.attempts + 1, is_unattended=resume.is_unattended
            )
        return begun

    async def begin_run(self, approval_id: str, turn_id: str) -> bool:
        asked = self._history.asked.get(approval_id)
        if asked is None or asked.decision != "approve" or asked.resumed_by != turn_id:
            return False
        if asked.run_in not in (None, turn_id):
            return False
        self._history.asked[approval_id] = replace(asked, run_in=turn_id)
        return True

    async def end_run(self, approval_id: str, turn_id: str, result: str) -> None:
        asked = self._history.asked.get(approval_id)
        if asked is not None and asked.run_in == turn_id:
            self._history.asked[approval_id] = replace(asked, result=result)

    async def lost(self) -> Sequence[tuple[str, str]]:
        running = {
            stored.record.id for stored in self._history.turns.values() if stored.record.status == "running"
        }
        found: dict[int, tuple[str, str]] = {}
        for asked in self._history.asked.values():
            is_lost = asked.is_unattended and asked.resumed_by not in running
            if is_lost and asked.attempts < MAX_ATTEMPTS and self._is_head(asked):
                caller = self._history.turns[asked.turn].conversation.caller
                found.setdefault(asked.turn, (caller, asked.id))
        return list(found.values())

    def _of_turn(self, turn: int) -> list[Asked]:
        return [asked for asked in self._history.asked.values() if asked.turn == turn]

    def _is_head(self, asked: Asked) -> bool:
        of = self._history.turns[asked.turn].conversation
        return self._history.conversations[of.caller, of.id].head == asked.turn

    def _approval(self, asked: Asked) -> Approval:
        stored = self._history.turns[asked.turn]
        conversation = self._history.conversations[stored.conversation.caller, stored.conversation.id]
        is_head = self._is_head(asked)
        status: ApprovalStatus = "refused"
        if not is_head and asked.resumed_by is None and asked.decision != "refuse":
            status = "expired"
        elif asked.decision is None:
            status = "pending"
        elif asked.decision == "approve":
            status = "approved"
        return Approval(
            id=asked.id,
            conversation_id=conversation.id,
            end_user=conversation.end_user,
            turn=asked.turn,
            turn_id=stored.record.id,
            model=stored.record.model,
            agent=asked.agent,
            call_id=asked.call_id,
            tool=asked.tool,
            arguments=asked.arguments,
            status=status,
            is_head=is_head,
            created_at=asked.created_at,
            decided_at=asked.decided_at,
            reason=asked.reason,
            by=asked.decided_by,
            decision=asked.decision,
            resumed_turn_id=asked.resumed_by,
            run_in=asked.run_in,
            result=asked.result,
        )


def _decided(asked: Asked, decision: DecisionRecord) -> Asked:
    return replace(
        asked,
        decision="approve" if decision.is_approved else "refuse",
        decided_by=decision.by,
        decided_at=decision.decided_at,
        reason=decision.reason,
    )
