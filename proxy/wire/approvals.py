"""Response objects of approvals, and request bodies of decisions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from proxy.events import Decision
from proxy.wire.validation.body_decoder import BodyDecoder
from proxy.wire.validation.errors import not_among
from proxy.wire.validation.query_params import Pairs

MAX_REASON = 1000
"""Maximum length of the reason of a decision, in characters."""
MAX_SHOWN = 1000
"""Maximum length of arguments in responses, in characters; the same as in events."""
_STATUSES = ("pending", "approved", "refused", "expired", "all")
_Reason = Annotated[str, Meta(max_length=MAX_REASON)] | None


class ApprovalDecision(Struct, frozen=True):
    """A decision on an approval by its id, in a request to any API."""

    approval_id: str
    is_approved: bool
    reason: str | None = None


class DecisionBody(Struct, frozen=True, kw_only=True):
    """A decision on the approval in the path."""

    decision: Decision
    reason: _Reason = None


class NamedDecisionBody(DecisionBody, frozen=True, kw_only=True):
    """A decision with the id of its approval."""

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
    """Return whether an id is the id of an approval."""
    return item_id.startswith("appr_")


def status_filter(pairs: Pairs) -> Any:
    """Return the query parameter ``status``, by default ``pending``; None for ``all``.

    The last non-empty value applies.

    Raises:
        InvalidRequest: The status is unknown.
    """
    given = next((value for name, value in reversed(pairs) if name == "status" and value), "pending")
    if given not in _STATUSES:
        raise not_among("status", given, _STATUSES)
    return None if given == "all" else given
