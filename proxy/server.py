"""Runs the application under uvicorn, and stops it so that no stream is simply cut.

The application's own start and end happen around uvicorn's, not inside of it: what goes wrong there is raised to
whoever serves, instead of being logged as a trace.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from proxy.errors import ConfigurationError, StoreUnavailable
from proxy.http_protocol import bounded_http
from proxy.routes.passthrough import Passing
from proxy.service.turns import TurnService
from proxy.settings import Settings
from proxy.websocket_protocol import EnvelopeWebSocket

logger = logging.getLogger(__name__)

LATEST = 10.0
"""Seconds behind the grace time after which connections that still are open are cut."""


class ProxyServer(uvicorn.Server):
    """Tells the turns to end when the server is asked to stop; uvicorn alone would wait for them, and then cut them.

    ``on_started`` is called when connections are accepted.
    """

    def __init__(self, config: uvicorn.Config, *, on_started: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        assert isinstance(config.app, FastAPI)
        self._app = config.app
        self._on_started = on_started
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, serve until a signal, end the application."""
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            except StoreUnavailable:
                raise ConfigurationError(
                    "the database did not answer at the start: check that it runs, is not locked and has space"
                ) from None
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self._on_started is not None:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, and at a second Ctrl-C stop at once.

        Unlike uvicorn's own, this does not let the signal end the process afterwards: to be stopped is no failure.
        """
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._hurry.set)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let turns finish within the grace time, end the others properly."""
        services = self._app.state.services
        turns: TurnService = services.turns
        passing: Passing | None = services.passing
        logger.info("stopping", extra={"running_turns": turns.running})
        await asyncio.gather(
            self._close(turns, passing, grace=services.settings.shutdown_grace), super().shutdown(sockets)
        )
        logger.info("stopped")

    async def _close(self, turns: TurnService, passing: Passing | None, *, grace: float) -> None:
        async def close(grace: float) -> None:
            await asyncio.gather(
                turns.close(grace=grace), *([passing.close(grace=grace)] if passing is not None else [])
            )

        closing = asyncio.create_task(close(grace), name="closing")
        hurried = asyncio.create_task(self._hurry.wait(), name="hurry")
        await asyncio.wait([closing, hurried], return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            await close(0)
        hurried.cancel()
        await closing


def serve_forever(
    app: FastAPI,
    settings: Settings,
    sockets: list[socket.socket],
    *,
    on_started: Callable[[], None] | None = None,
) -> None:
    """Serve on bound sockets until a signal ends it.

    Raises:
        ConfigurationError: The application cannot be started as it is set up.
    """
    # What is there now stays to the end. A full collection that goes through all of it holds every stream for 90 ms.
    gc.collect()
    gc.freeze()
    ProxyServer(server_config(app, settings), on_started=on_started).run(sockets)


def url_of(host: str, sockets: Sequence[socket.socket]) -> str:
    """Return where a client finds what is served on the sockets of a host."""
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{sockets[0].getsockname()[1]}"


@contextmanager
def bound_sockets(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Give a bound socket for every address of the host, all with the same port; nobody can connect to them yet.

    Raises:
        ConfigurationError: There is none that could be bound.
    """
    sockets = _bind(host, port)
    try:
        yield sockets
    finally:
        for bound in sockets:
            bound.close()


def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise ConfigurationError(f"PROXY_HOST: no address is known for {host}") from None
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bound(family, kind, protocol, (address[0], port, *address[2:])))
        except OSError as error:
            # A host may have an address of a family that this machine does not use.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for bound in sockets:
                    bound.close()
                raise _refused(host, port, error) from None
            continue
        port = sockets[0].getsockname()[1]
    if not sockets:
        raise ConfigurationError(f"PROXY_HOST: {host} is no address of this machine")
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


def _refused(host: str, port: int, error: OSError) -> ConfigurationError:
    match error.errno:
        case errno.EADDRINUSE:
            reason = "is in use by another program; stop that one, or choose another port"
        case errno.EACCES | errno.EPERM:
            reason = "may not be used by this user; choose one above 1023"
        case _:
            reason = f"cannot be listened on ({error.strerror})"
    return ConfigurationError(f"PROXY_PORT: port {port} of {host} {reason}")


def server_config(app: FastAPI, settings: Settings, **changes: Any) -> uvicorn.Config:
    """Return how uvicorn is to run the application."""
    given: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "ws": EnvelopeWebSocket,
        # One that is larger closes the socket with 1009 and the reason.
        "ws_max_size": settings.max_body_bytes,
        # Each piece of text is a message of its own: compressing it costs more than sending it, and memory per socket.
        "ws_per_message_deflate": False,
        "lifespan": "off",
        "http": bounded_http(settings.body_timeout),
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": int(settings.shutdown_grace + LATEST),
    }
    return uvicorn.Config(app, **{**given, **changes})
