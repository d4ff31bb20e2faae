"""Lines of a stream, each up to a limit: a longer one costs no memory, and is told in its place."""

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


class LongLine:
    """A line that was longer than the limit: how long, and how it began and ended."""

    def __init__(self, beginning: bytes) -> None:
        self.size = len(beginning)
        self.beginning = beginning[:_ENDS]
        self.end = beginning[-_ENDS:]

    def add(self, part: bytes) -> None:
        """Take over more of the line."""
        self.size += len(part)
        self.end = (self.end + part[-_ENDS:])[-_ENDS:]


class Lines:
    """Splits chunks into lines, without their ends."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._long: LongLine | None = None

    @property
    def skipped(self) -> int:
        """How many bytes there are so far of a line that is too long, and not at its end; 0 when none is."""
        return self._long.size if self._long is not None else 0

    def feed(self, chunk: bytes) -> Iterator[bytes | LongLine]:
        """Yield the lines that the chunk ends."""
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            yield self._take()
        self._add(rest)

    def _add(self, part: bytes) -> None:
        if self._long is not None:
            self._long.add(part)
            return
        self._parts.append(part)
        self._size += len(part)
        if self._size > self._max_bytes:
            self._long = LongLine(b"".join(self._parts))
            self._parts = []

    def _take(self) -> bytes | LongLine:
        line = self._long if self._long is not None else b"".join(self._parts)
        self._parts, self._size, self._long = [], 0, None
        return line


def answered_request(line: bytes | LongLine) -> int | None:
    """Return the id of the request that a line answers, for a line that cannot be read as JSON.

    It is looked for where it is a member of the message itself: some libraries write it first, before the result,
    others last, behind it. None when it stands elsewhere, or the line is something else.
    """
    beginning, end = (line[:_ENDS], line[-_ENDS:]) if isinstance(line, bytes) else (line.beginning, line.end)
    found = _ID_AT_BEGINNING.match(beginning)
    if found is None and _OUTCOME_AT_BEGINNING.match(beginning):
        found = _ID_AT_END.search(end)
    return int(found[1]) if found else None
