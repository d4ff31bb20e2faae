"""Report when the event loop is blocked, with the stack of the code that blocks it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

from proxy.loop_ticks import TICK, next_tick

THRESHOLD = 0.25
"""Seconds of blocking above which a block is reported."""
INTERVAL = TICK
"""Seconds between two heartbeats, and so the error of the measurement: a block began at any time after the last one.

Eight heartbeats and four checks per second take 0.1 % of a CPU."""
_RECHECK = 0.05
_MAX_FRAMES = 40
_JOIN_TIMEOUT = 1.0

logger = logging.getLogger(__name__)


class LoopWatchdog:
    """A heartbeat in the event loop, and a daemon thread that checks it.

    Every block longer than ``threshold`` is reported, and none that is shorter by ``INTERVAL``. The report has files,
    lines and function names, and no values. While C code holds the GIL the thread cannot run: if the block has ended
    when it runs again, the report has no stack, because the stack would be that of other code.
    """

    def __init__(
        self,
        *,
        on_blocked: Callable[[], None] | None = None,
        threshold: float = THRESHOLD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_blocked`` is called once per block, in the thread of the watchdog."""
        self._on_blocked = on_blocked
        self._threshold = threshold
        self._clock = clock
        self._last = 0.0
        self._cpu = 0.0
        # Blocks that have ended, as time of the heartbeat before, seconds and CPU seconds: the thread may have missed
        # them.
        self._ended: deque[tuple[float, float, float]] = deque(maxlen=100)
        self._reported: float | None = None
        self._loop_thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)

    def start(self) -> None:
        """Watch the running event loop; called in the loop, once."""
        self._loop_thread = threading.get_ident()
        self._last, self._cpu = self._clock(), time.thread_time()
        self._schedule(asyncio.get_running_loop())
        self._thread.start()

    def close(self) -> None:
        """Stop the heartbeat and the thread; called in the loop."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        # The thread ends at once, unless its log line cannot be written: it is not waited for any longer.
        self._thread.join(_JOIN_TIMEOUT)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_at(next_tick(loop.time()), self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.beat()
        self._schedule(loop)

    def beat(self) -> None:
        """Note that the event loop runs; the loop calls this every ``INTERVAL`` seconds."""
        last, now = self._last, self._clock()
        cpu, self._cpu = self._cpu, time.thread_time()
        if now - last > self._threshold:
            self._ended.append((last, now - last, self._cpu - cpu))
        self._last = now

    def check(self) -> float:
        """Report blocks that last or have ended; return the seconds until the next check is needed.

        The thread calls this.
        """
        # Read before the list: a block that ends in between is in the list at the next check.
        last = self._last
        while self._ended:
            began, seconds, cpu = self._ended.popleft()
            if began != self._reported:
                self._report(seconds, [])
            # Little CPU time means that the loop waited: for a lock, a disk, or for the CPU of a busy machine.
            facts = {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}
            logger.warning("the event loop is no longer blocked", extra=facts)
        late = self._clock() - last
        if late <= self._threshold:
            return self._threshold - late + 0.001
        # A heartbeat may have come since; the next check finds that block in the list.
        if last == self._last and last != self._reported:
            self._reported = last
            self._report(late, _stack(sys._current_frames().get(self._loop_thread)))
        return _RECHECK

    def _watch(self) -> None:
        wait = self._threshold
        while not self._stopped.wait(wait):
            wait = self.check()

    def _report(self, late: float, stack: list[str]) -> None:
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
