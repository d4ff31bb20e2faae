"""What becomes of approvals when a turn goes on from the one that asked for them.

- A decision is a plain yes or no as the only new message, or one by the ids of the approvals. Anything else decides
  nothing: then no call is run, and what was open expires as soon as that turn has an answer.
- A call is run at most once, in whatever branch and attempt. What was run is told, as the same call under a new id with
  its result, to every turn that goes on from the question.
- A yes that comes too late is told as such, so that no agent takes the call for done.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from proxy.approvals.repository import Approval, Approvals, Decision, Resume
from proxy.approvals.yes_no import plain_decision
from proxy.errors import StoreUnavailable
from proxy.events import ApprovalDecided, DecidedBy
from proxy.events import Decision as Word
from proxy.messages import Message, UserMessage
from proxy.request_errors import (
    ApprovalAlreadyDecided,
    ApprovalExpired,
    ApprovalNotRequested,
    DecisionsMissing,
)
from proxy.turns.contract import RUN_UNKNOWN, ApprovalContinuation, ContinuationCall
from proxy.turns.request import ApprovalDecision

logger = logging.getLogger(__name__)

NO_LONGER_OPEN = (
    "not executed: the user's approval came too late, because the conversation had gone on. If the call is still "
    "wanted, make it again; the user is then asked again."
)
WAS_REFUSED = "not executed: the user refused this call before. If they want it after all, make it again."


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a turn begins with, and what its beginning writes; ``resume`` is None when nothing is."""

    opening: ApprovalContinuation
    resume: Resume | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a turn asked approval for, in the order of its calls, and what follows from an answer given ``now``."""

    approvals: Sequence[Approval]
    now: float

    def after_words(self, said: Sequence[Message]) -> Resumption | None:
        """Return what follows from what a person said; None when it changes nothing and there is nothing to tell."""
        word = plain_decision(said)
        decisions: list[Decision] = []
        if word is not None:
            decisions = [
                Decision(one.id, word == "approve", "message", self.now)
                for one in self.approvals
                if one.is_open
                and (one.status == "pending" or (word == "refuse" and one.status == "approved"))
            ]
        runs = self._to_run(decisions) if word == "approve" else {}
        return self._resumption(decisions, runs, is_yes=word == "approve")

    def after_verdicts(self, verdicts: Sequence[ApprovalDecision], *, has_words: bool) -> Resumption | None:
        """Return what follows from decisions in a request, which have to be complete.

        Raises:
            ApprovalNotRequested: The turn did not request one of the approvals.
            ApprovalExpired, ApprovalAlreadyDecided: A decision is not possible any more.
            DecisionsMissing: A pending approval has no decision.
        """
        known = {one.id: one for one in self.approvals}
        given = {verdict.approval_id: verdict for verdict in verdicts}
        for verdict in given.values():
            if verdict.approval_id not in known:
                raise ApprovalNotRequested(verdict.approval_id)
            check_open(known[verdict.approval_id], is_approved=verdict.is_approved)
        missing = [one.id for one in self.approvals if one.status == "pending" and one.id not in given]
        if missing:
            raise DecisionsMissing(missing)
        decisions = [
            Decision(verdict.approval_id, verdict.is_approved, "api", self.now, verdict.reason)
            for verdict in given.values()
            if known[verdict.approval_id].status == "pending"
        ]
        note = "" if has_words else self._note(decisions)
        return self._resumption(decisions, self._to_run(decisions), note=note)

    def after_decision(self, decisions: Sequence[Decision]) -> Resumption:
        """Return what a turn does that nobody asks for: it begins when nothing is left to be decided."""
        opening = self._opening(
            self._to_run(decisions), decisions, note=self._note(decisions), tells_all=True
        )
        resume = replace(self._resume(decisions), awaits_others=bool(decisions), is_unattended=True)
        return Resumption(opening, resume)

    # --- putting it together ---

    def _resume(self, decisions: Sequence[Decision]) -> Resume:
        first = self.approvals[0]
        stood = {one.id: one.decision for one in self.approvals}
        return Resume(first.turn, decisions, stood, first.resumed_turn_id)

    def _to_run(self, decisions: Sequence[Decision]) -> Mapping[str, Approval]:
        """Return what is to be run: approved now, or before and not taken up."""
        decided = {decision.approval_id: decision.is_approved for decision in decisions}
        return {
            one.id: one
            for one in self.approvals
            if one.is_open and decided.get(one.id, one.status == "approved")
        }

    def _resumption(
        self,
        decisions: Sequence[Decision],
        runs: Mapping[str, Approval],
        *,
        is_yes: bool = False,
        note: str = "",
    ) -> Resumption | None:
        opening = self._opening(runs, decisions, is_yes=is_yes, note=note)
        if decisions or runs:
            return Resumption(opening, self._resume(decisions))
        return Resumption(opening) if opening.calls or opening.note else None

    def _opening(
        self,
        runs: Mapping[str, Approval],
        decisions: Sequence[Decision],
        *,
        is_yes: bool = False,
        note: str = "",
        tells_all: bool = False,
    ) -> ApprovalContinuation:
        calls = []
        for one in self.approvals:
            result = None if one.id in runs else _told(one, is_yes=is_yes)
            if one.id in runs or result is not None:
                calls.append(ContinuationCall(one.id, one.tool, one.arguments, result))
        return ApprovalContinuation(self._events(decisions, tells_all=tells_all), note, calls)

    def _words(self, decisions: Sequence[Decision]) -> Mapping[str, tuple[Word, DecidedBy, str | None]]:
        """Return by id what was decided, before and now."""
        words: dict[str, tuple[Word, DecidedBy, str | None]] = {
            one.id: (one.decision, one.by, one.reason)
            for one in self.approvals
            if one.decision is not None and one.by is not None
        }
        for decision in decisions:
            word: Word = "approve" if decision.is_approved else "refuse"
            words[decision.approval_id] = (word, decision.by, decision.reason)
        return words

    def _events(self, decisions: Sequence[Decision], *, tells_all: bool) -> list[ApprovalDecided]:
        """Return what no turn has told yet, or all of it."""
        told = {decision.approval_id for decision in decisions}
        told |= {one.id for one in self.approvals if one.resumed_turn_id is None}
        words = self._words(decisions)
        return [
            ApprovalDecided(one.id, one.call_id, one.tool, *words[one.id][:2])
            for one in self.approvals
            if one.id in words and (tells_all or one.id in told)
        ]

    def _note(self, decisions: Sequence[Decision]) -> str:
        """Return what the person would have said."""
        words = self._words(decisions)
        told = [(one.tool, *words[one.id]) for one in self.approvals if one.id in words]
        if len({word for _, word, _, _ in told}) == 1:
            reasons = [reason for _, _, _, reason in told if reason]
            return " ".join((f"{_SAID[told[0][1]]}.", *dict.fromkeys(reasons)))
        return "\n".join(
            f"{tool}: {_SAID[word].lower()}" + (f". {reason}" if reason else "")
            for tool, word, _, reason in told
        )


class StoredApprovedCallLog:
    """Keeps account of runs in the store, for one turn; see ``turns.ApprovedCallLog``."""

    def __init__(self, store: Approvals, turn_id: str) -> None:
        self._store = store
        self._turn_id = turn_id

    async def begin(self, approval_id: str) -> bool:
        """Note that the turn runs the call."""
        return await self._store.begin_run(approval_id, self._turn_id)

    async def end(self, approval_id: str, result: str) -> None:
        """Note what it gave; where that cannot be kept, the call counts as one of which nothing is known."""
        try:
            await self._store.end_run(approval_id, self._turn_id, result)
        except StoreUnavailable:
            logger.warning("the result of an approved call was not noted", extra={"turn_id": self._turn_id})


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
    question: Question, said: Sequence[Message], verdicts: Sequence[ApprovalDecision]
) -> Resumption | None:
    """Return what follows for a turn that goes on from the question with a request.

    Raises:
        RejectedRequest: The decisions are not possible or not complete.
    """
    if not verdicts:
        return question.after_words(said) if question.approvals else None
    return question.after_verdicts(verdicts, has_words=any(isinstance(one, UserMessage) for one in said))


def _told(approval: Approval, *, is_yes: bool) -> str | None:
    """Return what is told of a call that is not run now; None for nothing."""
    if approval.run_in is not None:
        return RUN_UNKNOWN if approval.result is None else approval.result
    if not is_yes:
        return None
    return WAS_REFUSED if approval.status == "refused" else NO_LONGER_OPEN


_SAID: Mapping[Word, str] = {"approve": "Yes", "refuse": "No"}
