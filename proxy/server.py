"""Run the application under uvicorn, with a shutdown that ends each stream with an event.

The lifespan of the application encloses that of uvicorn (``lifespan: off``), so that start-up errors are raised to the
caller instead of being logged as tracebacks.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from proxy.connection_share import ConnectionAcceptor, SharedSockets
from proxy.errors import ConfigurationError, StoreUnavailable
from proxy.http_protocol import bounded_http
from proxy.loop_ticks import next_tick
from proxy.routes.passthrough import PassthroughHandler
from proxy.service.turns import TurnService
from proxy.settings import Settings
from proxy.team_set import TeamReload

_SIGNAL_TICKS = 8
"""Ticks (``loop_ticks``) between two looks for a signal: a second."""

logger = logging.getLogger(__name__)


class ProxyServer(uvicorn.Server):
    """Server that ends running turns at shutdown; uvicorn alone waits for their streams and then closes them.

    ``on_started`` is called when the server accepts connections. With ``on_reload``, SIGHUP reloads the team files;
    it is called with the problem, or with None if the new teams are in use. Other workers accept connections from the
    sockets ``shared`` too.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_started: Callable[[], None] | None = None,
        on_reload: Callable[[str | None], None] | None = None,
        shared: SharedSockets | None = None,
    ) -> None:
        super().__init__(config)
        assert isinstance(config.app, FastAPI)
        self._app = config.app
        self._on_started = on_started
        self._on_reload = on_reload
        self._shared = shared
        self._acceptor: ConnectionAcceptor | None = None
        self._reloads: set[asyncio.Task[None]] = set()
        self._has_terminal = os.isatty(0)
        self._signalled = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, serve until a signal, and shut the application down."""
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            except StoreUnavailable:
                raise ConfigurationError(
                    "the database did not answer at the start: check that it runs, is not locked and has space"
                ) from None
            if self._on_reload is not None:
                self._loop.add_signal_handler(signal.SIGHUP, self._hang_up, self._on_reload)
            await super().serve(sockets)
            for task in self._reloads:
                task.cancel()
            await asyncio.gather(*self._reloads, return_exceptions=True)

    def _hang_up(self, on_reload: Callable[[str | None], None]) -> None:
        if self._has_terminal and not os.isatty(0):
            # The terminal of this process was closed.
            self.handle_exit(signal.SIGTERM, None)
            return
        task = asyncio.create_task(self._reload(on_reload), name="reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self, on_reload: Callable[[str | None], None]) -> None:
        reload: TeamReload = self._app.state.reload
        problem: str | None = None
        try:
            await reload.run()
        except (ConfigurationError, StoreUnavailable) as error:
            problem = error.message
            logger.error("team files not reloaded", extra={"problem": problem})
        except Exception:
            problem = "the reload failed; the log has the reason"
            logger.exception("team files not reloaded")
        on_reload(problem)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        if self._shared is not None:
            connections = self.server_state.connections
            self._acceptor = ConnectionAcceptor(
                self._shared, self._new_protocol, count=lambda: len(connections), tls=self.config.ssl
            )
            self._acceptor.start(backlog=self.config.backlog)
        if self._on_started is not None:
            self._on_started()

    def _new_protocol(self) -> asyncio.Protocol:
        # As ``uvicorn.Server.startup`` creates it.
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        return protocol

    async def main_loop(self) -> None:
        """Run until a signal. uvicorn wakes ten times a second to see one, which takes a thousandth of a core."""
        loop, counter = asyncio.get_running_loop(), 0
        while not await self.on_tick(counter):
            is_shared = self._acceptor is not None
            counter += 1 if is_shared else 10
            due = loop.time() + 0.1 if is_shared else next_tick(loop.time(), _SIGNAL_TICKS)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._signalled.wait()

    async def on_tick(self, counter: int) -> bool:
        """Run ten times a second, or once if no other worker shares the sockets."""
        if self._acceptor is not None:
            self._acceptor.publish()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down; a second Ctrl-C skips the grace time.

        Unlike uvicorn, this does not raise the signal again after the shutdown, so that the exit code is 0.
        """
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._hurry.set)
        if not self.should_exit and self._loop is not None:
            self._loop.call_soon_threadsafe(self._signalled.set)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for turns within the grace time, and cancel the others."""
        services = self._app.state.services
        turns: TurnService = services.turns
        passing: PassthroughHandler | None = services.passing
        logger.info("stopping", extra={"running_turns": turns.running})
        if self._acceptor is not None:
            self._acceptor.close()
        closing = asyncio.gather(
            self._close(turns, passing, grace=services.settings.shutdown_grace), super().shutdown(sockets)
        )
        late = asyncio.create_task(self._shut_down_late_connections(), name="late connections")
        try:
            await closing
        finally:
            late.cancel()
        logger.info("stopped")

    async def _shut_down_late_connections(self) -> None:
        """Shut down connections that begin after the server has stopped to listen.

        They were accepted before, or their TLS handshake was not complete. uvicorn would wait for their clients.
        """
        connections = self.server_state.connections
        while True:
            known = set(connections)
            await asyncio.sleep(0.1)
            for connection in connections - known:
                connection.shutdown()

    async def _close(self, turns: TurnService, passing: PassthroughHandler | None, *, grace: float) -> None:
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
    sockets: Sequence[socket.socket] | SharedSockets,
    *,
    on_started: Callable[[], None] | None = None,
    on_reload: Callable[[str | None], None] | None = None,
) -> None:
    """Serve on bound sockets until a signal. With ``on_reload``, SIGHUP reloads the team files (see ``ProxyServer``).

    Raises:
        ConfigurationError: The application cannot start with its configuration.
    """
    # Exclude the imported objects from garbage collection: a full collection over them blocks all streams for 90 ms.
    gc.collect()
    gc.freeze()
    # The default of 700 collects several times in every request: a collection takes time for each live object.
    gc.set_threshold(10_000, 10, 10)
    shared = sockets if isinstance(sockets, SharedSockets) else None
    own = [] if isinstance(sockets, SharedSockets) else list(sockets)
    server = ProxyServer(
        server_config(app, settings), on_started=on_started, on_reload=on_reload, shared=shared
    )
    server.run(own)


def server_config(app: FastAPI, settings: Settings, **changes: Any) -> uvicorn.Config:
    """Return the configuration of uvicorn for the application."""
    given: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "interface": "asgi3",
        # Nothing uses the address of a client, and ``legacy.browser_chats`` reads the header with the scheme.
        "proxy_headers": False,
        "ws": _websocket,
        # A larger message closes the WebSocket with the status 1009 (RFC 6455, 7.4.1).
        "ws_max_size": settings.max_body_bytes,
        # Each delta is a message: compression costs more than it saves, and memory per connection.
        "ws_per_message_deflate": False,
        "lifespan": "off",
        "http": bounded_http(
            head_timeout=settings.body_timeout, stall_timeout=settings.stalled_client_timeout
        ),
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": int(settings.forced_close_after),
        "ssl_certfile": settings.tls_certificate,
        "ssl_keyfile": settings.tls_key,
    }
    return uvicorn.Config(app, **{**given, **changes})


def _websocket(**arguments: Any) -> asyncio.Protocol:
    """Return the protocol of a connection that becomes a WebSocket; imported for the first one, with websockets."""
    from proxy.websocket_protocol import EnvelopeWebSocket

    return EnvelopeWebSocket(**arguments)
