"""Turns to put into a history, with as little said as a test needs."""

from __future__ import annotations

import itertools
from typing import Any

from proxy.approvals.repository import Approvals
from proxy.messages import AssistantMessage, Item, UserMessage
from proxy.turns.records import NewTurn, TurnEnd, TurnMatch
from proxy.turns.repository import TurnRepository
from tests.fakes.store.approvals import MemoryApprovals
from tests.fakes.store.turns import MemoryHistory

_numbers = itertools.count(1)


def new_turn(conversation: str = "conv_a", **changes: Any) -> NewTurn:
    """A turn of alice's that worker w1 runs from second 100 to 130."""
    given: dict[str, Any] = {
        "id": f"chatcmpl-{next(_numbers)}",
        "caller": "alice",
        "end_user": "",
        "conversation_id": conversation,
        "team": "acme",
        "model": "acme-support",
        "parent": None,
        "agent": "triage",
        "input": [Item(UserMessage("Hi."))],
        "is_stored": True,
        "is_listed": False,
        "metadata": {},
        "options": b"{}",
        "worker": "w1",
        "lease_until": 130.0,
        "created_at": 100.0,
    }
    return NewTurn(**given | changes)


def the_end(turn: int, **changes: Any) -> TurnEnd:
    """The turn completed in second 110 with one answer of sales'."""
    given: dict[str, Any] = {
        "turn": turn,
        "status": "completed",
        "is_history": True,
        "agent": "sales",
        "items": [Item(AssistantMessage("Hello!"), "sales")],
        "uses": [],
        "finished_at": 110.0,
        "finish_reason": "stop",
    }
    return TurnEnd(**given | changes)


def approvals_of(history: Any) -> Approvals:
    """The approvals stored with the turns, in any implementation."""
    if isinstance(history, MemoryHistory):
        return MemoryApprovals(history)
    found: Approvals = history.approvals
    return found


async def place_of(
    history: TurnRepository, fingerprint: bytes, *, conversation: int | None = None
) -> TurnMatch | None:
    """The place of the turn with the fingerprint."""
    found = await history.find_longest([(0, fingerprint)], None, conversation=conversation)
    return found.place
