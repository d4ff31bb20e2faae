"""Server-sent events (HTML Standard, 9.2): framing and event ids.

Frames of chat completions have ids only if the client asks for them: some clients read every line as JSON. The id of a
frame is the position of its turn event; further frames of the same event have the ids ``position.1``,
``position.2`` and so on, so that a client that received only some of them resumes after the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from proxy.errors import InvalidRequest

# Comments (HTML Standard, 9.2.6). The blank line is for readers that split a stream at blank lines and ignore or reject
# parts that do not begin with "data:", such as Dify's: without it they would lose the next frame.
PING = b": ping\n\n"
# Between frames with ids there is no blank line: openai-python keeps the last event id, so a blank line would dispatch
# an event with empty data, which is not JSON (openai/_streaming.py, ``SSEDecoder.decode``).
PING_BETWEEN_IDS = b": ping\n"
DONE = b"data: [DONE]\n\n"

Position = tuple[int, int]
"""Position of the event in the log, and index of the frame within the event."""
START: Position = (0, 0)

_POSITION = re.compile(r"(\d{1,12})(?:\.(\d{1,4}))?", re.ASCII)


# SSE parsers based on ``str.splitlines`` (httpx, requests) also split lines at these characters.
_SEPARATORS = (
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
    ("\u0085".encode(), b"\\u0085"),
)


def one_line(data: bytes) -> bytes:
    """Return JSON text with the Unicode line separators escaped."""
    if data.isascii():
        return data
    for separator, escaped in _SEPARATORS:
        data = data.replace(separator, escaped)
    return data


def pieces(text: str, size: int = 4000) -> Iterator[str]:
    """Yield a text in pieces, for clients that take each read for whole frames: a long frame arrives in several."""
    for start in range(0, len(text), size):
        yield text[start : start + size]


def data_frames(parts: Iterable[bytes]) -> bytes:
    """Return several events without ids, each of whose ``parts`` is JSON text."""
    data = b"\n\ndata: ".join(parts)
    return b"data: %b\n\n" % (data if data.isascii() else one_line(data))


def frame(data: bytes, position: int, part: int = 0) -> bytes:
    """Return one event with an id; ``data`` is JSON text."""
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
    """Parse the position that a client has seen last.

    Raises:
        InvalidRequest: The value is not an event id.
    """
    found = _POSITION.fullmatch(value.strip())
    if found is None:
        raise InvalidRequest(
            f"Invalid '{param}': expected the id of a frame, as in '12' or '12.1'.",
            param=param,
            code="invalid_value",
        )
    return int(found[1]), int(found[2] or 0)
