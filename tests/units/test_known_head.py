"""Heads that a connection repeats: a request with one is served as if the parser had read it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from proxy.http_protocol import BoundedHttp
from proxy.known_head import KnownHead, known_head

HEAD = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nUser-Agent: b\r\n\r\n"
SCOPE: dict[str, Any] = {
    "method": "POST",
    "path": "/v1/x",
    "raw_path": b"/v1/x",
    "query_string": b"y=1",
    "headers": [(b"host", b"a"), (b"content-length", b"3"), (b"user-agent", b"b")],
}


def head_of(data: bytes, *more: tuple[bytes, bytes]) -> KnownHead | None:
    return known_head(data, {**SCOPE, "headers": [*SCOPE["headers"], *more]})


def known() -> KnownHead:
    found = head_of(HEAD % 3 + b"abc")
    assert found is not None
    return found


def test_a_repeated_head_has_its_own_length() -> None:
    head = known()

    assert head.read(HEAD % 12345 + b"abc") == (b"12345", b"abc")
    assert head.scope_of(b"12345", {"lifespan": 1}) == {
        **SCOPE,
        "headers": [(b"host", b"a"), (b"content-length", b"12345"), (b"user-agent", b"b")],
        "state": {"lifespan": 1, "headers": {"host": "a", "user-agent": "b"}},
    }


def test_a_repeated_head_has_nothing_of_the_first_request() -> None:
    head = known_head(HEAD % 3, {**SCOPE, "extensions": {"a": 1}, "state": {"a": 1}})

    assert head is not None
    assert head.scope_of(b"3", {}).keys() == {*SCOPE, "state"}


@pytest.mark.parametrize(
    "data",
    [
        HEAD.replace(b"a", b"c", 1) % 3,
        (HEAD % 3).partition(b"Length: ")[2],
        (HEAD % 3).replace(b": b", b": c"),
        (HEAD % 3).replace(b" 3", b" 3x"),
        (HEAD % 3).replace(b" 3", b" -3"),
        (HEAD % 3).replace(b" 3", b" "),
        (HEAD % 3).replace(b" 3", b" \xb2"),
        (HEAD % 3).replace(b" 3", b" 3,3"),
        (HEAD % 3).replace(b" 3", b" " + b"3" * 16),
        (HEAD % 3).replace(b"\r\n\r\n", b"\r\nX-A: b\r\n\r\n"),
        *((HEAD % 12)[:length] for length in range(len(HEAD % 12))),
    ],
)
def test_another_head_is_not_a_repeated_one(data: bytes) -> None:
    assert known().read(data) is None


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (HEAD % 3, (b"expect", b"100-continue")),
        (HEAD % 3, (b"transfer-encoding", b"chunked")),
        (HEAD % 3, (b"upgrade", b"h2c")),
        (HEAD % 3, (b"content-length", b"3")),
        ((HEAD % 3).replace(b"\r\n", b"\n"), None),
        ((HEAD % 3).replace(b"Host", b"X: \nHost"), None),
        (HEAD % 3, (b"x-a", b"b")),
        (b"\r\n" + HEAD % 3, None),
        ((HEAD % 3).replace(b": b", b": " + b"b" * 4096), None),
    ],
)
def test_some_heads_are_not_remembered(data: bytes, more: tuple[bytes, bytes] | None) -> None:
    assert head_of(data, *([more] if more else [])) is None


# --- the same as with the parser -------------------------------------------------------------------------------


class Parsed(BoundedHttp):
    """Remembers no head."""

    __slots__ = ()

    def _known_head(self, data: bytes) -> None:
        return None


class FakeTransport:
    """Records what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def write_eof(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.close()


async def served(
    kind: type[BoundedHttp], pieces: list[bytes], *, waits: bool
) -> tuple[list[Any], list[bytes]]:
    """Return the requests that the application gets, and the first lines and bodies of the responses."""
    requests: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        names = ("method", "path", "raw_path", "query_string", "http_version", "headers", "root_path")
        requests.append(([scope[name] for name in names], body))
        length = b"%d" % len(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, interface="asgi3", log_config=None, proxy_headers=False)
    config.load()
    protocol = kind(config=config, server_state=ServerState(), app_state={})
    transport = FakeTransport()
    protocol.connection_made(cast("asyncio.Transport", transport))
    for piece in pieces:
        if not transport.is_closed:
            protocol.data_received(piece)
        if waits:
            await settled(protocol)
    await settled(protocol)
    protocol.connection_lost(None)
    await settled(protocol)
    blocks = transport.written.split(b"\r\n\r\n")
    return requests, [
        line for block in blocks for line in block.split(b"\r\n") if b"x-request-id" not in line
    ]


async def settled(protocol: BoundedHttp) -> None:
    for _ in range(6):
        await asyncio.sleep(0)


OTHERS = st.sampled_from(
    [
        HEAD.replace(b"Host: a", b"Host: c"),
        HEAD.replace(b": %d\r\n", b":\t%d \r\n"),
        HEAD.replace(b"User-Agent", b"Connection: keep-alive\r\nUser-Agent"),
        HEAD.replace(b"User-Agent", b"Connection: close\r\nUser-Agent"),
        HEAD.replace(b"%d", b"0%d"),
        HEAD.replace(b"%d", b"%dx"),
        HEAD.replace(b" HTTP/1.1", b" HTTP/1.0"),
        b"\r\n" + HEAD,
        HEAD.replace(b"POST /v1", b"POST http://d/v1"),
    ]
)
CHUNKED = b"POST /z HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
WHOLE = st.sampled_from([CHUNKED, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n"])
BODIES = st.sampled_from([b"", b"a", b"\r\n\r\n", b"x" * 100, HEAD % 3 + b"abc"])


@st.composite
def reads(draw: st.DrawFn) -> list[bytes]:
    """Return requests as they may be read: most repeat a head, some are in pieces, or come with the next one."""
    usual = draw(st.one_of(st.just(HEAD), OTHERS))
    pieces: list[bytes] = []
    for _ in range(draw(st.integers(3, 7))):
        kind = draw(st.integers(0, 9))
        if kind == 0:
            request = draw(WHOLE)
        else:
            body = draw(BODIES)
            request = (usual if kind > 1 else draw(OTHERS)) % len(body) + body
        cuts = sorted(draw(st.lists(st.integers(0, len(request)), max_size=2))) if draw(st.booleans()) else []
        parts = [request[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(request)], strict=True)]
        if pieces and draw(st.integers(0, 3)) == 0:
            parts[0] = pieces.pop() + parts[0]
        pieces += [part for part in parts if part]
    return pieces


OTHER = HEAD.replace(b"Host: a", b"Host: c")


# Two heads in one read; the rest of a body with the next request; a body that another request follows at once.
@example(pieces=[HEAD % 0, HEAD % 0 + OTHER % 0, HEAD % 0, OTHER % 0], waits=True)
@example(pieces=[HEAD % 0, HEAD % 0, HEAD % 4 + b"ab", b"cd" + HEAD % 1 + b"e", HEAD % 0], waits=True)
@example(pieces=[HEAD % 0, HEAD % 0, HEAD % 2 + b"ab" + OTHER % 1 + b"e", HEAD % 0], waits=False)
@given(pieces=reads(), waits=st.booleans())
@settings(max_examples=300, deadline=None)
def test_requests_are_served_as_with_the_parser(pieces: list[bytes], waits: bool) -> None:
    async def both() -> None:
        expected = await served(Parsed, pieces, waits=waits)

        assert await served(BoundedHttp, pieces, waits=waits) == expected

    asyncio.run(both())


async def test_a_head_is_not_parsed_from_the_third_request_on() -> None:
    parsed: list[bytes] = []

    class Counting(BoundedHttp):
        __slots__ = ()

        def _parse(self, data: bytes) -> None:
            parsed.append(data)
            super()._parse(data)

    request = HEAD % 3
    other = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    pieces = [request + b"abc", request + b"abc", other, request + b"def", request, b"gh", b"i"]

    requests, _ = await served(Counting, pieces, waits=True)

    assert [body for _, body in requests] == [b"abc", b"abc", b"", b"def", b"ghi"]
    assert parsed == [request + b"abc", request + b"abc", other]
