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
from proxy.routes.error_response import answer_of
from proxy.routes.server_extensions import remove_bypassing
from proxy.start_check import Start, with_all_problems
from proxy.wire.errors import loopback_only

logger = logging.getLogger(__name__)


class AsgiApplication:
    """The application with its lifespan. A start that fails reports a sentence instead of a traceback."""

    def __init__(self, app: FastAPI, start: Start) -> None:
        self._app = app
        self._start = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan protocol."""
        if scope["type"] == "lifespan":
            await self._run(receive, send)
        elif self._is_allowed(scope):
            remove_bypassing(scope, receive, send)
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._start.settings.allow_open or not self._app.state.services.keys.is_open:
            return True
        # ASGI: the address of a Unix socket is (path, None).
        host, port = scope.get("server") or ("", None)
        return port is None or is_this_machine(host)

    async def _run(self, receive: Receive, send: Send) -> None:
        await receive()
        lifespan = self._app.router.lifespan_context(self._app)
        try:
            # In a thread: it runs other event loops.
            await asyncio.to_thread(self._prepare)
            await lifespan.__aenter__()
        except (ConfigurationError, StoreUnavailable) as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await lifespan.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})

    def _prepare(self) -> None:
        try:
            prepare(self._start.settings)
        except ConfigurationError as error:
            raise with_all_problems(self._start, error, address="none") from None


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    response = answer_of(loopback_only())
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await response(scope, receive, send)


def _load() -> AsgiApplication:
    start = Start.read()
    try:
        if start.problems:
            raise ConfigurationError("\n".join(start.problems))
        configure_logging(start.settings.log_level, stream_events=start.settings.stream_events)
        for sentence in start.warnings:
            logger.warning(sentence)
        return AsgiApplication(create_app(start.settings, environment=start.variables), start)
    except ConfigurationError as error:
        # The importing server has the port, and knows which one it is.
        sys.stderr.write(f"{with_all_problems(start, error, address='none').message}\n")
        sys.exit(3)


app = _load()
