"""Worker identity and leases: renew those of running turns, and interrupt the turns of dead workers.

A running turn locks its conversation until its lease expires. A worker that dies releases the lock at the latest then,
and earlier where another worker of the same host can see that the process has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from proxy.background_tasks import BackgroundTasks
from proxy.errors import StoreUnavailable
from proxy.turns.live_turns import LiveTurns
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock

logger = logging.getLogger(__name__)

SWEEP_BEATS = 15
"""Searches for turns to take over, from one interruption of the others to the next."""

_workers_of_process: set[str] = set()


class Leases:
    """The leases of this worker. ``lease`` and ``heartbeat`` are in seconds."""

    def __init__(
        self,
        history: TurnRepository,
        lives: LiveTurns,
        clock: Clock,
        *,
        lease: float,
        heartbeat: float,
        after_sweep: Callable[[], Awaitable[None]],
        take_over: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        """``after_sweep`` is awaited after each sweep, ``take_over`` with the dead workers at each heartbeat if other
        workers have running turns. Both may raise ``StoreUnavailable``.
        """
        self.worker = new_worker()
        self._history = history
        self._lives = lives
        self._clock = clock
        self._lease = lease
        self._heartbeat = heartbeat
        self._after_sweep = after_sweep
        self._take_over = take_over
        self._searches = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, background: BackgroundTasks) -> None:
        """Mark turns of dead workers as interrupted, and start the heartbeat."""
        await self._sweep()
        # Two tasks: a sweep can take longer than a lease.
        self._tasks = [
            background.start(self._repeat(self._renew, self._heartbeat), "lease renewal"),
            background.start(self._repeat(self._search, self._heartbeat), "lease sweep"),
        ]

    async def close(self, *, has_handed_over: bool = False) -> None:
        """Stop the heartbeat. Other workers may treat this worker as dead from here on.

        With ``has_handed_over``, the leases of the turns that others continue end now.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if has_handed_over:
            # Workers of other hosts would wait for the end of the leases.
            with suppress(StoreUnavailable):
                await self._history.renew(self.worker, lease_until=self._clock())
        retire(self.worker)

    async def _repeat(self, work: Callable[[], Awaitable[None]], interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            try:
                await work()
            except StoreUnavailable:
                logger.warning("failed to renew leases")
            except Exception:
                # The next renewal must follow: otherwise other workers interrupt the turns of this one.
                logger.exception("failed to renew leases")

    async def _renew(self) -> None:
        if not self._lives:
            return
        cancelled = await self._history.renew(self.worker, lease_until=self._clock() + self._lease)
        for turn_id in cancelled:
            live = self._lives.get(turn_id)
            if live is not None:
                live.stop("requested")

    async def _search(self) -> None:
        self._searches += 1
        if self._searches % SWEEP_BEATS:
            await self._take_over_lost()
        else:
            await self._sweep()

    async def _take_over_lost(self) -> list[str]:
        """Take over turns of workers that died; return the workers that certainly have."""
        workers = await self._history.running_workers()
        dead = [worker for worker in workers if is_dead(worker)]
        if any(worker != self.worker for worker in workers):
            await self._take_over(dead)
        return dead

    async def _sweep(self) -> None:
        dead = await self._take_over_lost()
        interrupted = await self._history.interrupt(now=self._clock(), dead_workers=dead)
        if interrupted:
            logger.warning("marked turns of dead workers as interrupted", extra={"turns": interrupted})
        await self._after_sweep()


def new_worker() -> str:
    """Return a name for a worker of this process: ``location:pid:random``."""
    worker = f"{_location()}:{os.getpid()}:{secrets.token_hex(4)}"
    _workers_of_process.add(worker)
    return worker


def retire(worker: str) -> None:
    """Mark a worker of this process as ended."""
    _workers_of_process.discard(worker)


def is_dead(worker: str) -> bool:
    """Whether the worker's process has certainly ended. False for a process that cannot be checked from here."""
    location, _, rest = worker.partition(":")
    pid, _, _ = rest.partition(":")
    if location != _location() or not pid.isdecimal() or worker in _workers_of_process:
        return False
    # The system reuses process ids: a worker with this id that this process did not create is an earlier process.
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _location() -> str:
    """Return the scope in which process ids are unique: the host and, on Linux, the PID namespace.

    Containers can share a host name, and the server is process 1 in each of them.
    """
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()
