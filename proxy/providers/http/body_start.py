"""The first bytes of a body, which distinguish JSON from an event stream: gateways label either as the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

_BLANK = b"\xef\xbb\xbf \t\r\n"
"""White space and a byte order mark."""
_LONGEST_BLANK_START = 4096
_EVENT_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


async def first_bytes(read: Callable[[], Awaitable[bytes]], start: bytes = b"") -> bytes:
    """Return the first bytes up to something that is not blank.

    ``read`` returns b"" at the end of the body. ``start`` was read before.
    """
    while not start.lstrip(_BLANK) and len(start) < _LONGEST_BLANK_START:
        received = await read()
        start += received
        if not received:
            break
    return start


def is_json(start: bytes) -> bool:
    """Whether a body that starts so is a JSON object or array."""
    return start.lstrip(_BLANK)[:1] in (b"{", b"[")


def is_event_stream(start: bytes) -> bool:
    """Whether a body that starts so is an event stream (HTML Standard 9.2.6)."""
    return start.lstrip(_BLANK).startswith(_EVENT_STARTS)
