"""Connections that wait for a request, and those of applications that the server does not wait for when it stops."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from proxy.http_protocol import BoundedHttp
from proxy.log_config import add_request_id
from proxy.request_id import REQUEST_ID
from proxy.routes.request_body import headers_of, read_body
from proxy.routes.server_extensions import DISCONNECT
from proxy.settings import Settings
from proxy.websocket_protocol import EnvelopeWebSocket

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
KEEP_ALIVE = 0.2
"""Seconds."""


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, BoundedHttp]]:
    """Open a connection to the application; the last value is its protocol."""
    config = uvicorn.Config(app, ws=EnvelopeWebSocket, interface="asgi3", log_config=None)
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


async def test_an_idle_connection_holds_neither_head_nor_unread_body() -> None:
    large = b"POST /%b HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\nx: %b\r\n\r\n" % (
        b"y" * 20_000,
        b"z" * 40_000,
    )

    async def reads_headers(scope: Any, receive: Any, send: Any) -> None:
        assert len(headers_of(scope)["x"]) == 40_000
        await answer(scope, receive, send)

    async with asyncio.timeout(10), served(reads_headers) as (reader, writer, protocol):
        tracemalloc.start()
        try:
            protocol.data_received(large + b"b" * 60_000)
            assert b"204" in await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0)
            gc.collect()
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        writer.close()

    assert held_bytes < 40_000


@pytest.mark.parametrize("body_bytes", [1_000, 100_000])
async def test_a_client_that_leaves_during_a_stream_is_noticed_after_a_body_of_any_size(
    body_bytes: int,
) -> None:
    left = asyncio.Event()
    body_read = asyncio.Event()

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        body = await read_body(scope, receive, Settings(), headers_of(scope))
        assert len(body) == body_bytes
        scope["extensions"][DISCONNECT].listener = left.set
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body_read.set()
        await left.wait()

    async with asyncio.timeout(10), served(streams) as (_, writer, _):
        writer.write(
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % body_bytes + b"b" * body_bytes
        )
        await body_read.wait()
        writer.close()

        await left.wait()


async def test_an_early_response_to_a_client_that_has_left_closes_the_connection() -> None:
    may_answer = asyncio.Event()

    async def does_not_read(scope: Any, receive: Any, send: Any) -> None:
        await may_answer.wait()
        await answer(scope, receive, send)

    async with asyncio.timeout(10), served(does_not_read) as (_, writer, protocol):
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n" + b"b" * 100_000)
        while not protocol.flow.read_paused:
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()
        # The client's system answers the response with a reset at once, so the end of the stream cannot be sent.
        may_answer.set()
        while protocol.connections:
            await asyncio.sleep(0)


async def test_a_pipelined_request_with_a_large_body_pauses_reading_though_its_head_is_known() -> None:
    may_end = asyncio.Event()
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        if (b"content-length", b"1") in scope["headers"]:
            await may_end.wait()
        await answer(scope, receive, send)

    async with asyncio.timeout(10), served(waits) as (reader, writer, protocol):
        for _ in range(3):
            writer.write(head % 0)
            await reader.readuntil(b"\r\n\r\n")
        protocol.data_received(head % 1 + b"b")
        protocol.data_received(head % 100_000 + b"b" * 100_000)

        assert protocol.flow.read_paused
        may_end.set()
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
        assert not protocol.flow.read_paused


async def test_only_some_of_the_requests_in_one_read_wait_for_the_first() -> None:
    may_end = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await may_end.wait()
        await answer(scope, receive, send)

    async with asyncio.timeout(10), served(waits) as (reader, _, protocol):
        protocol.data_received(REQUEST * 5_000)
        may_end.set()
        received = await reader.read()

    assert received.count(b"HTTP/1.1 204 ") == 257
    *_, last = received.split(b"HTTP/1.1 ")
    assert last.startswith(b"400 ")
    assert b"Too many pipelined requests" in last


async def test_a_rejected_request_is_logged_with_the_id_of_its_response(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def with_id(scope: Any, receive: Any, send: Any) -> None:
        REQUEST_ID.set("req_first")
        await answer(scope, receive, send)

    async with asyncio.timeout(10), served(with_id) as (reader, _, protocol):
        protocol.data_received(REQUEST + b"invalid\r\n\r\n")
        received = await reader.read()

    (record,) = [one for one in caplog.records if one.message == "request rejected"]
    add_request_id(record)
    assert f"x-request-id: {vars(record)['request_id']}\r\n".encode() in received


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


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_handshake_without_an_answer_gets_503_when_the_server_stops(
    caplog: pytest.LogCaptureFixture, *, accepts: bool
) -> None:
    started = asyncio.Event()

    async def answers_late(_scope: object, receive: Any, send: Any) -> None:
        await receive()
        started.set()
        assert (await receive())["type"] == "websocket.disconnect"
        if accepts:
            await send({"type": "websocket.accept"})

    received = await stopped(answers_late, HANDSHAKE, started)

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 2\r\n" in head
    assert b"\r\nx-request-id: req_" in head
    assert json.loads(body)["error"]["code"] == "shutting_down"
    # uvicorn's line with the number of cancelled tasks.
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert [message.partition(",")[0] for message in errors] == ["Cancel 0 running task(s)"]


@pytest.mark.parametrize(("method", "status"), [(b"GET", 400), (b"PUT", 405)])
@pytest.mark.parametrize("size", [10, 9_000])
async def test_a_handshake_that_is_not_valid_is_rejected_whatever_its_size(
    size: int, method: bytes, status: int
) -> None:
    # More headers than websockets accepts; those of 9,000 bytes are longer than its lines too.
    added = b"x-long: %b\r\n" % (b"a" * size) * (200 if size < 1000 else 5)
    handshake = HANDSHAKE.replace(b"GET", method).replace(b"host:", added + b"host:")

    async with asyncio.timeout(10), served(answer) as (reader, writer, _):
        writer.write(handshake)
        received = await reader.read()

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


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
