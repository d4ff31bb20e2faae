"""Split a byte stream into lines with a size limit; a line over the limit is discarded and reported in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator

_ENDS = 256
_OUTCOME = rb'"(?:result|error)"\s*:'
_ID_AT_BEGINNING = re.compile(
    rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,15})\s*,\s*' + _OUTCOME
)
_OUTCOME_AT_BEGINNING = re.compile(rb"\s*\{\s*" + _OUTCOME)
_ID_AT_END = re.compile(rb',\s*"id"\s*:\s*(\d{1,15})\s*\}\s*$')


class OversizedLine:
    """A line over the limit: its size, and its first and last ``_ENDS`` bytes."""

    def __init__(self, beginning: bytes) -> None:
        self.size = len(beginning)
        self.beginning = beginning[:_ENDS]
        self.end = beginning[-_ENDS:]

    def add(self, part: bytes) -> None:
        """Add the next part of the line."""
        self.size += len(part)
        self.end = (self.end + part[-_ENDS:])[-_ENDS:]


class LineSplitter:
    """Splits chunks into lines without their line feeds."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._long: OversizedLine | None = None

    @property
    def skipped(self) -> int:
        """Bytes received so far of an unfinished line over the limit; 0 if there is none."""
        return self._long.size if self._long is not None else 0

    def feed(self, chunk: bytes) -> Iterator[bytes | OversizedLine]:
        """Yield the lines completed by the chunk."""
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            yield self._finish_line()
        self._add(rest)

    def _add(self, part: bytes) -> None:
        if self._long is not None:
            self._long.add(part)
            return
        self._parts.append(part)
        self._size += len(part)
        if self._size > self._max_bytes:
            self._long = OversizedLine(b"".join(self._parts))
            self._parts = []

    def _finish_line(self) -> bytes | OversizedLine:
        line = self._long if self._long is not None else b"".join(self._parts)
        self._parts, self._size, self._long = [], 0, None
        return line


def find_request_id(line: bytes | OversizedLine) -> int | None:
    """Return the request id of a JSON-RPC response that cannot be parsed as JSON.

    Only the positions where ``id`` is certainly a member of the response itself are searched: before the result and
    at the end, as libraries write it. None if it is not there or the line is not a response.
    """
    beginning, end = (line[:_ENDS], line[-_ENDS:]) if isinstance(line, bytes) else (line.beginning, line.end)
    found = _ID_AT_BEGINNING.match(beginning)
    if found is None and _OUTCOME_AT_BEGINNING.match(beginning):
        found = _ID_AT_END.search(end)
    return int(found[1]) if found else None
