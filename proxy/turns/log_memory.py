"""Estimated memory of the logs of all turns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

ENTRY_WEIGHT = 256
"""Estimated memory of an entry without its text, in bytes."""


class CountedLog(Protocol):
    """A log whose bytes are counted."""

    @property
    def unread(self) -> int:
        """Characters that the slowest reader has not read."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether the writer waits for a slow reader."""
        ...

    def cut(self) -> None:
        """Drop the entries that are stored."""
        ...

    def ignore_readers(self) -> None:
        """Let the writer finish without waiting for readers."""
        ...


class LogMemory:
    """Estimated bytes of all logs that are registered or read. ``limit`` is None for no limit."""

    __slots__ = ("_limit", "is_exhausted", "logs", "on_exhausted", "used")

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit if limit is not None else sys.maxsize
        self.used = 0
        self.is_exhausted = False
        """Whether the logs have reached the limit."""
        self.logs: set[CountedLog] = set()
        """The logs that are counted."""
        self.on_exhausted: Callable[[], None] | None = None
        """Called when the limit is reached, and when a writer has to wait for readers while it is reached."""

    def add(self, count: int) -> None:
        """Count more bytes, or fewer if ``count`` is negative."""
        self.used = used = self.used + count
        if (used >= self._limit) is not self.is_exhausted:
            self.is_exhausted = not self.is_exhausted
            self.relieve()

    def relieve(self) -> None:
        """Call ``on_exhausted`` if the limit is reached."""
        if self.on_exhausted is not None and self.is_exhausted:
            self.on_exhausted()
