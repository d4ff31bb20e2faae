"""What comes before a request: heads that are too large, too slow, or none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.behaviour.raw_http import HELLO, Reply, Socket, deltas, payloads
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served, serve

GOOD = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def check_refused(reply: Reply, status: int) -> str:
    """Check the error response, and return its message."""
    assert (reply.status, reply.headers["connection"]) == (status, "close")
    assert reply.headers["x-request-id"].startswith("req_")
    reported = json.loads(reply.body)["error"]
    assert (reported["type"], reported["param"]) == ("invalid_request_error", None)
    return str(reported["message"])


@pytest.mark.parametrize(
    "head",
    [
        GOOD + b"X-Large: " + b"a" * 70_000,
        GOOD + b"X-Large: " + b"a" * 1_000_000,
        GOOD + b"".join(b"X-%d: a\r\n" % n for n in range(10_000)),
        b"GET /" + b"a" * 70_000,
    ],
    ids=["one header", "an endless one", "many", "a path"],
)
async def test_a_head_over_64_kib_is_refused(served: Served, head: bytes) -> None:
    async with Socket(served) as socket:
        await socket.send(head)
        check_refused(await socket.reply(), 431)
        assert await socket.reader.read() == b""


async def test_a_head_of_almost_that_is_taken_again_and_again(served: Served) -> None:
    async with Socket(served) as socket:
        for _ in range(3):
            await socket.send(GOOD + b"X-Large: " + b"a" * 60_000 + b"\r\n\r\n")
            assert (await socket.reply()).status == 200


async def test_a_large_body_does_not_count_as_head(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"), text("Hi"))
    body = json.dumps({"model": "shop", "messages": [*HELLO, {"role": "user", "content": "x" * 500_000}]})
    async with Socket(served) as socket:
        for _ in range(2):
            await socket.post(body.encode())
            assert (await socket.reply()).status == 200


@pytest.mark.parametrize(
    "garbage", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n"]
)
async def test_bytes_that_are_not_http_get_an_error_body_and_a_closed_connection(
    served: Served, garbage: bytes
) -> None:
    async with Socket(served) as socket:
        await socket.send(garbage)
        assert check_refused(await socket.reply(), 400) == "The request is not valid HTTP."
        assert await socket.reader.read() == b""


async def test_a_head_that_comes_by_drops_is_408(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, body_timeout=0.2) as served:
        async with Socket(served) as socket:
            await socket.send(GOOD)
            check_refused(await socket.reply(), 408)
        async with Socket(served) as socket:
            await socket.send(GOOD + b"\r\n")
            assert (await socket.reply()).status == 200
            await socket.send(b"GET /")
            check_refused(await socket.reply(), 408)


async def test_idle_connection_is_closed_after_the_head_timeout(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url, body_timeout=0.2) as served, Socket(served) as socket:
        assert await socket.reader.read() == b""


async def head_timeout_passes(served: Served) -> None:
    """Return when the head of a connection that was opened before would be late."""
    async with Socket(served) as later:
        assert await later.reader.read() == b""


async def test_a_late_head_does_not_cut_the_response_before_it(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    released = asyncio.Event()
    upstream.reply(text("Hello", chunks=3).held(released))
    body = json.dumps({"model": "shop", "messages": HELLO, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serve(tmp_path, upstream.base_url, body_timeout=0.2) as served, Socket(served) as socket:
        await socket.send(head + body + b"GET /v1/mod")
        await upstream.received(1)
        await head_timeout_passes(served)
        released.set()

        assert (await socket.reply()).body.endswith(b"data: [DONE]\n\n")
        check_refused(await socket.reply(), 408)


async def test_an_empty_line_between_requests_begins_no_head(tmp_path: Path, upstream: FakeUpstream) -> None:
    request = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with serve(tmp_path, upstream.base_url, body_timeout=0.2) as served, Socket(served) as socket:
        await socket.send(request)
        await socket.reply()
        # RFC 9112, 2.2.
        await socket.send(b"\r\n")
        await head_timeout_passes(served)
        await socket.send(request)
        assert (await socket.reply()).status == 200


@pytest.mark.parametrize("more", ["", "Connection: keep-alive\r\n"], ids=["plain", "asking to stay"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_of_http_1_0_gets_no_chunks(
    served: Served, upstream: FakeUpstream, stream: bool, more: str
) -> None:
    upstream.reply(text("Hello", chunks=3))
    body = json.dumps({"model": "shop", "messages": HELLO, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n{more}\r\n"

    async with Socket(served) as socket, asyncio.timeout(10):
        await socket.send(head.encode() + body)
        answered, _, rest = (await socket.reader.read()).partition(b"\r\n\r\n")

    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close" in answered
    assert b"transfer-encoding" not in answered
    if stream:
        assert "".join(delta.get("content", "") for delta in deltas(payloads(rest.decode()))) == "Hello"
        assert rest.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(rest)["choices"][0]["message"]["content"] == "Hello"


async def test_a_head_is_all_that_head_gets_over_http_1_0(served: Served) -> None:
    async with Socket(served) as socket, asyncio.timeout(10):
        await socket.send(b"HEAD /v1/models HTTP/1.0\r\n\r\n")
        answered, _, rest = (await socket.reader.read()).partition(b"\r\n\r\n")

    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
    assert rest == b""
