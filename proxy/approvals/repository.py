"""Calls that a person has to approve, as they are kept.

A turn that asks for approval ends like any other; its approvals are written with its end, in one transaction. They are
open while that turn is the head of its conversation. The last decision and the beginning of the turn that goes on with
it are one transaction, too, so that no decision is lost between the two.

Every implementation passes ``tests/contracts/test_approvals.py``; the promises of ``exchange.history`` hold here, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from proxy.events import DecidedBy
from proxy.events import Decision as Word
from proxy.turns.repository import Begun, NewTurn, Order, Page

ApprovalStatus = Literal["pending", "approved", "refused", "expired"]
MAX_ATTEMPTS = 3
"""How often workers begin a turn for the same decision by themselves, when others died over it."""


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval as it stands; ``turn`` is the one that asked, by its key, and ``turn_id`` its public id.

    ``is_head``: that turn is the newest of its conversation. An approval that was not decided while it was is
    ``expired``, and so is one that was approved, but never taken up because another was not decided.
    ``decision`` is what was decided, whatever came of it. ``run_in`` is the turn that ran the call, or was about to;
    ``result`` what it gave, if that is known.
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
    decision: Word | None = None
    resumed_turn_id: str | None = None
    run_in: str | None = None
    result: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the call can still come to be run."""
        return self.is_head and self.run_in is None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about one approval."""

    approval_id: str
    is_approved: bool
    by: DecidedBy
    decided_at: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """What the beginning of a turn does to the approvals of ``turn``, which it goes on from.

    Nothing is written unless they stand as they were read: ``turn`` is the head, the decisions were ``stood`` (by id;
    None for those that were open), and the turn that had taken them up was ``seen`` (a public id, or None). With
    ``awaits_others``, the turn begins only when no approval is left undecided; the decision is written all the same.
    ``is_unattended`` turns are begun again by others when their worker dies.
    """

    turn: int
    decisions: Sequence[Decision]
    stood: Mapping[str, Word | None]
    seen: str | None
    awaits_others: bool = False
    is_unattended: bool = False


class ApprovalsMoved(Exception):
    """The approvals no longer stand as they were read; nothing was written."""


class Approvals(Protocol):
    """The store, as approvals need it."""

    async def find(self, caller: str, approval_id: str) -> Approval | None:
        """Return the approval; None also when the answer of the turn that asked was deleted."""
        ...

    async def page(
        self,
        caller: str,
        *,
        status: ApprovalStatus | None,
        conversation_id: str | None,
        after: str | None,
        limit: int,
        order: Order,
        end_user: str = "",
    ) -> Page[Approval] | None:
        """Return the caller's approvals by when they were asked for; None when there is no ``after``."""
        ...

    async def of_turn(self, turn: int) -> Sequence[Approval]:
        """Return the approvals that the turn asked for, in the order of its calls."""
        ...

    async def circumstances(self, turn: int) -> bytes | None:
        """Return what a turn needs that goes on behind this one without a request; None when it asked for nothing."""
        ...

    async def resume(self, turn: NewTurn, resume: Resume) -> Begun | None:
        """Decide, and begin the turn; None when it awaits others (see ``Resume``). Doing it again changes nothing.

        Raises:
            ApprovalsMoved: Nothing was written.
            ConversationBusy: Another turn of the conversation is running; nothing was written.
            IdempotencyKeyTaken: Nothing was written.
        """
        ...

    async def begin_run(self, approval_id: str, turn_id: str) -> bool:
        """Note that the turn runs the approved call; False when it is not this turn's to run, or may have been run."""
        ...

    async def end_run(self, approval_id: str, turn_id: str, result: str) -> None:
        """Note what the call gave that this turn has run."""
        ...

    async def lost(self) -> Sequence[tuple[str, str]]:
        """Return (caller, id of an approval) for unattended turns whose worker died before their end was written.

        One for each of them, and only while it may be begun again (``MAX_ATTEMPTS``) and its approvals are open.
        """
        ...
