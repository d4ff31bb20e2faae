"""Approvals as they leave, and decisions about them as they come."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from proxy.events import Decision
from proxy.wire.validation.body_decoder import BodyDecoder
from proxy.wire.validation.errors import not_among
from proxy.wire.validation.query_params import Pairs

MAX_REASON = 1000
"""Characters of what a person says about a decision."""
MAX_SHOWN = 1000
"""Characters of arguments that are told, as in events."""
_STATUSES = ("pending", "approved", "refused", "expired", "all")
_Reason = Annotated[str, Meta(max_length=MAX_REASON)] | None


class DecisionBody(Struct, frozen=True, kw_only=True):
    """A decision about the approval that the path names."""

    decision: Decision
    reason: _Reason = None


class NamedDecisionBody(DecisionBody, frozen=True, kw_only=True):
    """A decision that says about which approval."""

    approval_id: Annotated[str, Meta(min_length=1)]


DECISION = BodyDecoder(DecisionBody)
NAMED_DECISION = BodyDecoder(NamedDecisionBody)


class ApprovalBody(Struct, frozen=True):
    """An approval; times are in seconds since the epoch."""

    id: str
    object: Literal["approval"]
    status: Literal["pending", "approved", "refused", "expired"]
    conversation_id: str
    turn_id: str
    model: str
    agent: str
    tool: str
    arguments: str
    created_at: int
    decided_at: int | None
    reason: str | None
    resumed_turn_id: str | None


def is_approval(item_id: str) -> bool:
    """Whether an id is that of an approval."""
    return item_id.startswith("appr_")


def wanted_status(pairs: Pairs) -> Any:
    """Return the status that a list is to be of; None for any. The last value counts, and an empty one for none.

    Raises:
        InvalidRequest: There is no such status.
    """
    given = next((value for name, value in reversed(pairs) if name == "status" and value), "pending")
    if given not in _STATUSES:
        raise not_among("status", given, _STATUSES)
    return None if given == "all" else given
