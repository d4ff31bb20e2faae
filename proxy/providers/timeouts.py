"""How long a model is waited for, and how much of its answer is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import Struct


class ModelLimits(Struct, frozen=True):
    """Bounds of one model call; times in seconds."""

    connect: float = 5.0
    """Name, connection and TLS."""
    first_token: float = 60.0
    """From the request to the first piece of an answer; comments and empty chunks do not count."""
    idle: float = 60.0
    """Between two reads after that."""
    usage: float = 2.0
    """For the usage, and the end of the stream, after a finish reason."""
    answer_bytes: int = 8 * 1024 * 1024
    """Text, reasoning and arguments together, in characters; a whole JSON answer in bytes."""
    line_bytes: int = 1024 * 1024
    """One line of an event stream."""


def _do_nothing() -> None:
    pass


class Alarm:
    """Wakes a reader that waits for too long.

    One timer serves a whole stream: setting a later deadline only stores a number, where ``asyncio.timeout``
    for every read would make and cancel a timer for each chunk.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = wake
        self.deadline: float | None = None
        """By the clock of the loop; None while nothing is waited for. A later one can be stored here without a call."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        """When the timer fires."""

    def set(self, deadline: float) -> None:
        """Wake at ``deadline`` (the loop's clock) unless set again, paused or stopped before."""
        self.deadline = deadline
        if self._timer is None:
            self._start(deadline)
        elif deadline < self._due:
            self._timer.cancel()
            self._start(deadline)

    def _start(self, due: float) -> None:
        self._due = due
        self._timer = self._loop.call_at(due, self._ring)

    def pause(self) -> None:
        """Stop the countdown until ``set`` is called."""
        self.deadline = None

    def stop(self) -> None:
        """Free the timer; the alarm is not used again."""
        self.deadline = None
        # The function refers to the owner of this alarm: as a cycle, both would wait for the garbage collector.
        self._wake = _do_nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self.deadline is None:
            return
        if self._loop.time() >= self.deadline:
            self._wake()
        else:
            self._start(self.deadline)
