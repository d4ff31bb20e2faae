"""Readers that resume a stream of a turn which another worker has taken over meanwhile.

The positions of the events after a takeover begin at the next million (``events.TAKEOVER_POSITIONS``). The second
worker continues from a checkpoint; a reader can have events of the first worker that are newer.
"""

from __future__ import annotations

from typing import Protocol

from proxy.errors import TurnTakenOver
from proxy.events import TAKEOVER_POSITIONS, Entry
from proxy.messages import Usage
from proxy.wire.errors import failed_event
from proxy.wire.events import sse

CLOSING_POSITION = 1_000_000_000
"""Positions from here on are those of closing events without the events before them."""


class FrameEncoder(Protocol):
    """Encodes entries as frames."""

    def encode(self, entry: Entry) -> bytes:
        """Return the frames of an entry."""
        ...


def lost_from(position: int, seen: int) -> int | None:
    """Return the position after which events were lost, for a reader that has seen ``seen`` and gets ``position`` next.

    None if it has seen none of the lost events.
    """
    if position >= CLOSING_POSITION or position // TAKEOVER_POSITIONS <= seen // TAKEOVER_POSITIONS:
        return None
    checkpoint = position % TAKEOVER_POSITIONS - 1
    return checkpoint if seen % TAKEOVER_POSITIONS > checkpoint else None


class ResumedEncoder:
    """Ends a resumed stream with an error if its reader has text that the turn does not have any more."""

    def __init__(self, encoder: FrameEncoder, *, after: sse.Position) -> None:
        self._encoder = encoder
        self._seen = after[0]
        self._is_over = False

    def encode(self, entry: Entry) -> bytes:
        """Return the frames of an entry."""
        if self._is_over:
            return b""
        if entry.position > self._seen:
            if self._seen and lost_from(entry.position, self._seen) is not None:
                self._is_over = True
                failed = failed_event(TurnTakenOver(), Usage(), ran_effects=True)
                return self._encoder.encode(Entry(CLOSING_POSITION, failed, entry.time))
            self._seen = entry.position
        return self._encoder.encode(entry)
