"""The limit of concurrent requests to a host, and HTTP proxies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from proxy.errors import UpstreamUnreachable
from proxy.providers.http.connection import Response
from proxy.providers.http.pool import Endpoint, HttpSession
from proxy.providers.http.tunnel import EnvironmentProxies, HttpProxy
from proxy.providers.http.url import HttpUrl

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers each request when ``allowed`` has a permit; knows the heads and how many waited at the same time."""

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        self.most = 0
        self.allowed = asyncio.Semaphore(0)
        self.has_request = asyncio.Condition()
        self._running = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                self._running += 1
                self.most = max(self.most, self._running)
                async with self.has_request:
                    self.has_request.notify_all()
                await self.allowed.acquire()
                self._running -= 1
                writer.write(self.reply(head))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    def reply(self, head: bytes) -> bytes:
        return OK

    async def received(self, count: int) -> None:
        async with self.has_request:
            await self.has_request.wait_for(lambda: len(self.heads) >= count)


@asynccontextmanager
async def serving(make: Callable[[], Server] = Server) -> AsyncIterator[Server]:
    created = make()
    server = await asyncio.start_server(created.serve, "127.0.0.1", 0)
    created.port = server.sockets[0].getsockname()[1]
    try:
        yield created
    finally:
        server.close()


@asynccontextmanager
async def limited(limit: int) -> AsyncIterator[HttpSession]:
    session = HttpSession(max_per_host=limit)
    yield session
    await session.close()


def endpoint(port: int, host: str = "127.0.0.1") -> Endpoint:
    return Endpoint.at(HttpUrl.parse(f"http://{host}:{port}/v1"), {})


async def text(response: Response) -> bytes:
    body = b""
    while data := await response.read():
        body += data
    response.release()
    return body


async def call(session: HttpSession, place: Endpoint, *, connect: float = 5.0) -> bytes:
    return await text(await session.ask(place, b"", connect=connect))


async def test_no_more_requests_than_the_limit_run_at_the_same_time() -> None:
    async with serving() as server, limited(2) as session:
        calls = [asyncio.create_task(call(session, endpoint(server.port))) for _ in range(7)]
        await server.received(2)
        for _ in calls:
            server.allowed.release()

        assert await asyncio.gather(*calls) == [b"ok"] * 7
        assert (server.most, len(server.heads), session.idle_count) == (2, 7, 2)


async def test_a_request_over_the_limit_fails_after_the_connect_timeout() -> None:
    async with serving() as server, limited(1) as session:
        running = asyncio.create_task(call(session, endpoint(server.port)))
        await server.received(1)

        with pytest.raises(UpstreamUnreachable) as failed:
            await call(session, endpoint(server.port), connect=0.01)

        server.allowed.release()
        assert (failed.value.label, failed.value.is_retryable) == ("connection_limit", True)
        assert await running == b"ok"


async def test_cancelled_and_failed_requests_leave_room_for_others() -> None:
    async with serving() as server, limited(1) as session:
        running = asyncio.create_task(call(session, endpoint(server.port)))
        await server.received(1)
        waiting = asyncio.create_task(call(session, endpoint(server.port)))
        await asyncio.sleep(0)
        waiting.cancel()
        running.cancel()
        await asyncio.gather(waiting, running, return_exceptions=True)
        for _ in range(3):
            with pytest.raises(UpstreamUnreachable):
                await call(session, endpoint(1))
        for _ in range(2):
            server.allowed.release()

        assert await call(session, endpoint(server.port)) == b"ok"


async def test_hosts_have_separate_limits() -> None:
    async with serving() as one, serving() as other, limited(1) as session:
        running = asyncio.create_task(call(session, endpoint(one.port)))
        await one.received(1)
        other.allowed.release()

        assert await call(session, endpoint(other.port)) == b"ok"

        one.allowed.release()
        assert await running == b"ok"


class Proxy(Server):
    """Opens every tunnel but those to ``forbidden.example``, and answers in place of the server behind it."""

    def reply(self, head: bytes) -> bytes:
        if not head.startswith(b"CONNECT "):
            return OK
        if b"forbidden.example" in head:
            return b"HTTP/1.1 403 Forbidden\r\n\r\n"
        return b"HTTP/1.1 200 Connection established\r\n\r\n"


