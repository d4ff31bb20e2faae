"""Connections that wait for a request, and those of applications that the server does not wait for when it stops."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from proxy.http_protocol import BoundedHttp
from proxy.websocket_protocol import EnvelopeWebSocket

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


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def stopped(app: Any, request: bytes, started: asyncio.Event) -> bytes:
    """Return what a client receives from a server that stops without waiting for its request."""
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws=EnvelopeWebSocket,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=0,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve([listening]))
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(request)
            await started.wait()
            server.should_exit = True
            await serving
            received = await reader.read()
            writer.close()
    return received


async def test_a_request_that_the_server_does_not_wait_for_gets_503_and_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = asyncio.Event()

    async def hangs(_scope: object, _receive: object, _send: object) -> None:
        started.set()
        await asyncio.Event().wait()

    received = await stopped(hangs, REQUEST, started)

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body)["error"]["code"] == "shutting_down"
    assert [record.exc_info for record in caplog.records if record.exc_info] == []
    # uvicorn's line with the number of cancelled tasks.
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_a_websocket_that_the_server_does_not_wait_for_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = asyncio.Event()

    async def hangs(_scope: object, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        started.set()
        await asyncio.Event().wait()

    received = await stopped(hangs, HANDSHAKE, started)

    assert received.startswith(b"HTTP/1.1 101 ")
    assert [record.exc_info for record in caplog.records if record.exc_info] == []


async def test_a_failure_behind_a_websocket_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    started = asyncio.Event()

    async def fails(_scope: object, _receive: object, _send: object) -> None:
        started.set()
        # Nobody has cancelled the task.
        raise asyncio.CancelledError

    received = await stopped(fails, HANDSHAKE, started)

    assert received.startswith(b"HTTP/1.1 500 ")
    assert len([record for record in caplog.records if record.exc_info]) == 1
