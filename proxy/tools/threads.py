"""Threads for Python functions that block, so that a slow tool never delays the loop's own (DNS, files).

They are daemons. ``concurrent.futures`` joins its threads when the process ends, so that one hanging tool
would keep a stopped server alive for ever; here, a thread that is still busy then ends with the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")

_Outcome = tuple[Any, BaseException | None]


class _Job:
    """A function, and where its outcome is awaited."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.outcome: Future[_Outcome] = Future()
        self._function = function
        self._context = contextvars.copy_context()

    def run(self) -> None:
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            result = self._context.run(self._function)
        except BaseException as error:  # noqa: BLE001  raised again in the task that waits
            # Handed over as a value: as the future's exception, a StopIteration would never reach the waiter.
            self.outcome.set_result((None, error))
        else:
            self.outcome.set_result((result, None))


class ToolThreads:
    """At most ``max_threads`` threads, started when needed; whoever makes it closes it.

    A function that does not return occupies its thread for good, and further calls wait for another one.
    """

    def __init__(self, max_threads: int = 32) -> None:
        self._max_threads = max_threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    async def run(self, function: Callable[[], Result]) -> Result:
        """Run ``function`` in a thread, in a copy of the current context, and return or raise what it does.

        Cancelled while it waits for a thread, it never runs; cancelled later, it runs on, unheard.
        """
        job = _Job(function)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the tool threads are closed")
            self._jobs.put(job)
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._max_threads:
                self._start()
        result, error = await asyncio.wrap_future(job.outcome)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """Take no more functions; idle threads end now, busy ones after what they run."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for _ in self._threads:
                self._jobs.put(None)

    def _start(self) -> None:
        name = f"tool-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # the result may be large, and this thread may sit idle for long
            self._idle.release()
