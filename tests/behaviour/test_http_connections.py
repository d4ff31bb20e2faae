"""Connections: strict heads, request targets, and responses to clients that are still sending."""

from __future__ import annotations

import asyncio
import json
import logging
import select
import signal
import socket
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.behaviour.raw_http import HELLO, Socket
from tests.behaviour.test_http_request_heads import check_refused
from tests.fakes.upstream import FakeUpstream, hang, text
from tests.polling import until
from tests.server import Served, serve, serve_process

HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET /v1/models HTTP/1.1\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
BODY = json.dumps({"model": "shop", "messages": HELLO}).encode()
WEBSOCKET = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
STREAM = json.dumps({"model": "shop", "messages": HELLO, "stream": True}).encode()
MEGABYTE = 1024 * 1024


# --- heads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(GET + b"\r\n", 400, id="no Host"),
        pytest.param(GET + HOST + HOST + b"\r\n", 400, id="two Hosts"),
        pytest.param(GET + b"Host: a b\r\n\r\n", 400, id="invalid Host"),
        pytest.param(GET + b"Host: user@127.0.0.1\r\n\r\n", 400, id="Host with a user"),
        pytest.param(b"GET /v1/models\r\n\r\n", 400, id="no version"),
        pytest.param(b"GET /v1/models HTTP/2.0\r\n" + HOST + b"\r\n", 505, id="HTTP/2.0"),
        pytest.param(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, id="CONNECT"),
        pytest.param(b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="asterisk without OPTIONS"),
        pytest.param(b"GET ftp://127.0.0.1/ HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="another scheme"),
        pytest.param(b"GET http://a@127.0.0.1/ HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="user information"),
        pytest.param(GET + HOST + b"Host : a\r\n\r\n", 400, id="space before colon"),
        pytest.param(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, id="two lengths"),
        pytest.param(
            POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="both framings",
        ),
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, id="transfer coding"),
        pytest.param(
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="chunks in HTTP/1.0"
        ),
        pytest.param(GET + HOST + b"X: " + b"a" * 200_000 + b"\r\n\r\n", 431, id="large but complete"),
        pytest.param(b"GET /v1/ws HTTP/1.1\r\n" + WEBSOCKET + b"\r\n", 400, id="WebSocket without Host"),
        pytest.param(
            b"GET /v1/ws HTTP/1.1\r\n" + HOST + WEBSOCKET + b"Content-Length: 3\r\n\r\nabc",
            400,
            id="WebSocket with a body",
        ),
    ],
)
async def test_an_invalid_head_is_rejected(served: Served, head: bytes, status: int) -> None:
    async with Socket(served) as connection:
        await connection.send(head)
        check_refused(await connection.reply(), status)
        assert await connection.reader.read() == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n",
        b"GET http://localhost:8000/v1/models?x=http://y HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET HTTP://LOCALHOST/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["HTTP/1.0", "empty Host", "IPv6", "absolute-form", "upper case", "asterisk-form"],
)
async def test_a_valid_head_is_served(served: Served, head: bytes) -> None:
    async with Socket(served) as connection:
        await connection.send(head)
        line = await connection.reader.readline()
    assert line.split()[1] in (b"200", b"204")


async def test_the_host_of_an_absolute_target_is_checked(served: Served) -> None:
    async with Socket(served) as connection:
        await connection.send(b"GET http://evil.example/v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
        refused = await connection.reply()
    assert refused.status == 403
    assert json.loads(refused.body)["error"]["code"] == "host_not_allowed"


async def test_a_websocket_opens_with_an_absolute_target(served: Served) -> None:
    async with Socket(served) as connection:
        await connection.send(b"GET http://127.0.0.1/v1/ws HTTP/1.1\r\n" + HOST + WEBSOCKET + b"\r\n")
        assert (await connection.reader.readline()).split()[1] == b"101"


# --- bodies ----------------------------------------------------------------------------------------------------


async def test_trailers_are_ignored(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    async with serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served:
        async with Socket(served) as connection:
            await connection.send(
                POST + b"Transfer-Encoding: chunked\r\n\r\n",
                b"%x\r\n%b\r\n0\r\nAuthorization: Bearer secret\r\n\r\n" % (len(BODY), BODY),
            )
            assert (await connection.reply()).status == 401
        assert upstream.requests == []


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"zz\r\n", 400),
        (b"5;" + b"a" * 200_000, 431),
        (b"%x\r\n%b\r\n0\r\nX: " % (len(BODY), BODY) + b"a" * 200_000, 431),
    ],
    ids=["invalid", "endless extension", "endless trailer"],
)
async def test_an_invalid_chunked_body_is_rejected(
    served: Served, upstream: FakeUpstream, chunks: bytes, status: int
) -> None:
    async with Socket(served) as connection:
        await connection.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        await connection.send(chunks)
        check_refused(await connection.reply(), status)
    assert upstream.requests == []


