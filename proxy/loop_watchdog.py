"""Report when the event loop is blocked, with the stack of the code that blocks it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

THRESHOLD = 0.25
"""Seconds that a heartbeat can be late before the loop counts as blocked."""
_INTERVAL = 0.05
_MAX_FRAMES = 40
_JOIN_TIMEOUT = 1.0

logger = logging.getLogger(__name__)


class LoopWatchdog:
    """A heartbeat in the event loop, and a daemon thread that checks it.

    Every block longer than the threshold plus one interval is reported, and none shorter than the threshold. The
    report has files, lines and function names, and no values. While C code holds the GIL the thread cannot run;
    then the stack is the one at which that code returned.
    """

    def __init__(self, *, on_blocked: Callable[[], None] | None = None, threshold: float = THRESHOLD) -> None:
        """``on_blocked`` is called once per block, in the thread of the watchdog."""
        self._on_blocked = on_blocked
        self._threshold = threshold
        self._due = 0.0
        self._loop_thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)

    def start(self) -> None:
        """Watch the running event loop; called in the loop, once."""
        self._loop_thread = threading.get_ident()
        self._beat(asyncio.get_running_loop())
        self._thread.start()

    def close(self) -> None:
        """Stop the heartbeat and the thread; called in the loop."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        # The thread ends at once, unless its log line cannot be written: it is not waited for any longer.
        self._thread.join(_JOIN_TIMEOUT)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.monotonic() + _INTERVAL
        self._timer = loop.call_later(_INTERVAL, self._beat, loop)

    def _watch(self) -> None:
        reported: float | None = None
        while not self._stopped.wait(_INTERVAL):
            due = self._due
            if reported is not None and due != reported:
                logger.warning(
                    "the event loop is no longer blocked",
                    extra={"seconds": round(due - _INTERVAL - reported, 3)},
                )
                reported = None
            late = time.monotonic() - due
            if late > self._threshold and reported is None:
                reported = due
                self._report(late)

    def _report(self, late: float) -> None:
        stack = _stack(sys._current_frames().get(self._loop_thread))
        logger.warning("the event loop is blocked", extra={"seconds": round(late, 3), "stack": stack})
        if self._on_blocked is not None:
            self._on_blocked()


def _stack(frame: FrameType | None) -> list[str]:
    """Return the innermost frames as ``file:line function``, the innermost one last."""
    lines: list[str] = []
    while frame is not None and len(lines) < _MAX_FRAMES:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}")
        frame = frame.f_back
    return lines[::-1]