async def test_requests_go_through_a_tunnel_of_the_proxy() -> None:
    async with serving(Proxy) as server:
        session = HttpSession(proxy=HttpProxy.at(f"http://me:p%40ss@127.0.0.1:{server.port}"))
        for _ in range(3):
            server.allowed.release()

        answers = [await call(session, endpoint(8080, "models.example")) for _ in range(2)]

        await session.close()
        assert answers == [b"ok", b"ok"]
        assert server.heads[0] == (
            b"CONNECT models.example:8080 HTTP/1.1\r\nHost: models.example:8080\r\n"
            b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n\r\n"
        )
        assert [head.split(b" ", 1)[0] for head in server.heads] == [b"CONNECT", b"POST", b"POST"]


async def test_a_rejected_tunnel_is_an_error_without_retry() -> None:
    async with serving(Proxy) as server:
        session = HttpSession(proxy=HttpProxy.at(f"http://127.0.0.1:{server.port}"))
        server.allowed.release()

        with pytest.raises(UpstreamUnreachable) as failed:
            await call(session, endpoint(80, "forbidden.example"))

        await session.close()
        assert (failed.value.label, failed.value.is_retryable) == ("proxy", False)


async def test_this_machine_is_reached_without_the_proxy() -> None:
    async with serving() as server, serving(Proxy) as unused:
        session = HttpSession(proxy=HttpProxy.at(f"http://127.0.0.1:{unused.port}"))
        server.allowed.release()

        assert await call(session, endpoint(server.port)) == b"ok"

        await session.close()
        assert unused.heads == []


@pytest.mark.parametrize("address", ["https://proxy:3128", "socks5://proxy:1080", "proxy:3128", "http://"])
def test_other_addresses_of_proxies_are_rejected(address: str) -> None:
    with pytest.raises(ValueError, match=r"proxy|host|URL|netloc"):
        HttpProxy.at(address)


WEB, SECURE = HttpProxy("web", 3128), HttpProxy("secure", 3129)


def chosen(url: str, **variables: str) -> HttpProxy | None:
    place = HttpUrl.parse(url)
    assert place.host is not None
    assert place.port is not None
    return EnvironmentProxies.of(variables).for_host(place.host, place.port, is_tls=place.scheme == "https")


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("http://a.example", {"HTTP_PROXY": "http://web:3128", "HTTPS_PROXY": "http://secure:3129"}, WEB),
        ("https://a.example", {"HTTP_PROXY": "http://web:3128", "HTTPS_PROXY": "http://secure:3129"}, SECURE),
        ("https://a.example", {"HTTP_PROXY": "http://web:3128"}, None),
        ("https://a.example", {"ALL_PROXY": "web:3128"}, WEB),
        ("https://a.example", {"https_proxy": "secure:3129", "HTTPS_PROXY": "web:3128"}, SECURE),
        ("https://a.example", {"https_proxy": "", "HTTPS_PROXY": "web:3128"}, WEB),
        ("https://a.example", {}, None),
        ("http://127.0.0.2", {"HTTP_PROXY": "web:3128"}, None),
        ("http://localhost", {"HTTP_PROXY": "web:3128"}, None),
    ],
)
def test_the_variables_of_the_environment_name_proxies(
    url: str, variables: dict[str, str], expected: HttpProxy | None
) -> None:
    assert chosen(url, **variables) == expected


@pytest.mark.parametrize(
    ("host", "excluded", "expected"),
    [
        ("a.example", "example", None),
        ("a.example", ".example", None),
        ("a.example", "*.example", None),
        ("A.Example", "a.EXAMPLE", None),
        ("a.example", "b.example, a.example:80", None),
        ("a.example", "a.example:8080", WEB),
        ("an.example", "n.example", WEB),
        ("a.example", "*", None),
        ("a.example", " , ", WEB),
        ("10.1.2.3", "10.0.0.0/8", None),
        ("10.1.2.3", "10.1.2.3", None),
        ("10.1.2.3", "10.1.2.3:80", None),
        ("10.1.2.3", "10.1.2.3:81", WEB),
        ("11.1.2.3", "10.0.0.0/8", WEB),
        ("[fd00::1]", "fd00::/8", None),
        ("[fd00::1]", "[fd00::1]:80", None),
        ("[fd00::1]", "10.0.0.0/8", WEB),
        ("api.example", "api.example:²", WEB),
    ],
)
def test_hosts_can_be_excluded(host: str, excluded: str, expected: HttpProxy | None) -> None:
    assert chosen(f"http://{host}:80", HTTP_PROXY="web:3128", NO_PROXY=excluded) == expected


def test_an_invalid_variable_is_an_error_without_its_value() -> None:
    with pytest.raises(ValueError, match=r"^HTTPS_PROXY: not the address of an HTTP proxy$"):
        EnvironmentProxies.of({"HTTPS_PROXY": "socks5://me:secret@proxy:1080"})
