"""Several worker processes that accept connections from the same sockets, and the process that supervises them.

- The supervisor starts one worker first. An invalid configuration is therefore reported once.
- A worker that ends unexpectedly is replaced, after a delay that grows while workers end soon after their start.
- SIGHUP replaces the workers one after the other. An old worker is stopped when its replacement accepts connections;
  if the replacement does not start, the old worker stays and the restart ends.
- SIGTERM and SIGINT stop all workers gracefully. A second SIGINT ends running turns at once.
- Workers stop if the supervisor dies.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from proxy.connection_share import CLOSED, ConnectionCounts, SharedSockets

logger = logging.getLogger(__name__)

START_TIME_LIMIT = 60.0
"""Seconds in which a worker has to accept connections."""
STABLE_AFTER = 30.0
"""Seconds after which the end of a worker no longer delays its replacement."""
MAX_DELAY = 30.0
"""Seconds; the first replacement starts immediately, the next ones after 1, 2, 4 … seconds."""
PLACES = 8
"""Places for the connection counts of each worker: workers that were replaced can still run."""
CONFIGURATION_EXIT_CODE = 2
"""Exit code of a worker, and of the supervisor, for an invalid configuration."""

_context = multiprocessing.get_context("spawn")

Facts = Mapping[str, Any]
"""What a worker reports when it accepts connections."""
Target = Callable[[SharedSockets, Callable[[Facts], None]], None]
"""What a worker runs: it gets the sockets, and a function to call when it accepts connections. Must be picklable."""
State = Literal["starting", "ready", "stopping"]


@dataclass(eq=False)
class Worker:
    """One worker process. ``replaces`` is the worker to stop when this one is ready."""

    process: SpawnProcess
    channel: Connection
    started_at: float
    place: int
    """In the counts of connections."""
    replaces: Worker | None = None
    state: State = "starting"

    @property
    def is_one_of_count(self) -> bool:
        """Whether it serves, or will serve, and is not the replacement of a worker that still does."""
        replaces = self.replaces
        is_spare = replaces is not None and replaces.state != "stopping" and replaces.process.exitcode is None
        return self.state != "stopping" and not is_spare

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            if self.process.pid is not None and self.process.exitcode is None:
                os.kill(self.process.pid, number)

    def stop(self) -> None:
        """Let the worker finish its turns and end."""
        self.state = "stopping"
        self.signal(signal.SIGTERM)


@dataclass
class Supervisor:
    """Runs ``count`` workers until a signal ends it.

    ``on_ready`` is called once, with the facts of the first worker, when all workers accept connections.
    ``on_exit`` is called with the process id of each worker that ended, and ``on_restarted`` at the end of a rolling
    restart, with the problem or None. ``stop_time_limit`` is in seconds: workers that
    still run after it are killed.
    """

    target: Target
    sockets: Sequence[socket.socket]
    count: int
    stop_time_limit: float
    on_ready: Callable[[Facts], None]
    on_exit: Callable[[int], None] = lambda _: None
    on_restarted: Callable[[str | None], None] = lambda _: None
    _workers: list[Worker] = field(default_factory=list)
    _counts: ConnectionCounts = field(init=False)
    _facts: Facts | None = None
    _is_announced: bool = False
    _restarts: list[Worker] = field(default_factory=list)
    """Workers that are still to be replaced, after SIGHUP."""
    _early_exits: int = 0
    _start_at: float = 0.0
    _stop_deadline: float | None = None
    _exit_code: int = 0

    def __post_init__(self) -> None:
        self._counts = ConnectionCounts(self.count * PLACES)

    def run(self) -> int:
        """Supervise, and return the exit code: 0 after a signal, or that of a worker that could not start."""
        signals, wake = os.pipe()
        os.set_blocking(wake, False)
        numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        # Python writes the number of each signal to this file descriptor.
        old_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        try:
            self._start()
            while self._workers or self._stop_deadline is None:
                self._wait(signals)
                self._replace_missing()
            return self._exit_code
        finally:
            for worker in self._workers:
                worker.process.kill()
            signal.set_wakeup_fd(old_wake)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(signals)
            os.close(wake)

    def _start(self, *, replaces: Worker | None = None) -> None:
        receiving, sending = _context.Pipe()
        place = self._free_place()
        shared = SharedSockets(tuple(self.sockets), self._counts, place)
        process = _context.Process(target=_run_worker, args=(self.target, shared, sending), name="worker")
        process.start()
        # The worker has its own copy; this one would hide the end of the worker's.
        sending.close()
        self._workers.append(Worker(process, receiving, time.monotonic(), place, replaces))

    def _free_place(self) -> int:
        """Return a free place in the counts; if there is none, the last one, which is then shared."""
        taken = {worker.place for worker in self._workers}
        return next(
            (place for place in range(len(self._counts)) if place not in taken), len(self._counts) - 1
        )

    def _wait(self, signals: int) -> None:
        """Wait for a signal, a message or the end of a worker, or the next deadline; handle it."""
        sentinels = {worker.process.sentinel: worker for worker in self._workers}
        channels = {worker.channel: worker for worker in self._workers if worker.state == "starting"}
        ready = wait([signals, *sentinels, *channels], self._until_deadline())
        for one in ready:
            if one == signals:
                for number in os.read(signals, 64):
                    self._handle(number)
            elif isinstance(one, Connection):
                self._receive(channels[one])
        for one in ready:
            if isinstance(one, int) and one in sentinels:
                self._ended(sentinels[one])
        self._enforce_time_limits()

    def _until_deadline(self) -> float:
        now = time.monotonic()
        deadlines = [w.started_at + START_TIME_LIMIT for w in self._workers if w.state == "starting"]
        if self._stop_deadline is not None:
            deadlines.append(self._stop_deadline)
        elif self._missing():
            deadlines.append(self._start_at)
        return max(min(deadlines, default=now + START_TIME_LIMIT) - now, 0.0)

    def _handle(self, number: int) -> None:
        if number == signal.SIGHUP:
            if self._stop_deadline is None and not self._restarts:
                logger.info("restarting workers")
                self._restarts = [worker for worker in self._workers if worker.state == "ready"]
                self._restart_next()
        elif number in (signal.SIGINT, signal.SIGTERM):
            if self._stop_deadline is not None and number == signal.SIGINT:
                for worker in self._workers:
                    worker.signal(signal.SIGINT)
            self._stop()

    def _stop(self) -> None:
        if self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + self.stop_time_limit
            self._restarts = []
            for worker in self._workers:
                worker.stop()

    def _restart_next(self) -> None:
        if self._restarts:
            self._start(replaces=self._restarts[0])

    def _receive(self, worker: Worker) -> None:
        try:
            facts = worker.channel.recv()
        except (EOFError, OSError):
            return  # it has ended, which its sentinel reports
        if worker.state != "starting":
            return
        worker.state = "ready"
        logger.info("worker started", extra={"worker": worker.process.pid})
        self._facts = self._facts or facts
        if worker.replaces is not None:
            worker.replaces.stop()
            self._restarts = [one for one in self._restarts if one is not worker.replaces]
            self._restart_next()
            if not self._restarts:
                self.on_restarted(None)
        if not self._is_announced and sum(one.state == "ready" for one in self._workers) == self.count:
            self._is_announced = True
            self.on_ready(self._facts)

    def _ended(self, worker: Worker) -> None:
        worker.process.join()
        worker.channel.close()
        self._workers.remove(worker)
        self._counts.set(worker.place, CLOSED)
        self._restarts = [one for one in self._restarts if one is not worker]
        code = worker.process.exitcode
        if worker.process.pid is not None:
            self.on_exit(worker.process.pid)
        if worker.state == "stopping":
            return
        if code != CONFIGURATION_EXIT_CODE:  # such a worker has written what is wrong
            logger.error("worker ended unexpectedly", extra={"worker": worker.process.pid, "exit_code": code})
        if worker.state == "starting" and worker.replaces is not None:
            logger.error("restart of workers aborted: the new worker did not start")
            self._restarts = []
            self.on_restarted("the new worker did not start, the old ones stay; the log has the reason")
        elif worker.state == "starting" and not self._is_announced:
            self._exit_code = code if code and code > 0 else 1
            self._stop()
        else:
            lived = time.monotonic() - worker.started_at
            self._early_exits = self._early_exits + 1 if lived < STABLE_AFTER else 0
            delay = min(2.0 ** (self._early_exits - 2), MAX_DELAY) if self._early_exits > 1 else 0.0
            self._start_at = time.monotonic() + delay

    def _missing(self) -> int:
        """Return how many workers have to be started. The first worker has to be ready before the others start."""
        if self._stop_deadline is not None or self._facts is None:
            return 0
        return self.count - sum(worker.is_one_of_count for worker in self._workers)

    def _replace_missing(self) -> None:
        if time.monotonic() >= self._start_at:
            for _ in range(self._missing()):
                self._start()

    def _enforce_time_limits(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            is_late = worker.state == "starting" and now >= worker.started_at + START_TIME_LIMIT
            if is_late or (self._stop_deadline is not None and now >= self._stop_deadline):
                logger.error("killing a worker that does not respond", extra={"worker": worker.process.pid})
                worker.process.kill()
                worker.started_at = now
        if self._stop_deadline is not None and now >= self._stop_deadline:
            # Do not log again before the killed workers are reaped.
            self._stop_deadline = now + START_TIME_LIMIT


def _run_worker(target: Target, shared: SharedSockets, channel: Connection) -> None:
    # A separate process group: only the supervisor gets the signals of the terminal.
    os.setpgrp()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_stop_with_supervisor, args=(channel,), daemon=True).start()
    target(shared, channel.send)


def _stop_with_supervisor(channel: Connection) -> None:
    """Stop this process when the other end of the channel is closed: the supervisor has died."""
    with suppress(EOFError, OSError):
        channel.recv()
    os.kill(os.getpid(), signal.SIGTERM)
