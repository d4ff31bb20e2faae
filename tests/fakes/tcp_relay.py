"""A TCP relay that a test can cut, block and restore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    """Hands bytes on between its own port and a server; ``url`` is that of the server by way of the relay.

    The end of a connection is passed on after ``end_delay`` seconds.
    """

    def __init__(self, url: str, *, end_delay: float = 0.0) -> None:
        self._end_delay = end_delay
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 5432
        self._parts = parts
        self._server: asyncio.Server | None = None
        self._ways: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._own_port = 0

    @property
    def url(self) -> str:
        who, at, _ = self._parts.netloc.rpartition("@")
        return self._parts._replace(netloc=f"{who}{at}127.0.0.1:{self._own_port}").geturl()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._own_port)
        self._own_port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuse connections, and drop those that there are."""
        assert self._server is not None
        self._server.close()
        for way in list(self._ways):
            way.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)

    def hang(self) -> None:
        """Take bytes and hand nothing on."""
        self._flows.clear()

    def flow(self) -> None:
        """Forward the data received in the meantime, and everything after it."""
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._ways.add(task)
        try:
            there, back = await asyncio.open_connection(self._host, self._port)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._forward(reader, back))
                    both.create_task(self._forward(there, writer))
            finally:
                back.close()
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._ways.discard(task)
            writer.close()

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._flows.wait()
            target.write(data)
            await target.drain()
        await asyncio.sleep(self._end_delay)
        with suppress(OSError):
            target.write_eof()


@asynccontextmanager
async def relayed(url: str, *, end_delay: float = 0.0) -> AsyncIterator[Relay]:
    """A relay to the server of the URL, for as long as the block runs."""
    relay = Relay(url, end_delay=end_delay)
    await relay.open()
    try:
        yield relay
    finally:
        relay.flow()
        await relay.cut()
