"""Baseline: a proxy that only forwards bytes, the lower bound for a proxy in Python."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

from bench.loops import run


class Upward(asyncio.Protocol):
    """Connection to the upstream for one client."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.close()


class Downward(asyncio.Protocol):
    """Connection of a client."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._upstream: asyncio.Transport | None = None
        self._early = bytearray()
        self._transport: asyncio.Transport
        self._connecting: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop transports do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        upstream, _ = await loop.create_connection(
            lambda: Upward(self._transport), "127.0.0.1", self._upstream_port
        )
        self._upstream = upstream
        if self._early:
            upstream.write(bytes(self._early))

    def data_received(self, data: bytes) -> None:
        if self._upstream is None:
            self._early += data
        else:
            self._upstream.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._upstream is not None:
            self._upstream.close()


async def main(port: int, upstream_port: int) -> None:
    """Serve until the process is terminated."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Downward(upstream_port), "127.0.0.1", port, backlog=2048
    )
    await server.serve_forever()


if __name__ == "__main__":
    run(main(int(sys.argv[1]), int(sys.argv[2])))
