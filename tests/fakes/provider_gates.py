"""What can be between the proxy and a provider: an HTTP proxy, and a server that ends TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Gate:
    """A server on ``port`` that forwards connections; ``heads`` are the requests for tunnels that it got."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def http_proxy(target: str) -> AsyncIterator[Gate]:
    """An HTTP proxy all of whose tunnels end at the URL ``target``."""
    gate = Gate()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gate.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await _forward(reader, writer, target)

    async with _listening(gate, serve, None):
        yield gate


@asynccontextmanager
async def tls_server(target: str, context: ssl.SSLContext) -> AsyncIterator[Gate]:
    """A server with TLS in front of the URL ``target``."""
    gate = Gate()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _forward(reader, writer, target)

    async with _listening(gate, serve, context):
        yield gate


@asynccontextmanager
async def _listening(gate: Gate, serve: object, context: ssl.SSLContext | None) -> AsyncIterator[None]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)  # type: ignore[arg-type]
    gate.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
    parts = urlsplit(target)
    there, back = await asyncio.open_connection(parts.hostname, parts.port)

    async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                to.write(data)
                await to.drain()
        to.close()

    await asyncio.gather(copy(reader, back), copy(there, writer))
