"""HTTP to providers: the connections of a process, how they are made, and what their errors mean."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from base64 import b64encode
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from aiohappyeyeballs import start_connection
from msgspec import Struct

from proxy.errors import UpstreamUnreachable
from proxy.providers.http.connection import Connection, ConnectionBroken, Owner, Response, request_head
from proxy.providers.http.entra import EntraSignIn
from proxy.providers.http.tls import TlsOptions
from proxy.providers.http.tunnel import EnvironmentProxies, HttpProxy, TunnelRefused
from proxy.providers.http.url import HttpUrl
from proxy.providers.timeouts import AlarmClock
from proxy.tracing import trace_headers

TRANSPORT_ERRORS = (ConnectionBroken, OSError)
"""What reading an answer raises when its connection fails."""
_ERROR_BODY_BYTES = 64 * 1024
_FOR_ERROR_BODY = 2.0
"""Seconds."""
_IDLE_SECONDS = 15.0
"""How long a connection waits for the next request; providers close theirs after a minute or more."""
_ADDRESS_SECONDS = 60.0
_NEXT_ADDRESS = 0.25
"""Seconds after which the next address of a name is tried in parallel to the one before (RFC 8305)."""


def _with_headers(head: bytes, headers: Mapping[str, str]) -> bytes:
    """Add headers to a head, whose last line is the unfinished content-length."""
    start, last = head.rsplit(b"\r\n", 1)
    lines = b"".join(f"\r\n{name}: {value}".encode("ascii") for name, value in headers.items())
    return b"%b%b\r\n%b" % (start, lines, last)


Addresses = Sequence[tuple[Any, ...]]
Place = tuple[str, int, bool]
"""Host, port, and whether connections to it use TLS."""


class Endpoint(Struct, frozen=True):
    """Where a model is asked, and with which head: all but the length of the body."""

    place: Place
    head: bytes
    needs_sign_in: bool = False
    """Whether each request carries a token of Entra ID, which is not part of ``head``."""

    @classmethod
    def at(
        cls, url: HttpUrl, headers: Mapping[str, str], method: str = "POST", *, needs_sign_in: bool = False
    ) -> Endpoint:
        """Return the endpoint for the URL.

        Raises:
            ValueError: It is not a URL of HTTP, or something in it cannot be sent.
        """
        if url.scheme not in ("http", "https") or not url.host or url.port is None:
            raise ValueError("not an http(s) URL")
        if url.user is not None and "authorization" not in headers:
            credentials = f"{url.user}:{url.password or ''}".encode()
            headers = {**headers, "authorization": f"Basic {b64encode(credentials).decode()}"}
        head = request_head(url.authority, url.target, headers, method)
        return cls((url.ascii_host, url.port, url.scheme == "https"), head, needs_sign_in)

    @property
    def host(self) -> str:
        """The host's name or address."""
        return self.place[0]


