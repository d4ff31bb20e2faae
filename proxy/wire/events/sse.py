"""Server-sent events: framing and positions.

A frame carries the position of the event it was made of; further frames of the same event are ``position.1``,
``position.2`` …, so that a client which saw only some of them goes on exactly where it was.
"""

from __future__ import annotations

import re

from proxy.errors import InvalidRequest

# One line without a blank one after it: it glues to the next event. An empty event, after frames with ids, makes the
# official Python client raise.
PING = b": ping\n"
DONE = b"data: [DONE]\n\n"

Position = tuple[int, int]
"""An event's place in the log and the frame's place within the event."""
START: Position = (0, 0)

_POSITION = re.compile(r"(\d{1,12})(?:\.(\d{1,4}))?", re.ASCII)


# Readers built on Python's splitlines (httpx, requests) end a line at these too.
_SEPARATORS = (
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
    ("\u0085".encode(), b"\\u0085"),
)


def one_line(data: bytes) -> bytes:
    """Return JSON text without anything that a reader could take for the end of a line."""
    for separator, escaped in _SEPARATORS:
        if separator in data:
            data = data.replace(separator, escaped)
    return data


def frame(data: bytes, position: int, part: int = 0) -> bytes:
    """Return one event; ``data`` is JSON text."""
    if not data.isascii():
        data = one_line(data)
    if part:
        return b"id: %d.%d\ndata: %b\n\n" % (position, part, data)
    return b"id: %d\ndata: %b\n\n" % (position, data)


def named(kind: str, data: bytes) -> bytes:
    """Return one event with a name and without an id; ``data`` is JSON text."""
    if not data.isascii():
        data = one_line(data)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def position(value: str, *, param: str = "Last-Event-ID") -> Position:
    """Return the position that a client says it has seen last.

    Raises:
        InvalidRequest: It is none.
    """
    found = _POSITION.fullmatch(value.strip())
    if found is None:
        raise InvalidRequest(
            f"Invalid '{param}': expected the id of a frame, as in '12' or '12.1'.",
            param=param,
            code="invalid_value",
        )
    return int(found[1]), int(found[2] or 0)
