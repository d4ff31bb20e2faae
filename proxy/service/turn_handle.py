"""The turn that a request reads: begun by it, or by an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from proxy.turns.live import LiveTurn
from proxy.turns.request import Match


class TurnHandle(Struct, frozen=True):
    """A turn to read."""

    live: LiveTurn
    turn_id: str
    created_at: float
    conversation_id: str
    match: Match
    agent: str
    stored_options: bytes | None = None
    """Options of the earlier request that began the turn, as JSON; None if this request began it."""
    ignored: Sequence[str] = ()
    """Parameters of the request that have no effect on this team."""

    @property
    def is_replayed(self) -> bool:
        """Whether an earlier request began the turn."""
        return self.stored_options is not None
