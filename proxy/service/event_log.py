"""The logger ``stream_events``: one line for each event of the turns of this worker.

The lines contain the length of text and not the text, unless the operator enables it.
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
"""By type of frame, the keys whose values are text of users, agents or tools."""

Listener = Callable[[Entry], None]


class EventLog:
    """Writes the lines, at ``level``."""

    def __init__(self, *, with_text: bool = False, level: int = logging.DEBUG) -> None:
        self._with_text = with_text
        self._level = level

    def listener(self, live: LiveTurn) -> Listener | None:
        """Return a function for every entry of a turn, from the first; None if the log is off."""
        if not logger.isEnabledFor(self._level):
            return None
        feed = Feed(live.turn_id)

        def log(entry: Entry) -> None:
            for frame in feed.frames(entry):
                logger.log(self._level, self._line(frame))

        return log

    def _line(self, frame: FeedFrame) -> str:
        data = frame.data if self._with_text else _without_text(frame)
        place = f"{frame.turn_id} {frame.position}.{frame.part} {frame.type} agent={frame.agent}"
        # JSON escapes line breaks: text must not begin a line.
        return f"{place} {encode(data).decode()}"


def _without_text(frame: FeedFrame) -> dict[str, Any]:
    return _stripped(frame.type, frame.data)


def _stripped(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    if kind in ("delegate.event", "member.event"):
        inner = data["event"]
        return {**data, "event": {**inner, "data": _stripped(inner["type"], inner["data"])}}
    written = _WRITTEN.get(kind, ())
    return {
        name if name not in written else f"{name}_length": value if name not in written else len(value)
        for name, value in data.items()
    }
