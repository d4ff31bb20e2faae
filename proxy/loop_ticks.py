"""Common times for the recurring work of the event loop: a loop that waits wakes up once for all of it.

A wake-up of an idle process takes several times as long as the work itself: it finds an idle core and empty caches.
"""

from __future__ import annotations

import math

TICK = 0.125
"""Seconds between two of these times."""
_EARLY = 0.002
"""Seconds by which a timer can ring too early: those of libuv have a resolution of a millisecond."""


def next_tick(now: float, ticks: int = 1) -> float:
    """Return the time of the tick that is ``ticks`` behind the last one, by the clock of the event loop.

    It is at most ``ticks * TICK`` seconds later than ``now``, apart from the resolution of timers.
    """
    return (math.floor((now + _EARLY) / TICK) + ticks) * TICK
