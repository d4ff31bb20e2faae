"""Runs the application under uvicorn, and stops it so that no stream is simply cut."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from proxy.settings import Settings

LATEST = 10.0
"""Seconds behind the grace time after which connections that still are open are cut."""


class ProxyServer(uvicorn.Server):
    """Tells the turns to end when the server is asked to stop; uvicorn alone would wait for them, and then cut them."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let turns finish within the grace time, end the others properly."""
        application = self.config.loaded_app
        while not isinstance(application, FastAPI):
            application = application.app
        services = application.state.services
        grace = services.settings.shutdown_grace
        await asyncio.gather(services.exchange.close(grace=grace), super().shutdown(sockets))


def serve_forever(app: FastAPI, settings: Settings) -> None:
    """Serve until a signal ends it."""
    ProxyServer(server_config(app, settings)).run()


def server_config(app: FastAPI, settings: Settings, **changes: Any) -> uvicorn.Config:
    """Return how uvicorn is to run the application."""
    given: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "ws": "none",
        "h11_max_incomplete_event_size": 64 * 1024,
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": int(settings.shutdown_grace + LATEST),
    }
    return uvicorn.Config(app, **{**given, **changes})
