"""Repository protocol for approvals: calls of server tools that a person has to approve.

The approvals of a turn are stored in the transaction that finishes the turn. They are open while the turn is the head
of its conversation. The last decision and the beginning of the next turn are one transaction, so that no decision can
be lost between them.

Every implementation passes ``tests/contracts/test_approvals.py`` and gives the guarantees of ``turns.repository``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from proxy.events import DecidedBy, Decision
from proxy.turns.records import Begun, NewTurn, Page
from proxy.wire.validation.query_params import ListQuery

ApprovalStatus = Literal["pending", "approved", "refused", "expired"]
MAX_ATTEMPTS = 3
"""Maximum number of turns that begin without a client for the same decision, because workers died."""


class Approval(Struct, frozen=True):
    """An approval and its status. ``turn`` is the key of the turn that requested it, ``turn_id`` its public id.

    ``is_head``: that turn is the newest of its conversation. The status is ``expired`` if no decision was made during
    that time, or if it was approved but not run because another approval was not decided. ``run_in`` is the id of the
    turn that has run the call or was about to; ``result`` is None if the outcome is not known.
    """

    id: str
    conversation_id: str
    end_user: str
    turn: int
    turn_id: str
    model: str
    agent: str
    call_id: str
    tool: str
    arguments: str
    status: ApprovalStatus
    is_head: bool
    created_at: float
    decided_at: float | None = None
    reason: str | None = None
    by: DecidedBy | None = None
    decision: Decision | None = None
    resumed_turn_id: str | None = None
    run_in: str | None = None
    result: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the call can still be run."""
        return self.is_head and self.run_in is None


class DecisionRecord(Struct, frozen=True):
    """The decision of a person on one approval, as it is stored."""

    approval_id: str
    is_approved: bool
    by: DecidedBy
    decided_at: float
    reason: str | None = None


class ApprovalUpdate(Struct, frozen=True):
    """The changes to the approvals of ``turn`` when a turn begins that continues from it.

    Nothing is written unless the approvals are unchanged: ``turn`` is the head, the decisions are ``expected`` (by
    approval id; None for no decision), and the turn that continued from them is ``expected_turn_id``. With
    ``awaits_others``, the turn begins only if all approvals are decided; the decision is stored in any case. If the
    worker of an ``is_unattended`` turn dies, another worker begins the turn again.
    """

    turn: int
    decisions: Sequence[DecisionRecord]
    expected: Mapping[str, Decision | None]
    expected_turn_id: str | None
    awaits_others: bool = False
    is_unattended: bool = False


class ApprovalsMoved(Exception):
    """The approvals have changed since they were read; nothing was written."""


class ApprovalQuery(Struct, frozen=True):
    """Which approvals a list has: with any status and of any conversation by default, that the end user may access."""

    page: ListQuery
    status: ApprovalStatus | None = None
    conversation_id: str | None = None
    end_user: str = ""


class Approvals(Protocol):
    """Reads approvals, and stores decisions and runs of approved calls."""

    async def find(self, caller: str, approval_id: str) -> Approval | None:
        """Return the approval; None also if the answer of its turn was deleted."""
        ...

    async def page(self, caller: str, query: ApprovalQuery) -> Page[Approval] | None:
        """Return the caller's approvals by time of request; None if there is no approval ``page.after``."""
        ...

    async def of_turn(self, turn: int) -> Sequence[Approval]:
        """Return the approvals that the turn requested, in the order of its calls."""
        ...

    async def circumstances(self, turn: int) -> bytes | None:
        """Return the context for a turn that continues from this one without a request; None if it has no approvals."""
        ...

    async def resume(self, turn: NewTurn, resume: ApprovalUpdate) -> Begun | None:
        """Store the decisions and begin the turn; None if other decisions are missing. Idempotent.

        Raises:
            ApprovalsMoved: Nothing was written.
            ConversationBusy: Another turn of the conversation is running; nothing was written.
            IdempotencyKeyTaken: Nothing was written.
        """
        ...

    async def begin_run(self, approval_id: str, turn_id: str) -> bool:
        """Record that the turn runs the approved call; False if the call may have been run before."""
        ...

    async def end_run(self, approval_id: str, turn_id: str, result: str) -> None:
        """Record the result of a call that this turn has run."""
        ...

    async def lost(self) -> Sequence[tuple[str, str]]:
        """Return (caller, approval id) for unattended turns whose worker died before the result was stored.

        There is one entry per turn, while its approvals are open and ``MAX_ATTEMPTS`` is not reached.
        """
        ...
