"""A service that tools call over HTTP, and its failures."""

from __future__ import annotations

import ipaddress

from msgspec import Struct

from proxy.errors import ToolError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ServiceFailed(ToolError):
    """A service returned no usable response; ``status`` is the HTTP status, None if there was no response."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Service(Struct, frozen=True):
    """A service: its name in error messages, and the base URL that the operator configured."""

    name: str
    base: str
