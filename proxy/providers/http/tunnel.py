"""Tunnels through an HTTP proxy of the operator (RFC 9110, 9.3.6), and the proxy variables of the environment."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from base64 import b64encode
from collections.abc import Mapping

from msgspec import Struct

from proxy.providers.http.url import HttpUrl

_MAX_HEAD_BYTES = 16 * 1024


class TunnelRefused(OSError):
    """The proxy did not open the tunnel."""


class HttpProxy(Struct, frozen=True):
    """An HTTP proxy, and the value of ``Proxy-Authorization`` if it needs one."""

    host: str
    port: int
    authorization: str | None = None

    @classmethod
    def at(cls, address: str) -> HttpProxy:
        """Return the proxy with this URL, for example ``http://user:password@proxy.example:3128``.

        Raises:
            ValueError: It is not such a URL.
        """
        url = HttpUrl.parse(address)
        if url.scheme != "http" or not url.host or url.port is None:
            raise ValueError("not the URL of an HTTP proxy")
        authorization = None
        if url.user is not None:
            credentials = f"{url.user}:{url.password or ''}"
            authorization = f"Basic {b64encode(credentials.encode()).decode()}"
        return cls(url.ascii_host, url.port, authorization)

    def for_host(self, host: str, port: int, *, is_tls: bool) -> HttpProxy | None:
        """Return the proxy for connections to the host, which is this one unless the host is this machine."""
        return None if _is_this_machine(host) else self

    async def open(self, connected: socket.socket, host: str, port: int) -> None:
        """Open a tunnel over a connection to the proxy.

        Raises:
            TunnelRefused: The proxy answered with an error, or not with HTTP.
        """
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connected, ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        head = b""
        while b"\r\n\r\n" not in head:
            # The server behind a tunnel waits for the client, so nothing but the head arrives.
            received = await loop.sock_recv(connected, 4096)
            head += received
            if not received or len(head) > _MAX_HEAD_BYTES:
                raise TunnelRefused
        version, _, rest = head.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest.startswith(b"2"):
            raise TunnelRefused


class EnvironmentProxies(Struct, frozen=True):
    """The proxies of the variables ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.

    They have no standard. As in curl and Go, lower-case names have precedence, and an address needs no scheme.
    """

    http: HttpProxy | None = None
    https: HttpProxy | None = None
    excluded: tuple[str, ...] = ()
    """Entries of ``NO_PROXY``, in lower case."""

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> EnvironmentProxies:
        """Return the proxies of an environment.

        Raises:
            ValueError: A value is not the address of an HTTP proxy; the message has the name of the variable.
        """
        excluded = variables.get("no_proxy") or variables.get("NO_PROXY") or ""
        return cls(
            _proxy_of(variables, "http_proxy"),
            _proxy_of(variables, "https_proxy"),
            tuple(entry.strip().lower() for entry in excluded.split(",") if entry.strip()),
        )

    def for_host(self, host: str, port: int, *, is_tls: bool) -> HttpProxy | None:
        """Return the proxy for connections to the host; None for this machine and for hosts that are excluded."""
        proxy = self.https if is_tls else self.http
        if proxy is None or _is_this_machine(host):
            return None
        return None if any(_is_excluded(host.lower(), port, entry) for entry in self.excluded) else proxy


def _proxy_of(variables: Mapping[str, str], name: str) -> HttpProxy | None:
    for candidate in (name, name.upper(), "all_proxy", "ALL_PROXY"):
        if address := variables.get(candidate, "").strip():
            try:
                return HttpProxy.at(address if "://" in address else f"http://{address}")
            except ValueError:
                raise ValueError(f"{candidate}: not the address of an HTTP proxy") from None
    return None


def _is_excluded(host: str, port: int, entry: str) -> bool:
    """Whether an entry names the host: a name with all names below it, an address, a network, or ``*``.

    A name or address can be followed by a port.
    """
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except (ValueError, TypeError):
        pass
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal() and (":" not in name or name.startswith("[")):
        if int(number) != port:
            return False
        entry = name.strip("[]")
    entry = entry.removeprefix("*").removeprefix(".")
    return host == entry or host.endswith(f".{entry}")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
