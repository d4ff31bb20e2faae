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
from typing import TYPE_CHECKING, TypeVar

import msgspec

from proxy.tools.external_service import Address, Service, ServiceFailed

if TYPE_CHECKING:
    from yarl import URL

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the IP addresses of a host name; raises ``OSError`` if it cannot be resolved."""
Shape = TypeVar("Shape")

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
        # Imported on demand: aiohttp takes 7 MB of memory and 0.1 s of the start.
        from proxy.tools.service_request import FAILURES, fetch

        try:
            async with asyncio.timeout(self._time_limit):
                addresses = await self._addresses(service, url)
                return await fetch(service, url, addresses, max_bytes=self._max_bytes)
        except TimeoutError:
            raise ServiceFailed(
                f"{service.name} did not respond within {self._time_limit:g} seconds"
            ) from None
        except FAILURES:
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


def _url(service: Service, path: str, query: Mapping[str, str]) -> URL:
    from yarl import URL

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


def _decode(service: Service, body: bytes, shape: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ServiceFailed(f"{service.name} sent a response that could not be decoded") from None
