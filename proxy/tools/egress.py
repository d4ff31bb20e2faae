"""How tools reach services on the network: JSON from addresses that the operator set, and from nowhere else.

What is asked is ``https`` at public addresses. A service that the operator set to ``http`` or to a literal private
address is one of his own: it has to be at a loopback or private address. Addresses of cloud metadata are never asked.
A host is resolved once, and the connection goes to the addresses that were checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeVar

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from proxy.errors import ToolError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the addresses of a host's name; raises ``OSError`` when there are none."""
Shape = TypeVar("Shape")

# Several services answer nobody whose name does not begin like a browser's; this is the usual honest form.
USER_AGENT = f"Mozilla/5.0 (compatible; handoff-proxy/{version('handoff-proxy')})"

_NUMERIC_HOST = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)
"""A host whose last part is a number: browsers and C libraries read such names as IPv4 addresses."""
_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in ("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")
)
"""Where clouds tell a machine its secrets; Azure's looks like any public address."""
_CARRIERS = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
"""IPv6 networks whose addresses end in an IPv4 address."""
_OWN_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
)
_MAX_KEPT = 256


class ServiceFailed(ToolError):
    """A service gave no usable answer; ``status`` is its HTTP status, where it had one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Service:
    """A service by the name under which people are told of it, and the address that the operator set."""

    name: str
    base: str


async def system_addresses(host: str) -> Sequence[str]:
    """Resolve as the system does."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Egress:
    """The way out for tools. Times are in seconds, for a whole request; nothing is held open between requests."""

    def __init__(
        self,
        *,
        time_limit: float = 10.0,
        max_bytes: int = 1024 * 1024,
        resolve: Resolve = system_addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._time_limit = time_limit
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._clock = clock
        self._kept: dict[str, tuple[float, bytes]] = {}

    async def get(
        self,
        service: Service,
        path: str,
        query: Mapping[str, str],
        shape: type[Shape],
        *,
        keep_seconds: float = 0.0,
    ) -> Shape:
        """Ask the service for JSON of a shape (a msgspec type); the answer is good for ``keep_seconds``.

        Raises:
            ServiceFailed: With a sentence that says what is wrong with the service, and nothing of what it wrote.
        """
        url = _url(service, path, query)
        key = str(url)
        kept = self._kept.get(key)
        if kept is not None and kept[0] > self._clock():
            return _decoded(service, kept[1], shape)
        body = await self._asked(service, url)
        answer = _decoded(service, body, shape)
        if keep_seconds:
            self._keep(key, body, keep_seconds)
        return answer

    def _keep(self, key: str, body: bytes, seconds: float) -> None:
        now = self._clock()
        if len(self._kept) >= _MAX_KEPT:
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0] > now}
            while len(self._kept) >= _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = (now + seconds, body)

    async def _asked(self, service: Service, url: URL) -> bytes:
        try:
            async with asyncio.timeout(self._time_limit):
                addresses = await self._addresses(service, url)
                return await self._fetched(service, url, addresses)
        except TimeoutError:
            raise ServiceFailed(
                f"{service.name} did not answer within {self._time_limit:g} seconds"
            ) from None
        # aiohttp lets a few bare exceptions of its parser and of asyncio through.
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError, ValueError, RuntimeError):
            raise ServiceFailed(f"{service.name} could not be reached") from None

    async def _addresses(self, service: Service, url: URL) -> Sequence[Address]:
        """Return where to connect to; every address of the host has to be allowed."""
        host = (url.host or "").rstrip(".")
        literal = _literal(host)
        if literal is None and _NUMERIC_HOST.fullmatch(host):
            raise _refused(service)
        if literal is not None:
            found: Sequence[Address] = [literal]
        else:
            # An address of a scope ("fe80::1%eth0") is link-local, and refused with or without its scope.
            found = [ipaddress.ip_address(text.partition("%")[0]) for text in await self._resolve(host)]
        is_own = (
            url.scheme == "http" or host == "localhost" or (literal is not None and not _is_public(literal))
        )
        is_allowed = _is_own if is_own else _is_public
        if not found or not all(is_allowed(address) for address in found):
            raise _refused(service)
        return found

    async def _fetched(self, service: Service, url: URL, addresses: Sequence[Address]) -> bytes:
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses), use_dns_cache=False, force_close=True, limit=1
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                # The limit is set around all of it; aiohttp's own would count anew for each address.
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session,
            session.get(url, headers=_HEADERS, allow_redirects=False) as response,
        ):
            _check(service, response)
            body = bytearray()
            while received := await response.content.readany():
                body += received
                if len(body) > self._max_bytes:
                    raise ServiceFailed(f"{service.name} sent more than {self._max_bytes} bytes")
            return bytes(body)


_HEADERS = {"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity"}


class _Pinned(AbstractResolver):
    """Gives the addresses that were checked, whatever the name would resolve to by now."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


def _url(service: Service, path: str, query: Mapping[str, str]) -> URL:
    try:
        url = URL(f"{service.base.rstrip('/')}{path}").with_query(query)
    except ValueError:
        raise _refused(service) from None
    if url.scheme not in ("http", "https") or not url.host or url.user or url.password:
        raise _refused(service)
    return url


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_public(address: Address) -> bool:
    plain = _inner(address)
    return plain.is_global and not plain.is_multicast and plain not in _METADATA


def _is_own(address: Address) -> bool:
    plain = _inner(address)
    if plain in _METADATA:
        return False
    return any(plain.version == network.version and plain in network for network in _OWN_NETWORKS)


def _inner(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address carries, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    carried = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
    if carried:
        return carried
    if address not in _OWN_NETWORKS[4] and any(address in network for network in _CARRIERS):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _refused(service: Service) -> ServiceFailed:
    return ServiceFailed(f"{service.name} is set to an address that tools may not ask")


def _check(service: Service, response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status == 429:
        raise ServiceFailed(f"{service.name} asks for a pause; try again in a few minutes", status)
    if 300 <= status < 400:
        raise ServiceFailed(f"{service.name} wants to send us elsewhere, which tools do not follow", status)
    if status != 200:
        raise ServiceFailed(f"{service.name} answered with an error (status {status})", status)
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if "json" not in response.content_type or coding not in ("identity", ""):
        raise ServiceFailed(f"{service.name} did not answer with JSON", status)


def _decoded(service: Service, body: bytes, shape: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ServiceFailed(f"{service.name} sent an answer that could not be read") from None
