"""A TCP relay in front of a server, whose connections a test can cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Relay:
    """Forwards connections while ``is_up``; otherwise closes them at once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.is_up = True
        self.url = ""

    def cut(self) -> None:
        """Close all connections and refuse new ones until ``restore``."""
        self.is_up = False
        for writer in self._writers:
            writer.transport.abort()

    def restore(self) -> None:
        self.is_up = True

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection in both directions."""
        if not self.is_up:
            writer.transport.abort()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        pair = {writer, upstream_writer}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, upstream_writer))
                group.create_task(_copy(upstream_reader, writer))
        finally:
            self._writers -= pair
            for one in pair:
                one.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def relay(url: str) -> AsyncIterator[Relay]:
    """Serve a relay to ``url`` on a free port."""
    created = Relay(int(url.rpartition(":")[2]))
    server = await asyncio.start_server(created.forward, "127.0.0.1")
    created.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield created
    finally:
        server.close()
        created.cut()