class HttpSession(Owner):
    """The connections of one process, opened when they are needed and reused by later requests."""

    def __init__(
        self,
        *,
        max_per_host: int | None = None,
        proxy: HttpProxy | EnvironmentProxies | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``max_per_host`` is the number of concurrent requests to one host and port; None for no limit.

        ``tls`` is the context of connections with TLS; None for the default.
        """
        self._max_per_host = max_per_host
        self._proxy = proxy
        self._busy: set[Connection] = set()
        """The connections with a request; empty without a limit."""
        self._reserved: Counter[Place] = Counter()
        self._waiting: defaultdict[Place, deque[asyncio.Future[None]]] = defaultdict(deque)
        self._idle: defaultdict[Place, list[Connection]] = defaultdict(list)
        self._places: dict[Connection, Place] = {}
        self._addresses: dict[tuple[str, int], tuple[float, Addresses]] = {}
        self._sign_in = EntraSignIn()
        self.alarm_clock = AlarmClock()
        """For the requests of this session."""
        self._tls = tls
        self._sweep: asyncio.TimerHandle | None = None

    async def ask(
        self, endpoint: Endpoint, body: bytes, *, connect: float, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send a request and return the answer when its head came; ``connect`` is in seconds.

        ``headers`` are those of this request only.

        Raises:
            UpstreamUnreachable: There is no answer.
            UpstreamAuthFailed: The sign-in that the endpoint needs failed.
        """
        head = endpoint.head
        if endpoint.needs_sign_in:
            # The last line of the head is the unfinished content-length.
            head = _with_headers(head, {"authorization": f"Bearer {await self._sign_in.token()}"})
        if headers:
            head = _with_headers(head, headers)
        if trace := trace_headers():
            head = _with_headers(head, trace)
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        place = endpoint.place
        if self._max_per_host is not None:
            await self._reserve(place, self._max_per_host, connect)
        connection = self._take(place)
        while True:
            is_reused = connection is not None
            if connection is None:
                connection = await self._open(place, connect)
            response = connection.ask(request)
            try:
                await response.news()
                return response
            except TRANSPORT_ERRORS:
                response.release()
                # A provider that closed an idle connection has not read the request (RFC 9112, section 9.3.1).
                if not is_reused or response.has_begun:
                    raise UpstreamUnreachable("broken", is_retryable=True) from None
            except BaseException:
                response.release()
                raise
            connection = None
            if self._max_per_host is not None:
                await self._reserve(place, self._max_per_host, connect)

    # --- limit of concurrent requests ---

    async def _reserve(self, place: Place, limit: int, seconds: float) -> None:
        """Wait until the host can get one more request.

        Raises:
            UpstreamUnreachable: It could not within the time.
        """
        if self._reserved[place] < limit:
            self._reserved[place] += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[place].append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._free(place)
            if isinstance(error, TimeoutError):
                raise UpstreamUnreachable("connection_limit", is_retryable=True) from None
            raise

    def _free(self, place: Place) -> None:
        """Give the reservation to the next request that waits."""
        if self._max_per_host is None:
            return
        waiting = self._waiting[place]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._reserved[place] -= 1

    def _end(self, connection: Connection, place: Place) -> None:
        if connection in self._busy:
            self._busy.discard(connection)
            self._free(place)

    @property
    def idle_count(self) -> int:
        """The number of connections without a request."""
        return sum(map(len, self._idle.values()))

    async def close(self) -> None:
        """Close every connection; a later request opens a new one."""
        for connection in list(self._places):
            connection.abort()
        self._idle.clear()
        await self._sign_in.close()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        # The loop reports the closed connections in its next iteration.
        await asyncio.sleep(0)

    # --- idle connections ---

    def idle(self, connection: Connection) -> None:
        """Retain it for the next request."""
        loop = connection.loop
        connection.idle_since = loop.time()
        place = self._places[connection]
        self._idle[place].append(connection)
        if self._busy:
            self._end(connection, place)
        if self._sweep is None:
            self._sweep = loop.call_later(_IDLE_SECONDS, self._close_old)

    def lost(self, connection: Connection) -> None:
        """Forget it; a connection can be lost before it is registered."""
        place = self._places.pop(connection, None)
        if place is None:
            return
        if connection in (idle := self._idle[place]):
            idle.remove(connection)
        self._end(connection, place)

    def _take(self, place: Place) -> Connection | None:
        idle = self._idle[place]
        while idle:
            # The newest is the least likely to be closed by the other side just now.
            connection = idle.pop()
            if connection.is_open:
                if self._max_per_host is not None:
                    self._busy.add(connection)
                return connection
        return None

    def _close_old(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = [connection for idle in self._idle.values() for connection in idle]
        for connection in waiting:
            if loop.time() - connection.idle_since >= _IDLE_SECONDS:
                connection.abort()
        self._sweep = loop.call_later(_IDLE_SECONDS, self._close_old) if waiting else None

    # --- new connections ---

    async def _open(self, place: Place, seconds: float) -> Connection:
        """Open a connection with the reservation of a request, which ends if that fails."""
        try:
            connection = await self._connect(place, seconds)
        except BaseException:
            self._free(place)
            raise
        self._places[connection] = place
        if self._max_per_host is not None:
            self._busy.add(connection)
        return connection

    async def _connect(self, place: Place, seconds: float) -> Connection:
        host, port, is_tls = place
        proxy = self._proxy.for_host(host, port, is_tls=is_tls) if self._proxy is not None else None
        next_hop = (host, port) if proxy is None else (proxy.host, proxy.port)
        try:
            async with asyncio.timeout(seconds):
                connected = await start_connection(
                    await self._resolved(*next_hop),
                    happy_eyeballs_delay=_NEXT_ADDRESS,
                    interleave=1,
                )
                if proxy is not None:
                    await _open_tunnel(proxy, connected, host, port)
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self),
                    sock=connected,
                    ssl=self._context() if is_tls else None,
                    server_hostname=host if is_tls else None,
                )
        except TimeoutError:
            self._addresses.pop(next_hop, None)
            raise UpstreamUnreachable("connect_timeout", is_retryable=True) from None
        except ssl.SSLError:
            self._addresses.pop(next_hop, None)
            raise UpstreamUnreachable("tls") from None
        except TunnelRefused:
            raise UpstreamUnreachable("proxy") from None
        except OSError:
            self._addresses.pop(next_hop, None)
            raise UpstreamUnreachable("refused", is_retryable=True) from None
        if not connection.is_open:
            raise UpstreamUnreachable("broken", is_retryable=True)
        return connection

    async def _resolved(self, host: str, port: int) -> Addresses:
        """Return the addresses of a name; they are resolved at most once a minute, and after a failed connection."""
        try:
            family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        except ValueError:
            pass
        else:
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
        loop = asyncio.get_running_loop()
        until, known = self._addresses.get((host, port), (0.0, ()))
        if loop.time() < until:
            return known
        try:
            found = await self.look_up(host, port)
        except (OSError, UnicodeError):
            raise UpstreamUnreachable("dns", is_retryable=True) from None
        self._addresses[host, port] = loop.time() + _ADDRESS_SECONDS, found
        return found

    async def look_up(self, host: str, port: int) -> Addresses:
        """Ask for the addresses of a name."""
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = TlsOptions().context()
        return self._tls


async def _open_tunnel(proxy: HttpProxy, connected: socket.socket, host: str, port: int) -> None:
    try:
        await proxy.open(connected, host, port)
    except BaseException:
        connected.close()
        raise


async def error_body(response: Response) -> bytes:
    """Return the beginning of an error body, as far as it arrives in time, and release the connection."""
    body = bytearray()
    try:
        async with asyncio.timeout(_FOR_ERROR_BODY):
            while len(body) < _ERROR_BODY_BYTES and (received := await response.read()):
                body += received
    except (TimeoutError, *TRANSPORT_ERRORS):
        pass
    finally:
        response.release()
    return bytes(body[:_ERROR_BODY_BYTES])