async def test_a_request_that_offers_http2_keeps_its_body_and_connection(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("One"), text("Two"), text("Three"))
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    )
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    async with Socket(served) as connection:
        for request in (
            [POST + offer + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY],
            [POST + offer + b"Content-Length: %d\r\n\r\n" % len(BODY), BODY[:9], BODY[9:]],
            [POST + offer + b"Transfer-Encoding: chunked\r\n\r\n" + chunks],
            [GET + HOST + offer + b"\r\n"],
        ):
            await connection.send(*request)
            assert (await connection.reply()).status == 200
    assert len(upstream.requests) == 3


# --- pipelining ------------------------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order_before_an_error(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hi"))
    async with Socket(served) as connection:
        post = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
        await connection.send(post + GET + HOST + b"\r\n" + GET + b"\r\n" + GET + HOST + b"\r\n")
        assert json.loads((await connection.reply()).body)["object"] == "chat.completion"
        assert json.loads((await connection.reply()).body)["object"] == "list"
        check_refused(await connection.reply(), 400)
        assert await connection.reader.read() == b""


# --- early responses -------------------------------------------------------------------------------------------


async def test_a_client_that_waits_for_100_continue_gets_413_and_the_end(served: Served) -> None:
    async with Socket(served) as connection:
        await connection.send(POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
        refused = await connection.reply()
        assert (refused.status, refused.headers["connection"]) == (413, "close")
        assert await connection.reader.read() == b""


async def test_100_continue_is_sent_for_an_accepted_body(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    async with Socket(served) as connection:
        await connection.send(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await connection.send(BODY)
        assert (await connection.reply()).status == 200


async def test_a_client_of_http_1_0_gets_no_interim_response(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    head = b"POST /v1/chat/completions HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    async with Socket(served) as connection, Socket(served) as other:
        await connection.send(head % len(BODY))
        # A response to a later request shows that the first one waits for its body.
        await other.send(GET + HOST + b"\r\n")
        await other.reply()
        await connection.send(BODY)
        assert (await connection.reply()).status == 200


async def test_the_connection_stays_usable_after_an_early_response_to_a_small_body(served: Served) -> None:
    head = b"POST /v1/unknown HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n"
    async with Socket(served) as connection:
        for _ in range(2):
            await connection.send(head)
            refused = await connection.reply()
            assert (refused.status, "connection" in refused.headers) == (404, False)
            await connection.send(b"hello")
        await connection.send(GET + HOST + b"\r\n")
        assert (await connection.reply()).status == 200


async def test_a_body_that_never_ends_after_its_response_closes_the_connection(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url, body_timeout=0.2) as served, Socket(served) as connection:
        await connection.send(b"POST /v1/unknown HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n")
        assert (await connection.reply()).status == 404
        async with asyncio.timeout(5):
            assert await connection.reader.read() == b""


REFUSALS: dict[str, tuple[int, dict[str, Any], list[Any], str]] = {
    "too large": (413, {}, [], "/v1/chat/completions"),
    "no key": (401, {"api_keys": ("secret",)}, [], "/v1/chat/completions"),
    "too many": (503, {"max_running_turns": 1}, [hang()], "/v1/chat/completions"),
    "no such path": (404, {}, [], "/v1/unknown"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("client", ["urllib", "like nginx", "writes all first"])
async def test_a_refusal_reaches_a_client_that_sends_a_large_body(
    tmp_path: Path, upstream: FakeUpstream, refusal: str, client: str
) -> None:
    status, settings, replies, path = REFUSALS[refusal]
    upstream.reply(*replies)
    send = {"urllib": with_urllib, "like nginx": like_nginx, "writes all first": writing_first}[client]
    async with serve(tmp_path, upstream.base_url, **settings) as served, aiohttp.ClientSession() as http:
        if replies:
            running = asyncio.create_task(
                http.post(f"{served.url}/v1/chat/completions", data=BODY, headers={"X-Conversation-Id": "a"})
            )
            await upstream.received(1)
        body = b"x" * (6 * MEGABYTE)
        for _ in range(4):
            found = await asyncio.gather(*(asyncio.to_thread(send, served.url, path, body) for _ in range(4)))
            assert found == [status] * 4
        if replies:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def with_urllib(url: str, path: str, body: bytes) -> int:
    """With urllib: it sends ``Connection: close``, writes the whole body, and then reads."""
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url + path, body, headers), timeout=20
        ) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        json.loads(error.read())["error"]["message"]
        return error.code


def like_nginx(url: str, path: str, body: bytes) -> int:
    """A reverse proxy: a response stops the body; a failed write is 502, without a look at what can be read."""
    with _upstream(url, path, body) as upstream:
        sent = 0
        try:
            while sent < len(body) and not select.select([upstream], [], [], 0)[0]:
                sent += upstream.send(body[sent : sent + 16 * 1024])
        except OSError:
            return 502
        return _status(upstream)


def writing_first(url: str, path: str, body: bytes) -> int:
    """A client that reads nothing before everything is written."""
    with _upstream(url, path, body) as upstream:
        try:
            for start in range(0, len(body), 16 * 1024):
                upstream.sendall(body[start : start + 16 * 1024])
        except OSError:
            return 502
        return _status(upstream)


def _upstream(url: str, path: str, body: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def _status(upstream: socket.socket) -> int:
    """The status of a complete response; 502 if the connection breaks before its end."""
    data = b""
    try:
        while part := upstream.recv(65536):
            data += part
    except OSError:
        return 502
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if body.endswith(b"}") else 502


# --- clients that leave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipelined", [0, 1, 20])
async def test_the_turn_is_left_if_the_connection_closes_with_pipelined_requests(
    tmp_path: Path, upstream: FakeUpstream, pipelined: int
) -> None:
    upstream.reply(text("Hello", chunks=["Hel", "lo"]).hang(after=2))
    # Behind many pipelined requests nothing is read, so only a write shows that the connection is closed.
    async with serve(tmp_path, upstream.base_url, keep_alive_interval=0.05) as served:
        async with Socket(served) as connection:
            await connection.post(STREAM)
            await connection.reader.readuntil(b"Hel")
            await connection.send((GET + HOST + b"\r\n") * pipelined)
        await until(lambda: served.services.turns.unattended == 1)


@pytest.mark.parametrize("pipelined", [0, 1, 3])
async def test_the_turn_without_output_is_left_if_the_connection_closes_with_pipelined_requests(
    tmp_path: Path, upstream: FakeUpstream, pipelined: int
) -> None:
    upstream.reply(text("Hello", chunks=["Hel", "lo"]).hang(after=2))
    async with serve(tmp_path, upstream.base_url) as served:
        async with Socket(served) as connection:
            await connection.post(BODY)
            await until(lambda: served.services.turns.running == 1)
            await connection.send((GET + HOST + b"\r\n") * pipelined)
        await until(lambda: served.services.turns.unattended == 1)


# --- clients that do not read ----------------------------------------------------------------------------------

LARGE = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"Authorization: Bearer k\r\n\r\n"


def unread_connection(served: Served, requests: bytes) -> socket.socket:
    """Return a connection whose client has sent these requests and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = served.url.removeprefix("http://").split(":")
    client.connect((host, int(port)))
    client.sendall(requests)
    return client


def is_established(client: socket.socket) -> bool:
    """Whether the connection is open; read without its data (Linux, ``tcp_info.tcpi_state``)."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1


async def test_a_connection_whose_client_reads_nothing_is_aborted(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url, stalled_client_timeout=0.2) as served:
        # More than the send buffer of the kernel, which has up to 4 MB.
        client = unread_connection(served, LARGE * 120)
        with closing(client):
            await until(lambda: not is_established(client), within=20)


async def test_a_large_json_response_is_counted_until_its_client_has_read_it(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("word " * 1_200_000, chunks=200))
    async with serve(tmp_path, upstream.base_url) as served, Socket(served) as connection:
        turns = served.services.turns
        await connection.post(BODY)
        head = await connection.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        unread = turns.log_bytes
        content = await connection.reader.readexactly(length)

        assert json.loads(content)["choices"][0]["message"]["content"] == "word " * 1_200_000
        # The log stays in memory for late readers.
        assert unread > 1.9 * length
        await until(lambda: turns.log_bytes < 1.1 * length)


async def test_the_turn_is_left_if_its_client_does_not_read_the_json_response(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("word " * 1_200_000, chunks=200))
    async with serve(tmp_path, upstream.base_url, stalled_client_timeout=0.2) as served:
        head = POST + b"Content-Length: %d\r\n\r\n" % len(BODY)
        with closing(unread_connection(served, head + BODY)) as client:
            await upstream.received(1)
            await until(lambda: not is_established(client), within=20)
            # The log stays in memory, the response does not.
            await until(lambda: served.services.turns.log_bytes < 7 * MEGABYTE)


async def test_a_client_that_reads_slowly_gets_the_whole_stream(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("word " * 1_200_000, chunks=200))
    async with serve(tmp_path, upstream.base_url, stalled_client_timeout=0.3) as served:
        head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(STREAM)
        with closing(unread_connection(served, head + STREAM)) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            began, received = loop.time(), 0
            while part := await loop.sock_recv(client, 8192):
                received, end = received + len(part), part
                if loop.time() - began < 1.5:
                    # What the server writes at once takes longer than the timeout.
                    await asyncio.sleep(0.04)

    assert received > 6_000_000
    assert end.endswith(b"0\r\n\r\n")


# --- shutdown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_running", [False, True], ids=["alone", "pipelined"])
async def test_a_stopping_server_does_not_wait_for_the_rest_of_a_body(
    tmp_path: Path, upstream: FakeUpstream, has_running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    released = asyncio.Event()
    upstream.reply(text("Hello", chunks=3).held(released))
    async with AsyncExitStack() as stopping:
        served = await stopping.enter_async_context(serve(tmp_path, upstream.base_url, shutdown_grace=60))
        async with Socket(served) as connection:
            if has_running:
                await connection.post(BODY)
                await upstream.received(1)
                await connection.post(BODY[:-1], length=len(BODY))
                # The server has read it: it answers requests of other connections in the order of their arrival.
                async with Socket(served) as other:
                    await other.send(GET + HOST + b"\r\n")
                    assert (await other.reply()).status == 200
            else:
                await connection.post(BODY[:-1], "Expect: 100-continue", length=len(BODY))
                assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            stopped = asyncio.create_task(stopping.aclose())
            await asyncio.sleep(0)
            released.set()
            if has_running:
                assert (await connection.reply()).status == 200

            refused = await connection.reply()

        async with asyncio.timeout(10):
            await stopped
    assert (refused.status, refused.headers["connection"], refused.headers["retry-after"]) == (
        503,
        "close",
        "2",
    )
    assert json.loads(refused.body)["error"]["code"] == "shutting_down"
    line = [record for record in caplog.records if record.name == "proxy.requests"][-1]
    assert line.__dict__["status"] == 503
    assert line.__dict__["request_id"] == refused.headers["x-request-id"]


async def test_a_connection_that_begins_while_the_server_stops_does_not_delay_it(tmp_path: Path) -> None:
    async with serve_process(tmp_path) as (served, process):
        host, _, port = served.url.removeprefix("http://").partition(":")
        process.send_signal(signal.SIGSTOP)
        with ExitStack() as stack:
            # The kernel accepts them meanwhile, and the server gets them together with the signal to stop.
            for _ in range(4):
                stack.enter_context(socket.create_connection((host, int(port))))
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            # Open connections are closed after eleven seconds.
            async with asyncio.timeout(8):
                assert await process.wait() == 0
