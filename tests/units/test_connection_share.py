from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import pytest

from proxy.connection_share import CLOSED, ConnectionAcceptor, ConnectionCounts, SharedSockets


class Accepted(asyncio.Protocol):
    """A connection of a worker; it greets its client."""

    def __init__(self, connections: set[Accepted]) -> None:
        self.connections = connections
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.connections.add(self)
        transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)


class Worker:
    """A worker with its own copy of the listening socket, as another process has it."""

    def __init__(self, listening: socket.socket, counts: ConnectionCounts, place: int) -> None:
        self.connections: set[Accepted] = set()
        self.acceptor = ConnectionAcceptor(
            SharedSockets([listening.dup()], counts, place),
            lambda: Accepted(self.connections),
            count=lambda: len(self.connections),
            tls=None,
        )
        self.acceptor.start(backlog=100)

    def close(self) -> None:
        self.acceptor.close()
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.abort()


class Port:
    """A port that several workers listen to."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._listening = stack.enter_context(closing(socket.socket()))
        self._listening.bind(("127.0.0.1", 0))
        self.counts = ConnectionCounts(3)
        self._writers: list[asyncio.StreamWriter] = []
        """A stream without references is closed."""

    def worker(self, place: int) -> Worker:
        return self._stack.enter_context(closing(Worker(self._listening, self.counts, place)))

    async def connect(self) -> asyncio.StreamWriter:
        """Open a connection, and wait until a worker has accepted it."""
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*self._listening.getsockname())
            self._writers.append(writer)
            self._stack.callback(writer.transport.abort)
            assert await reader.readexactly(5) == b"hello"
        return writer


@asynccontextmanager
async def _port() -> AsyncIterator[Port]:
    async with AsyncExitStack() as stack:
        yield Port(stack)


async def test_connections_that_come_one_after_the_other_are_shared_evenly() -> None:
    async with _port() as port:
        workers = [port.worker(0), port.worker(1)]
        for _ in range(40):
            await port.connect()

        counts = [len(worker.connections) for worker in workers]

        assert sum(counts) == 40
        assert max(counts) - min(counts) <= 4


async def test_a_new_worker_gets_connections_until_it_has_its_share() -> None:
    async with _port() as port:
        old = port.worker(0)
        for _ in range(10):
            await port.connect()
        new = port.worker(1)
        for _ in range(8):
            await port.connect()

        assert len(new.connections) >= 7
        assert len(old.connections) <= 11


async def test_a_worker_that_does_not_accept_in_time_delays_no_connection() -> None:
    async with _port() as port:
        worker = port.worker(0)
        # Another worker, which hangs.
        port.counts.set(1, 0)
        await asyncio.gather(*(port.connect() for _ in range(30)))

        assert len(worker.connections) == 30


async def test_a_worker_that_stops_leaves_the_waiting_connections_to_the_others() -> None:
    async with _port() as port:
        stopping, staying = port.worker(0), port.worker(1)
        stopping.acceptor.close()
        for _ in range(10):
            await port.connect()

        assert (len(stopping.connections), len(staying.connections)) == (0, 10)
        assert port.counts.least_of_others(1) is None


def test_the_least_count_is_that_of_the_other_workers_which_accept() -> None:
    counts = ConnectionCounts(4)
    assert counts.least_of_others(0) is None

    for place, count in enumerate((1, 7, 5)):
        counts.set(place, count)

    assert counts.least_of_others(0) == 5
    assert counts.least_of_others(1) == 1
    counts.set(0, CLOSED)
    assert counts.least_of_others(1) == 5


@pytest.mark.parametrize("first", [0, 1])
async def test_closed_connections_do_not_count(first: int) -> None:
    async with _port() as port:
        workers = [port.worker(0), port.worker(1)]
        writers = [await port.connect() for _ in range(6)]
        for writer in writers:
            writer.transport.abort()
        async with asyncio.timeout(10):
            while any(worker.connections for worker in workers):
                await asyncio.sleep(0)
        workers[first].acceptor.publish()
        workers[1 - first].acceptor.publish()

        assert port.counts.least_of_others(0) == port.counts.least_of_others(1) == 0
