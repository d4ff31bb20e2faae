"""Thread pool for blocking tools, apart from the default executor, which asyncio needs for DNS and files.

The threads are daemons. ``concurrent.futures`` joins its threads at exit, so a hanging tool would prevent the process
from ending; a daemon thread ends with the process.
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
    """A function to run, and the future for its outcome."""

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
            # As a value: a future cannot have StopIteration as its exception (``asyncio.Future.set_exception``).
            self.outcome.set_result((None, error))
        else:
            self.outcome.set_result((result, None))


class ToolThreads:
    """At most ``max_threads`` threads, started when needed. The creator calls ``close``.

    A function that does not return occupies its thread permanently; further calls wait for another one.
    """

    def __init__(self, max_threads: int = 32) -> None:
        self._max_threads = max_threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    async def run(self, function: Callable[[], Result]) -> Result:
        """Run ``function`` in a thread with a copy of the current context; return its result or raise its exception.

        If the call is cancelled before a thread is free, the function does not run. If it is cancelled later, the
        function continues and its result is discarded.
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
        """Accept no more functions. Idle threads end now, busy ones after their function."""
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
            del job  # release the result, which can be large, before waiting for the next job
            self._idle.release()
