"""HTTP client for tools with SSRF protection: JSON from the services that the operator configured.

A request goes over HTTPS to public addresses. If the configured URL has the scheme ``http``, the host ``localhost`` or
a literal private address, the address must be loopback or private instead. Addresses of cloud metadata services are
always rejected. A host is resolved once, and the client connects to the validated addresses (no DNS rebinding).
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
"""Returns the IP addresses of a host name; raises ``OSError`` if it cannot be resolved."""
Shape = TypeVar("Shape")

# Several services reject a User-Agent that does not start with "Mozilla/5.0"; crawlers identify themselves in this
# form.
USER_AGENT = f"Mozilla/5.0 (compatible; handoff-proxy/{version('handoff-proxy')})"

_NUMERIC_HOST = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)
"""A host whose last label is a number: browsers (URL Standard, "ends in a number") and C libraries parse it as IPv4."""
_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in ("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")
)
"""Metadata services of cloud providers, which return credentials; Azure's 168.63.129.16 is a public address."""
_EMBEDDED_IPV4 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
"""IPv6 networks whose addresses end in an IPv4 address: NAT64 (RFC 6052, 2.1), IPv4-compatible (RFC 4291, 2.5.5.1)."""
_PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
)
_MAX_CACHED = 256


class ServiceFailed(ToolError):
    """A service returned no usable response; ``status`` is the HTTP status, None if there was no response."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Service:
    """A service: its name in error messages, and the base URL that the operator configured."""

    name: str
    base: str


async def system_addresses(host: str) -> Sequence[str]:
    """Resolve a host name with the resolver of the operating system."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Egress:
    """HTTP client. ``time_limit`` is in seconds, for a whole request; connections are not reused."""

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
        self._cache: dict[str, tuple[float, bytes]] = {}

    async def get(
        self,
        service: Service,
        path: str,
        query: Mapping[str, str],
        shape: type[Shape],
        *,
        cache_seconds: float = 0.0,
    ) -> Shape:
        """GET JSON from the service, decoded as ``shape`` (a msgspec type); cache the body for ``cache_seconds``.

        Raises:
            ServiceFailed: The message describes the failure and contains nothing of the response.
        """
        url = _url(service, path, query)
        key = str(url)
        cached = self._cache.get(key)
        if cached is not None and cached[0] > self._clock():
            return _decode(service, cached[1], shape)
        body = await self._request(service, url)
        decoded = _decode(service, body, shape)
        if cache_seconds:
            self._store(key, body, cache_seconds)
        return decoded

    def _store(self, key: str, body: bytes, seconds: float) -> None:
        now = self._clock()
        if len(self._cache) >= _MAX_CACHED:
            self._cache = {key: entry for key, entry in self._cache.items() if entry[0] > now}
            while len(self._cache) >= _MAX_CACHED:
                del self._cache[next(iter(self._cache))]
        self._cache[key] = (now + seconds, body)

    async def _request(self, service: Service, url: URL) -> bytes:
        try:
            async with asyncio.timeout(self._time_limit):
                addresses = await self._addresses(service, url)
                return await self._fetch(service, url, addresses)
        except TimeoutError:
            raise ServiceFailed(
                f"{service.name} did not respond within {self._time_limit:g} seconds"
            ) from None
        # aiohttp does not wrap some exceptions of its parser and of asyncio.
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError, ValueError, RuntimeError):
            raise ServiceFailed(f"{service.name} could not be reached") from None

    async def _addresses(self, service: Service, url: URL) -> Sequence[Address]:
        """Return the addresses to connect to; fail unless every address of the host is allowed."""
        host = (url.host or "").rstrip(".")
        literal = _literal(host)
        if literal is None and _NUMERIC_HOST.fullmatch(host):
            raise _forbidden(service)
        if literal is not None:
            found: Sequence[Address] = [literal]
        else:
            # An address with a zone ("fe80::1%eth0", RFC 4007, 11) is link-local, which is rejected with or without it.
            found = [ipaddress.ip_address(text.partition("%")[0]) for text in await self._resolve(host)]
        must_be_private = (
            url.scheme == "http" or host == "localhost" or (literal is not None and not _is_public(literal))
        )
        is_allowed = _is_private if must_be_private else _is_public
        if not found or not all(is_allowed(address) for address in found):
            raise _forbidden(service)
        return found

    async def _fetch(self, service: Service, url: URL, addresses: Sequence[Address]) -> bytes:
        connector = aiohttp.TCPConnector(
            resolver=_FixedResolver(addresses), use_dns_cache=False, force_close=True, limit=1
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                # ``_request`` limits the whole time; aiohttp's timeout would start again for each address.
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session,
            session.get(url, headers=_HEADERS, allow_redirects=False) as response,
        ):
            _check_response(service, response)
            body = bytearray()
            while received := await response.content.readany():
                body += received
                if len(body) > self._max_bytes:
                    raise ServiceFailed(f"{service.name} sent more than {self._max_bytes} bytes")
            return bytes(body)


_HEADERS = {"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity"}


class _FixedResolver(AbstractResolver):
    """Return the validated addresses for any host, so that a second DNS answer cannot replace them."""

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
        """Do nothing: the resolver has no resources."""


def _url(service: Service, path: str, query: Mapping[str, str]) -> URL:
    try:
        url = URL(f"{service.base.rstrip('/')}{path}").with_query(query)
    except ValueError:
        raise _forbidden(service) from None
    if url.scheme not in ("http", "https") or not url.host or url.user or url.password:
        raise _forbidden(service)
    return url


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_public(address: Address) -> bool:
    effective = _embedded_ipv4(address)
    return effective.is_global and not effective.is_multicast and effective not in _METADATA


def _is_private(address: Address) -> bool:
    effective = _embedded_ipv4(address)
    if effective in _METADATA:
        return False
    return any(effective.version == network.version and effective in network for network in _PRIVATE_NETWORKS)


def _embedded_ipv4(address: Address) -> Address:
    """Return the IPv4 address embedded in an IPv6 address (mapped, 6to4, Teredo, NAT64), or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    embedded = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
    if embedded:
        return embedded
    if address not in _PRIVATE_NETWORKS[4] and any(address in network for network in _EMBEDDED_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _forbidden(service: Service) -> ServiceFailed:
    return ServiceFailed(f"{service.name} is configured with an address that tools must not access")


def _check_response(service: Service, response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status == 429:
        raise ServiceFailed(f"{service.name} is rate limiting requests; try again in a few minutes", status)
    if 300 <= status < 400:
        raise ServiceFailed(f"{service.name} responded with a redirect, which tools do not follow", status)
    if status != 200:
        raise ServiceFailed(f"{service.name} responded with an error (status {status})", status)
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if "json" not in response.content_type or coding not in ("identity", ""):
        raise ServiceFailed(f"{service.name} did not respond with JSON", status)


def _decode(service: Service, body: bytes, shape: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ServiceFailed(f"{service.name} sent a response that could not be decoded") from None
