"""ASGI application for other servers than ``handoff-proxy serve``: ``uvicorn proxy.asgi:app``.

Settings come from the environment and ``.env``. The importing server determines addresses, access log and shutdown;
docs/workers.md lists the differences. Without API keys only connections to loopback addresses are served, because
the application does not know on which addresses its server listens.

The import exits with code 3 if the settings or team files are invalid: uvicorn's code for a failed start, and the one
at which gunicorn stops instead of starting the worker again.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from proxy.app import create_app, prepare
from proxy.auth import is_this_machine
from proxy.errors import ConfigurationError, StoreUnavailable
from proxy.log_config import configure_logging
from proxy.routes.error_handlers import answer_of
from proxy.settings import InvalidSettings, Settings, environment, load_settings
from proxy.team_check import with_all_problems
from proxy.wire.errors import loopback_only

logger = logging.getLogger(__name__)


class AsgiApplication:
    """The application with its lifespan. A start that fails reports a sentence instead of a traceback."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan protocol."""
        if scope["type"] == "lifespan":
            await self._run(receive, send)
        elif self._is_allowed(scope):
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._settings.allow_open or not self._app.state.services.keys.is_open:
            return True
        # ASGI: the address of a Unix socket is (path, None).
        host, port = scope.get("server") or ("", None)
        return port is None or is_this_machine(host)

    async def _run(self, receive: Receive, send: Send) -> None:
        await receive()
        lifespan = self._app.router.lifespan_context(self._app)
        try:
            # In a thread: it runs other event loops.
            await asyncio.to_thread(prepare, self._settings)
            await lifespan.__aenter__()
        except (ConfigurationError, StoreUnavailable) as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await lifespan.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    response = answer_of(loopback_only())
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await response(scope, receive, send)


def _load() -> AsgiApplication:
    settings: Settings | None = None
    try:
        settings = load_settings()
        configure_logging(settings.log_level, stream_events=settings.stream_events)
        return AsgiApplication(create_app(settings, environment=environment()), settings)
    except ConfigurationError as error:
        known = error.valid if isinstance(error, InvalidSettings) else settings
        if known is not None:
            # The importing server has the port, and knows which one it is.
            error = with_all_problems(error, known, environment=environment(), has_sockets=True)
        sys.stderr.write(f"{error.message}\n")
        sys.exit(3)


app = _load()
