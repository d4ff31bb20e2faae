"""Tunnels through an HTTP proxy of the operator (RFC 9110, 9.3.6)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import unquote

from yarl import URL

_MAX_HEAD_BYTES = 16 * 1024


class TunnelRefused(OSError):
    """The proxy did not open the tunnel."""


@dataclass(frozen=True, slots=True)
class HttpProxy:
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
        url = URL(address)
        if url.scheme != "http" or not url.host or url.port is None:
            raise ValueError("not the URL of an HTTP proxy")
        authorization = None
        if url.raw_user is not None:
            credentials = f"{unquote(url.raw_user)}:{unquote(url.raw_password or '')}"
            authorization = f"Basic {b64encode(credentials.encode()).decode()}"
        return cls(url.raw_host or url.host, url.port, authorization)

    def serves(self, host: str) -> bool:
        """Whether connections to the host go through the proxy: all but those to this machine."""
        try:
            return not ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host != "localhost" and not host.endswith(".localhost")

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
