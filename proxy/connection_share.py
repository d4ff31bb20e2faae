"""Accept connections from sockets that several workers share, so that each worker gets its share of them.

Every worker is woken for a new connection, and the system lets the same one win nearly every time. A worker with more
open connections than another one therefore waits some milliseconds before it accepts. If the other one is busy, it
accepts then: a connection never depends on one worker, as it would with a separate socket (``SO_REUSEPORT``), whose
queue is lost, or waits, when its worker ends.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
import ssl
from collections.abc import Callable, MutableSequence, Sequence
from contextlib import suppress
from typing import cast

from msgspec import Struct

logger = logging.getLogger(__name__)

CLOSED = -1
"""The count of a worker that does not accept connections."""
TOLERATED = 1
"""Connections that a worker may have more than another one without a wait."""
PAUSE_SECONDS, LONGEST_PAUSE = 0.001, 0.01
"""The wait for each connection more, and its limit."""
AFTER_PAUSE = 4
"""Connections that are accepted after a wait, because no other worker has."""
AT_ONCE = 64
"""Connections that are accepted before other work of the event loop."""
EXHAUSTED_PAUSE = 1.0
"""Seconds without accepting when the system has no more file descriptors or memory."""


class ConnectionCounts:
    """The number of open connections of each worker, in memory that the workers share.

    Can be passed to a process at its start. Each worker writes its own place only.
    """

    def __init__(self, places: int) -> None:
        shared = multiprocessing.get_context("spawn").RawArray("i", [CLOSED] * places)
        self._counts = cast("MutableSequence[int]", shared)

    def __len__(self) -> int:
        return len(self._counts)

    def set(self, place: int, count: int) -> None:
        """Store the count of a worker; ``CLOSED`` if it does not accept connections."""
        self._counts[place] = count

    def least_of_others(self, place: int) -> int | None:
        """Return the least count of the other workers; None without others that accept connections."""
        own = self._counts[:place], self._counts[place + 1 :]
        return min((count for part in own for count in part if count != CLOSED), default=None)


class SharedSockets(Struct, frozen=True):
    """The sockets of a worker, and its place in the counts."""

    sockets: Sequence[socket.socket]
    counts: ConnectionCounts
    place: int


class ConnectionAcceptor:
    """Accepts connections for one worker, in the event loop in which it is used.

    ``protocol`` creates the protocol of a connection, and ``count`` returns how many are open.
    """

    def __init__(
        self,
        shared: SharedSockets,
        protocol: Callable[[], asyncio.Protocol],
        *,
        count: Callable[[], int],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._shared = shared
        self._protocol = protocol
        self._count = count
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._is_open = False

    def start(self, *, backlog: int) -> None:
        """Listen, and accept connections."""
        self._is_open = True
        self.publish()
        for listening in self._shared.sockets:
            listening.setblocking(False)
            listening.listen(backlog)
            self._loop.add_reader(listening, self._on_readable, listening)

    def close(self) -> None:
        """Accept no more connections. Those that wait are for the other workers."""
        if not self._is_open:
            return
        self._is_open = False
        for pause in self._pauses.values():
            pause.cancel()
        for listening in self._shared.sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self._shared.counts.set(self._shared.place, CLOSED)

    def publish(self) -> None:
        """Store the number of open connections for the other workers."""
        if self._is_open:
            self._shared.counts.set(self._shared.place, self._count() + len(self._opening))

    def _excess(self) -> int:
        """Return how many connections this worker has more than the one with the fewest."""
        self.publish()
        least = self._shared.counts.least_of_others(self._shared.place)
        return 0 if least is None else self._count() + len(self._opening) - least

    def _on_readable(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            excess = self._excess()
            if excess > TOLERATED:
                self._pause(listening, min(excess * PAUSE_SECONDS, LONGEST_PAUSE))
                return
            if not self._accept(listening):
                return

    def _pause(self, listening: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listening)
        self._pauses[listening] = self._loop.call_later(seconds, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        del self._pauses[listening]
        self._loop.add_reader(listening, self._on_readable, listening)
        for _ in range(AFTER_PAUSE):
            if not self._accept(listening):
                return

    def _accept(self, listening: socket.socket) -> bool:
        """Accept one connection; return whether another one can be accepted."""
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            # As asyncio does: the socket stays readable, so the loop would spin.
            logger.error("no connection can be accepted", extra={"cause": error.strerror})
            self._pause(listening, EXHAUSTED_PAUSE)
            return False
        accepted.setblocking(False)
        task = self._loop.create_task(self._open(accepted), name="connection")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, accepted: socket.socket) -> None:
        # A client that leaves at once, or fails in the TLS handshake.
        with suppress(OSError):
            await self._loop.connect_accepted_socket(self._protocol, accepted, ssl=self._tls)
