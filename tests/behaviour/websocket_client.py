"""WebSocket client of the behaviour tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.server import Served

ENDS = ("turn.completed", "turn.failed", "turn.cancelled")


class Client:
    """A WebSocket connection that sends and receives JSON messages."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, message: Any) -> None:
        await self.socket.send_str(message if isinstance(message, str) else json.dumps(message))

    async def next(self) -> Any:
        return json.loads(await self.socket.receive_str(timeout=10))

    async def until(self, *types: str) -> list[Any]:
        """Return all messages up to the first one of these types."""
        found = [await self.next()]
        while found[-1]["type"] not in types:
            found.append(await self.next())
        return found


@asynccontextmanager
async def connected(
    served: Served,
    path: str,
    *,
    key: str = "k",
    protocols: tuple[str, ...] = (),
    headers: Mapping[str, str] = {},
    **more: str,
) -> AsyncIterator[Client]:
    given = {**({"Authorization": f"Bearer {key}"} if key else {}), **headers, **more}
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(served.url + path, headers=given, protocols=protocols) as socket,
    ):
        yield Client(socket)


def start(content: str = "Hi", *, id: str = "1", **more: Any) -> Any:
    request = {"model": "shop", "messages": [{"role": "user", "content": content}]}
    return {"type": "start", "id": id, "request": request, **more}
