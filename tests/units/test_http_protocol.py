"""The time that a connection may wait for a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from proxy.http_protocol import BoundedHttp

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
KEEP_ALIVE = 0.2
"""Seconds."""


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, BoundedHttp]]:
    """Open a connection to the application; the last value is its protocol."""
    config = uvicorn.Config(app, interface="asgi3", log_config=None)
    config.timeout_keep_alive = KEEP_ALIVE  # type: ignore[assignment]
    opened: asyncio.Queue[BoundedHttp] = asyncio.Queue()

    def factory() -> BoundedHttp:
        protocol = BoundedHttp(config=config, server_state=ServerState(), app_state={})
        opened.put_nowait(protocol)
        return protocol

    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer, await opened.get()
        finally:
            writer.close()


async def answer(_scope: object, _receive: object, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def test_a_connection_without_a_request_is_closed_after_the_keep_alive_time() -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10), served(answer) as (reader, writer, _):
        for _ in range(2):
            writer.write(REQUEST)
            assert b"204" in await reader.readuntil(b"\r\n\r\n")
        answered_at = loop.time()

        assert await reader.read() == b""

    assert loop.time() - answered_at > KEEP_ALIVE * 0.9


async def test_a_connection_with_a_running_request_is_not_idle() -> None:
    may_end = asyncio.Event()
    started = asyncio.Event()

    async def second_waits(scope: Any, receive: object, send: Any) -> None:
        if scope["path"] == "/second":
            started.set()
            await may_end.wait()
        await answer(scope, receive, send)

    async with asyncio.timeout(10), served(second_waits) as (reader, writer, protocol):
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REQUEST.replace(b"/ ", b"/second "))
        await started.wait()
        # As if the time had passed.
        protocol._idle_since -= 1000
        protocol._check_idle()
        may_end.set()

        assert b"204" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b""
