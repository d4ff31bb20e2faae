"""Connections to providers: which are used again, and what a provider cannot do to us by what it sends."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from proxy.errors import UpstreamUnreachable
from proxy.providers.http.connection import HIGH_WATER, Connection, ConnectionBroken, Owner, Response
from proxy.providers.http.pool import Addresses, Endpoint, HttpSession
from proxy.providers.http.url import HttpUrl
from tests.fakes.certificates import make_certificate
from tests.server import free_port

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Provider:
    """A server that does with every request what the test says, and keeps what it was sent."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self.connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.rpartition(b"content-length: ")[2])
                self.requests.append(head + await reader.readexactly(length))
                await self._play(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def says(*pieces: bytes, then_close: bool = False) -> Play:
    async def play(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then_close:
            writer.close()

    return play


@asynccontextmanager
async def provider(play: Play) -> AsyncIterator[tuple[Provider, Endpoint]]:
    playing = Provider(play)
    server = await asyncio.start_server(playing.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield playing, Endpoint.at(HttpUrl.parse(f"http://127.0.0.1:{port}/v1/ask?a=1"), {"x-key": "k"})


async def whole(response: Response) -> bytes:
    """Read an answer to its end, and give its connection back."""
    body = b""
    try:
        while received := await response.read():
            body += received
    finally:
        response.release()
    return body


async def test_a_request_is_sent_unchanged(http_session: HttpSession) -> None:
    async with provider(says(OK)) as (playing, endpoint):
        assert await whole(await http_session.ask(endpoint, b"{}", connect=1)) == b"ok"

    head, _, body = playing.requests[0].partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /v1/ask?a=1 HTTP/1.1"
    assert head.splitlines()[1:] == [b"host: " + head.splitlines()[1][6:], b"x-key: k", b"content-length: 2"]
    assert body == b"{}"


@pytest.mark.parametrize(
    ("play", "connections"),
    [
        (says(OK), 1),
        (says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), 1),
        (says(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", OK), 1),
        (says(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"), 2),
        (says(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"), 2),
        (says(b"HTTP/1.1 200 OK\r\n\r\nok", then_close=True), 2),
        (says(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother"), 2),
        (says(OK + b"nonsense"), 2),
    ],
    ids=[
        "with a length",
        "in chunks",
        "behind an interim answer",
        "that closes",
        "of HTTP/1.0",
        "that ends with the connection",
        "with another answer behind it",
        "with nonsense behind it",
    ],
)
async def test_only_a_clean_connection_is_used_again(
    http_session: HttpSession, play: Play, connections: int
) -> None:
    async with provider(play) as (playing, endpoint):
        answers = [await whole(await http_session.ask(endpoint, b"{}", connect=1)) for _ in range(2)]

    assert answers == [b"ok", b"ok"]
    assert playing.connections == connections


async def test_a_connection_whose_answer_was_not_read_to_its_end_is_closed(http_session: HttpSession) -> None:
    async with provider(says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok")) as (playing, endpoint):
        response = await http_session.ask(endpoint, b"{}", connect=1)
        assert await response.read() == b"ok"
        response.release()
        (await http_session.ask(endpoint, b"{}", connect=1)).release()

    assert playing.connections == 2


async def test_a_connection_that_the_provider_closed_is_not_used_again(http_session: HttpSession) -> None:
    async with provider(says(OK, then_close=True)) as (playing, endpoint):
        await whole(await http_session.ask(endpoint, b"{}", connect=1))
        while http_session.idle_count:
            await asyncio.sleep(0)
        await whole(await http_session.ask(endpoint, b"{}", connect=1))

    assert playing.connections == 2


async def test_data_received_before_a_disconnect_is_read_first(http_session: HttpSession) -> None:
    play = says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", then_close=True)
    async with provider(play) as (_, endpoint):
        response = await http_session.ask(endpoint, b"{}", connect=1)

        assert await response.read() == b"ok"
        with pytest.raises(ConnectionBroken):
            await response.read()
        response.release()


async def test_a_head_with_an_invalid_body_behind_it_is_read(http_session: HttpSession) -> None:
    head = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ntransfer-encoding: chunked\r\n\r\n"
    async with provider(says(head + b"nonsense")) as (_, endpoint):
        response = await http_session.ask(endpoint, b"{}", connect=1)

        assert (response.status, response.headers["retry-after"]) == (429, "7")
        with pytest.raises(ConnectionBroken):
            await whole(response)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %b\r\n" % (n, b"x" * 900) for n in range(100)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=["90 KB of headers", "two lengths", "a length and chunks", "another protocol"],
)
async def test_an_ambiguous_response_is_rejected(http_session: HttpSession, sent: bytes) -> None:
    async with provider(says(sent)) as (_, endpoint):
        with pytest.raises(UpstreamUnreachable) as refused:
            await http_session.ask(endpoint, b"{}", connect=1)

    assert refused.value.label == "broken"


async def test_a_provider_waits_for_a_reader_that_is_slow(http_session: HttpSession) -> None:
    # Several times what the buffers of two sockets hold, which is about 4 MB on Linux.
    total = 48 * HIGH_WATER
    sent = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with provider(pour) as (_, endpoint):
        response = await http_session.ask(endpoint, b"{}", connect=1)
        # That nothing more is sent can only be seen by waiting.
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        taken = sent

        assert len(await whole(response)) == total
    # In addition to the data held here, there are the buffers of two sockets.
    assert taken < total


async def test_closing_the_session_ends_running_requests(http_session: HttpSession) -> None:
    async with provider(says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok")) as (_, endpoint):
        response = await http_session.ask(endpoint, b"{}", connect=1)
        await http_session.close()

        assert await response.read() == b"ok"
        with pytest.raises(ConnectionBroken):
            await response.read()


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://provider.example/v1", {"x-key": "a\r\nx-other: b"}),
        ("http://provider.example/v1", {"x-key\n": "a"}),
        ("http://provider.example/v1", {"x-key": "ä"}),
        ("ftp://provider.example/v1", {}),
        ("http:///v1", {}),
    ],
)
def test_an_endpoint_that_cannot_be_sent_to_is_refused(url: str, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its message is not part of the contract
        Endpoint.at(HttpUrl.parse(url), headers)


def test_credentials_of_the_url_are_sent_as_such_and_not_as_part_of_the_host() -> None:
    head = Endpoint.at(HttpUrl.parse("https://me:secret@provider.example:8443/v1"), {}).head

    assert b"host: provider.example:8443\r\n" in head
    assert b"authorization: Basic bWU6c2VjcmV0\r\n" in head


async def test_a_response_whose_headers_are_forgotten_knows_where_it_ends(http_session: HttpSession) -> None:
    cut = says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", then_close=True)
    async with provider(cut) as (_, endpoint):
        response = await http_session.ask(endpoint, b"{}", connect=1)
        response.forget_headers()

        assert response.headers == {}
        assert await response.read() == b"ok"
        with pytest.raises(ConnectionBroken):
            await response.read()
        response.release()


async def test_a_connection_that_the_provider_closes_on_the_next_request_is_replaced(
    http_session: HttpSession,
) -> None:
    answered: list[bool] = []

    async def play(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(answered) == 1:
            # The provider's time limit of idle connections ended just when the request was sent.
            writer.transport.abort()
        else:
            writer.write(OK)
        answered.append(True)

    async with provider(play) as (playing, endpoint):
        answers = [await whole(await http_session.ask(endpoint, b"{}", connect=1)) for _ in range(2)]

    assert answers == [b"ok", b"ok"]
    assert playing.connections == 2


async def test_a_request_is_not_sent_again_after_a_part_of_the_first_line(http_session: HttpSession) -> None:
    answered: list[bool] = []

    async def play(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 2" if answered else OK)
        if answered:
            writer.close()
        answered.append(True)

    async with provider(play) as (playing, endpoint):
        await whole(await http_session.ask(endpoint, b"{}", connect=1))
        with pytest.raises(UpstreamUnreachable):
            await http_session.ask(endpoint, b"{}", connect=1)

    assert len(playing.requests) == 2


def pours(start: bytes) -> Play:
    """Send ``start``, then one letter until the client closes the connection, or several megabytes."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        for _ in range(16 * HIGH_WATER // 16384):
            writer.write(b"x" * 16384)
            await writer.drain()

    return play


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nx-name: ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 "])
async def test_a_head_that_does_not_end_is_limited(http_session: HttpSession, start: bytes) -> None:
    async with provider(pours(start)) as (_, endpoint):
        with pytest.raises(UpstreamUnreachable) as refused:
            async with asyncio.timeout(5):
                await http_session.ask(endpoint, b"{}", connect=1)

    assert refused.value.label == "broken"


async def test_a_trailer_that_does_not_end_is_limited(http_session: HttpSession) -> None:
    start = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-name: "
    async with provider(pours(start)) as (_, endpoint):
        response = await http_session.ask(endpoint, b"{}", connect=1)
        assert await response.read() == b"ok"
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionBroken):
                await response.read()
        response.release()


async def test_headers_are_those_of_the_final_head_and_the_first_of_a_name_counts(
    http_session: HttpSession,
) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\nX-Name: early\r\n\r\n"
    names = b"X-Name: one\r\nTransfer-Encoding: chunked\r\nx-name: two\r\nX-Name: three\r\nx-byte: \xe9\r\n"
    head = b"HTTP/1.1 200 OK\r\n%b\r\n" % names
    body = b"2\r\nok\r\n0\r\nx-trailer: t\r\nx-name: four\r\n\r\n"
    async with provider(says(early + head + body)) as (_, endpoint):
        response = await http_session.ask(endpoint, b"{}", connect=1)
        assert await whole(response) == b"ok"

    assert response.headers == {"x-name": "one", "transfer-encoding": "chunked", "x-byte": "é"}
    assert response.fields == {b"x-name": b"one", b"transfer-encoding": b"chunked", b"x-byte": b"\xe9"}


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_a_function_can_get_the_reads_of_a_connection(
    tmp_path: Path, has_tls: bool, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    may_send = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        for piece in (b"3\r\ntwo\r\n", b"5\r\nthree\r\n"):
            await may_send.acquire()
            writer.write(piece)
        await may_send.acquire()
        writer.close()

    async def call() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context if has_tls else None)
        url = f"{'https' if has_tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        session = HttpSession(tls=ssl.create_default_context(cafile=certificate))
        processed: asyncio.Queue[bytes] = asyncio.Queue()
        async with server, asyncio.timeout(20):
            response = await session.ask(Endpoint.at(HttpUrl.parse(url), {}), b"{}", connect=5)
            assert await response.read() == b"one"
            response.process_directly(processed.put_nowait)
            may_send.release()
            assert await processed.get() == b"3\r\ntwo\r\n"
            response.process_directly(None)
            may_send.release()
            assert await response.read() == b"three"
            response.process_directly(processed.put_nowait)
            may_send.release()
            with pytest.raises(ConnectionBroken):
                await response.read()
            response.process_directly(None)
            response.release()
        await session.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(call())


class FakeTransport(asyncio.Transport):
    """A transport that is written to and closed."""

    is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True


@pytest.mark.parametrize("field", [b"x-name: %b\r\n", b"%b: x\r\n"], ids=["value", "name"])
async def test_a_head_is_limited_even_if_a_body_follows_at_once(field: bytes) -> None:
    connection, transport = Connection(Owner()), FakeTransport()
    connection.connection_made(transport)
    response = connection.ask(b"request")

    connection.data_received(
        b"HTTP/1.1 200 OK\r\n%bcontent-length: 2\r\n\r\nok" % (field % (b"x" * 64 * 1024))
    )

    with pytest.raises(ConnectionBroken):
        await response.news()
    assert transport.is_aborted


async def test_a_new_connection_without_an_answer_is_not_replaced(http_session: HttpSession) -> None:
    async with provider(says(then_close=True)) as (playing, endpoint):
        with pytest.raises(UpstreamUnreachable):
            await http_session.ask(endpoint, b"{}", connect=1)

    assert playing.connections == 1


async def test_the_addresses_of_a_name_are_looked_up_again_after_a_failed_connection() -> None:
    session = MovingProvider()
    async with provider(says(OK)) as (_, moved):
        endpoint = Endpoint.at(HttpUrl.parse("http://provider.example:1/v1/ask"), {})
        session.port = free_port()
        with pytest.raises(UpstreamUnreachable):
            await session.ask(endpoint, b"{}", connect=1)
        session.port = moved.place[1]

        assert await whole(await session.ask(endpoint, b"{}", connect=1)) == b"ok"
    await session.close()
    assert session.look_ups == 2


class MovingProvider(HttpSession):
    """A session for which every name has one address, which the test changes."""

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        self.look_ups = 0

    async def look_up(self, host: str, port: int) -> Addresses:
        self.look_ups += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", self.port))]


async def test_a_connection_can_be_lost_before_it_is_registered(http_session: HttpSession) -> None:
    connection = Connection(http_session)

    connection.connection_lost(None)

    assert http_session.idle_count == 0
