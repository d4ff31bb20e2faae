"""The endpoint at which a managed identity of App Service gets its tokens.

Reference: https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

SECRET = "identity-secret"


class IdentityEndpoint:
    """Issues ``token`` for ``resource``; ``url`` and ``SECRET`` go into the environment of the process."""

    def __init__(self, token: str, resource: str) -> None:
        self.url = ""
        self.issued = 0
        self._token = token
        self._resource = resource

    async def handle(self, request: web.Request) -> web.Response:
        if request.headers.get("X-IDENTITY-HEADER") != SECRET:
            return web.json_response({"message": "wrong secret"}, status=401)
        if request.query.get("resource") != self._resource:
            return web.json_response({"message": "unknown resource"}, status=400)
        self.issued += 1
        token = {"access_token": self._token, "expires_on": str(int(time.time()) + 86400)}
        return web.json_response({**token, "resource": self._resource, "token_type": "Bearer"})


@asynccontextmanager
async def identity_endpoint(
    token: str, resource: str = "https://cognitiveservices.azure.com"
) -> AsyncIterator[IdentityEndpoint]:
    endpoint = IdentityEndpoint(token, resource)
    app = web.Application()
    app.router.add_get("/msi/token", endpoint.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/msi/token"
    try:
        yield endpoint
    finally:
        await runner.cleanup()
