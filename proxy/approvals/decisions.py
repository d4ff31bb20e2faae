"""Decisions on approvals, and what a turn does that continues from the turn that requested them.

- A decision is an unambiguous yes or no as the only new message, or a decision by approval id. With any other message
  no call is run, and the pending approvals expire when the new turn has an answer.
- A call runs at most once, over all branches and attempts. Every turn that continues from the question gets a call that
  has run as the same call under a new id, with its result.
- A yes that comes too late has a result that says so. Otherwise agents would assume that the call was executed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from proxy.approvals.repository import Approval, Approvals, ApprovalUpdate, DecisionRecord
from proxy.approvals.yes_no import plain_decision
from proxy.errors import StoreUnavailable
from proxy.events import ApprovalDecided, DecidedBy, Decision
from proxy.messages import Message, UserMessage
from proxy.request_errors import (
    ApprovalAlreadyDecided,
    ApprovalExpired,
    ApprovalNotRequested,
    DecisionsMissing,
)
from proxy.turns.turn import RUN_UNKNOWN, ApprovalContinuation, ContinuationCall
from proxy.wire.approvals import ApprovalDecision

logger = logging.getLogger(__name__)

NO_LONGER_OPEN = (
    "not executed: the user's approval came too late, because the conversation had continued. If the call is still "
    "wanted, make it again; the user is then asked for approval again."
)
WAS_REFUSED = "not executed: the user refused this call before. If they want it after all, make it again."
_TEXT: Mapping[Decision, str] = {"approve": "Yes", "refuse": "No"}


class Resumption(Struct, frozen=True):
    """What a turn begins with, and the update that is stored with its beginning (None if nothing changes)."""

    continuation: ApprovalContinuation
    update: ApprovalUpdate | None = None


class ApprovalBatch(Struct, frozen=True):
    """The approvals that one turn requested, in the order of its calls, and the time of the decision."""

    approvals: Sequence[Approval]
    now: float

    def after_messages(self, messages: Sequence[Message]) -> Resumption | None:
        """Return the consequences of the new messages; None if there are none."""
        decision = plain_decision(messages)
        records: list[DecisionRecord] = []
        if decision is not None:
            records = [
                DecisionRecord(one.id, decision == "approve", "message", self.now)
                for one in self.approvals
                if one.is_open
                and (one.status == "pending" or (decision == "refuse" and one.status == "approved"))
            ]
        runnable = self._runnable(records) if decision == "approve" else {}
        return self._resumption(records, runnable, is_yes=decision == "approve")

    def after_decisions(
        self, decisions: Sequence[ApprovalDecision], *, has_user_message: bool
    ) -> Resumption | None:
        """Return the consequences of decisions by id, which have to be complete.

        Raises:
            ApprovalNotRequested: The turn did not request one of the approvals.
            ApprovalExpired, ApprovalAlreadyDecided: A decision is not possible any more.
            DecisionsMissing: A pending approval has no decision.
        """
        known = {one.id: one for one in self.approvals}
        given = {decision.approval_id: decision for decision in decisions}
        for decision in given.values():
            if decision.approval_id not in known:
                raise ApprovalNotRequested(decision.approval_id)
            check_open(known[decision.approval_id], is_approved=decision.is_approved)
        missing = [one.id for one in self.approvals if one.status == "pending" and one.id not in given]
        if missing:
            raise DecisionsMissing(missing)
        records = [
            DecisionRecord(decision.approval_id, decision.is_approved, "api", self.now, decision.reason)
            for decision in given.values()
            if known[decision.approval_id].status == "pending"
        ]
        note = "" if has_user_message else self._note(records)
        return self._resumption(records, self._runnable(records), note=note)

    def without_request(self, records: Sequence[DecisionRecord]) -> Resumption:
        """Return the beginning of a turn without a request, which starts after the last decision over HTTP."""
        continuation = self._continuation(
            self._runnable(records), records, note=self._note(records), has_all_events=True
        )
        update = replace(self._update(records), awaits_others=bool(records), is_unattended=True)
        return Resumption(continuation, update)

    # --- parts of a resumption ---

    def _update(self, records: Sequence[DecisionRecord]) -> ApprovalUpdate:
        first = self.approvals[0]
        expected = {one.id: one.decision for one in self.approvals}
        return ApprovalUpdate(first.turn, records, expected, first.resumed_turn_id)

    def _runnable(self, records: Sequence[DecisionRecord]) -> Mapping[str, Approval]:
        """Return the open approvals that are approved now, or were approved before and not run."""
        decided = {record.approval_id: record.is_approved for record in records}
        return {
            one.id: one
            for one in self.approvals
            if one.is_open and decided.get(one.id, one.status == "approved")
        }

    def _resumption(
        self,
        records: Sequence[DecisionRecord],
        runnable: Mapping[str, Approval],
        *,
        is_yes: bool = False,
        note: str = "",
    ) -> Resumption | None:
        continuation = self._continuation(runnable, records, is_yes=is_yes, note=note)
        if records or runnable:
            return Resumption(continuation, self._update(records))
        return Resumption(continuation) if continuation.calls or continuation.note else None

    def _continuation(
        self,
        runnable: Mapping[str, Approval],
        records: Sequence[DecisionRecord],
        *,
        is_yes: bool = False,
        note: str = "",
        has_all_events: bool = False,
    ) -> ApprovalContinuation:
        calls = []
        for one in self.approvals:
            result = None if one.id in runnable else _result_without_run(one, is_yes=is_yes)
            if one.id in runnable or result is not None:
                calls.append(ContinuationCall(one.id, one.tool, one.arguments, result))
        return ApprovalContinuation(self._events(records, has_all=has_all_events), note, calls)

    def _decisions(
        self, records: Sequence[DecisionRecord]
    ) -> Mapping[str, tuple[Decision, DecidedBy, str | None]]:
        """Return earlier and new decisions by approval id."""
        decisions: dict[str, tuple[Decision, DecidedBy, str | None]] = {
            one.id: (one.decision, one.by, one.reason)
            for one in self.approvals
            if one.decision is not None and one.by is not None
        }
        for record in records:
            decision: Decision = "approve" if record.is_approved else "refuse"
            decisions[record.approval_id] = (decision, record.by, record.reason)
        return decisions

    def _events(self, records: Sequence[DecisionRecord], *, has_all: bool) -> list[ApprovalDecided]:
        """Return the events of decisions that no turn has emitted yet, or of all decisions."""
        new = {record.approval_id for record in records}
        new |= {one.id for one in self.approvals if one.resumed_turn_id is None}
        decisions = self._decisions(records)
        return [
            ApprovalDecided(one.id, one.call_id, one.tool, *decisions[one.id][:2])
            for one in self.approvals
            if one.id in decisions and (has_all or one.id in new)
        ]

    def _note(self, records: Sequence[DecisionRecord]) -> str:
        """Return the decisions as the text of a user message."""
        decisions = self._decisions(records)
        decided = [(one.tool, *decisions[one.id]) for one in self.approvals if one.id in decisions]
        if len({decision for _, decision, _, _ in decided}) == 1:
            reasons = [reason for _, _, _, reason in decided if reason]
            return " ".join((f"{_TEXT[decided[0][1]]}.", *dict.fromkeys(reasons)))
        return "\n".join(
            f"{tool}: {_TEXT[decision].lower()}" + (f". {reason}" if reason else "")
            for tool, decision, _, reason in decided
        )


class StoredApprovedCallLog:
    """``turns.turn.ApprovedCallLog`` in the store, for one turn."""

    def __init__(self, store: Approvals, turn_id: str) -> None:
        self._store = store
        self._turn_id = turn_id

    async def begin(self, approval_id: str) -> bool:
        """Record that the turn runs the call."""
        return await self._store.begin_run(approval_id, self._turn_id)

    async def end(self, approval_id: str, result: str) -> None:
        """Record the result. If that fails, the outcome of the call is unknown to later turns."""
        try:
            await self._store.end_run(approval_id, self._turn_id, result)
        except StoreUnavailable:
            logger.warning("failed to store the result of an approved call", extra={"turn_id": self._turn_id})


def check_open(approval: Approval, *, is_approved: bool) -> None:
    """Check that this decision on the approval is possible. The same decision again is possible too.

    Raises:
        ApprovalExpired: The conversation has continued.
        ApprovalAlreadyDecided: The approval has the other decision.
    """
    if approval.status == "expired":
        raise ApprovalExpired(approval.id)
    if approval.status != "pending" and (approval.status == "approved") != is_approved:
        raise ApprovalAlreadyDecided(approval.id, approval.status)


def resumption(
    batch: ApprovalBatch, messages: Sequence[Message], decisions: Sequence[ApprovalDecision]
) -> Resumption | None:
    """Return the consequences of a request that continues from the question; None if there are none.

    Raises:
        RejectedRequest: The decisions are not possible or not complete.
    """
    if not decisions:
        return batch.after_messages(messages) if batch.approvals else None
    has_user_message = any(isinstance(message, UserMessage) for message in messages)
    return batch.after_decisions(decisions, has_user_message=has_user_message)


def result_of_run(approval: Approval) -> str | None:
    """Return the result of a call that was run, or was about to be; None for any other."""
    if approval.run_in is None:
        return None
    return RUN_UNKNOWN if approval.result is None else approval.result


def _result_without_run(approval: Approval, *, is_yes: bool) -> str | None:
    """Return the result of a call that this turn does not run; None if the call is not repeated."""
    if approval.run_in is not None or not is_yes:
        return result_of_run(approval)
    return WAS_REFUSED if approval.status == "refused" else NO_LONGER_OPEN
