"""The logger ``stream_events``: one line for each event of the turns that run here, at DEBUG.

What people, agents and tools wrote stays out, unless that is switched on; of a text its length is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from proxy.events import Entry
from proxy.turns.live import LiveTurn
from proxy.wire.chat.response_models import encode
from proxy.wire.events.feed import DETAILS, Feed, FeedFrame

logger = logging.getLogger("stream_events")

_WRITTEN = {
    **DETAILS,
    "text.delta": ("text",),
    "reasoning.delta": ("text",),
    "refusal.delta": ("text",),
    "client_tool.arguments": ("arguments",),
    "turn.failed": ("message",),
}
"""By type of frame, the keys that hold what somebody wrote."""

Listener = Callable[[Entry], None]


class EventLog:
    """Writes the lines."""

    def __init__(self, *, with_text: bool = False) -> None:
        self._with_text = with_text

    def listener(self, live: LiveTurn) -> Listener | None:
        """Return what is to be told every entry of a turn, from the first; None when nobody reads the log."""
        if not logger.isEnabledFor(logging.DEBUG):
            return None
        feed = Feed(live.turn_id)

        def log(entry: Entry) -> None:
            for frame in feed.frames(entry):
                logger.debug(self._line(frame))

        return log

    def _line(self, frame: FeedFrame) -> str:
        data = frame.data if self._with_text else _without_text(frame)
        place = f"{frame.turn_id} {frame.position}.{frame.part} {frame.type} agent={frame.agent}"
        # JSON, so that nothing that somebody wrote begins a line of its own.
        return f"{place} {encode(data).decode()}"


def _without_text(frame: FeedFrame) -> dict[str, Any]:
    written = _WRITTEN.get(frame.type, ())
    return {
        name if name not in written else f"{name}_length": value if name not in written else len(value)
        for name, value in frame.data.items()
    }
