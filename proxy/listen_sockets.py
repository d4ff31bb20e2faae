"""Bind the sockets of the server, before anything else of it is loaded."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from proxy.errors import ConfigurationError
from proxy.settings import Settings


@contextmanager
def bound_sockets(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Provide a bound socket for every address of the host, all with the same port; they do not listen yet.

    Raises:
        ConfigurationError: No socket could be bound.
    """
    sockets = _bind(host, port)
    try:
        yield sockets
    finally:
        for bound in sockets:
            bound.close()


def url_of(settings: Settings, sockets: Sequence[socket.socket]) -> str:
    """Return the URL of the server for clients."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.tls_certificate is not None else "http"
    return f"{scheme}://{host}:{sockets[0].getsockname()[1]}"


def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        # Encoded here if it is ASCII: for a string, the module loads the codec of international names, 0.3 MB.
        name = host.encode() if host.isascii() else host
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise ConfigurationError(f"PROXY_HOST: {host} cannot be resolved") from None
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bound(family, kind, protocol, (address[0], port, *address[2:])))
        except OSError as error:
            # A host can have an address of a family that this machine does not support.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for bound in sockets:
                    bound.close()
                raise _bind_error(host, port, error) from None
            continue
        port = sockets[0].getsockname()[1]
    if not sockets:
        raise ConfigurationError(f"PROXY_HOST: {host} is not an address of this machine")
    return sockets


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def _bind_error(host: str, port: int, error: OSError) -> ConfigurationError:
    match error.errno:
        case errno.EADDRINUSE:
            reason = "is in use by another program; stop it or choose another port"
        case errno.EACCES | errno.EPERM:
            reason = "requires more privileges; choose a port above 1023"
        case _:
            reason = f"cannot be bound ({error.strerror})"
    return ConfigurationError(f"PROXY_PORT: port {port} of {host} {reason}")
