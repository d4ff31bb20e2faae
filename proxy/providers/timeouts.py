"""How long a model is waited for, and how much of its answer is read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from operator import attrgetter

from msgspec import Struct

_SEARCH_INTERVAL = 20e-6
"""Seconds between two searches, for each alarm that is searched. Searching one takes a fraction of a microsecond."""


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


_deadline: Callable[[Alarm], float] = attrgetter("deadline")


def _do_nothing() -> None:
    pass


class AlarmClock:
    """One timer for the alarms of all model calls of a session.

    A timer for each call would be created and cancelled with it. This one is set to the earliest deadline, and searches
    all alarms then: a few times a minute, because nearly all deadlines are moved or removed before. The time between
    two searches grows with the number of alarms, so that many deadlines in a row do not search all the time; an alarm
    can be late by that time.
    """

    def __init__(self) -> None:
        self.alarms: set[Alarm] = set()
        """Those that may ring; each adds and removes itself."""
        self.due = math.inf
        """When the timer rings."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self, due: float) -> None:
        """Set the timer, to the deadline of an alarm that is earlier than ``due``."""
        if self._timer is not None:
            self._timer.cancel()
        self.due = due
        self._timer = asyncio.get_running_loop().call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer, self.due = None, math.inf
        now = asyncio.get_running_loop().time()
        over = [alarm for alarm in self.alarms if alarm.deadline is None or alarm.deadline <= now]
        self.alarms.difference_update(over)
        if self.alarms:
            earliest = min(map(_deadline, self.alarms))
            self.start(max(earliest, now + len(self.alarms) * _SEARCH_INTERVAL))
        for alarm in over:
            alarm.ring()


class Alarm:
    """Wakes a reader that waits for too long.

    Setting a later deadline only stores a number, where ``asyncio.timeout`` for every read would make and cancel a
    timer for each chunk.
    """

    def __init__(self, clock: AlarmClock, wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self.deadline: float | None = None
        """By the clock of the loop; None while nothing is waited for. A later one can be stored here without a call."""

    def set(self, deadline: float) -> None:
        """Wake at ``deadline`` (the loop's clock) unless set again, paused or stopped before."""
        self.deadline = deadline
        clock = self._clock
        clock.alarms.add(self)
        if deadline < clock.due:
            clock.start(deadline)

    def pause(self) -> None:
        """Stop the countdown until ``set`` is called."""
        self.deadline = None

    def stop(self) -> None:
        """Remove the alarm from its clock; it is not used again."""
        self.deadline = None
        # The function refers to the owner of this alarm: as a cycle, both would wait for the garbage collector.
        self._wake = _do_nothing
        self._clock.alarms.discard(self)

    def ring(self) -> None:
        """Wake the reader, unless the alarm was paused or stopped since its deadline."""
        if self.deadline is not None:
            self.deadline = None
            self._wake()
