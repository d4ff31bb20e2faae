"""The response of a streamed request that waits for its conversation (``busy: queue``).

Nothing is sent within the keep-alive interval, so that most responses begin with their first event. After it, comments
are sent, which reset the read timeouts of clients and of proxies between them and the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from msgspec import structs
from msgspec.structs import replace
from starlette.types import Message

from proxy.errors import ProxyError
from proxy.events import Entry
from proxy.messages import Usage
from proxy.routes.client_connection import BODY, ClientConnection, wait_for_disconnect
from proxy.routes.request_body import ClientDisconnected
from proxy.routes.streaming import Encoder, Framing
from proxy.service.turns import TurnHandle, TurnService
from proxy.turns.log_reader import TERMINAL_POSITION
from proxy.turns.request import TurnRequest
from proxy.wire.errors import failed_event


class QueuedStream:
    """One response, until its turn begins. ``keep_alive`` is in seconds.

    A format without keep-alive frames stays silent.
    """

    def __init__(self, connection: ClientConnection, framing: Framing, *, keep_alive: float) -> None:
        self._connection = connection
        self._framing = framing
        self._interval = keep_alive
        self._next_ping: float | None = None
        """When the next keep-alive frame is sent, from the first wait on."""
        self._conversation_id: str | None = None
        self._has_started = False

    @property
    def connection(self) -> ClientConnection:
        """The connection for the rest of the response."""
        return (
            structs.replace(self._connection, send=self._send_rest) if self._has_started else self._connection
        )

    @property
    def framing(self) -> Framing:
        """The format of the rest: once the response has begun, a failure has no separate status."""
        return replace(self._framing, starts_immediately=True) if self._has_started else self._framing

    async def open(
        self, turns: TurnService, request: TurnRequest, encoder: Callable[[], Encoder]
    ) -> TurnHandle | None:
        """Open the turn. None if that failed after the response had begun, which then ends with the error.

        ``encoder`` returns what encodes the error.

        Raises:
            ProxyError: See ``TurnService.open``.
            ClientDisconnected: The client left while the request waited.
        """
        self._conversation_id = request.conversation_id
        try:
            return await turns.open(request, left=self._accompany)
        except ProxyError as error:
            if not self._has_started:
                raise
            failed = failed_event(error, Usage(), ran_effects=False)
            await self._send(encoder().encode(Entry(TERMINAL_POSITION, failed, time.time())), is_last=True)
            return None

    async def _accompany(self) -> None:
        """Implement ``ClientLeft``, with keep-alive frames meanwhile."""
        disconnected = asyncio.ensure_future(wait_for_disconnect(self._connection.receive))
        now = asyncio.get_running_loop().time
        if self._next_ping is None:
            self._next_ping = now() + self._interval
        try:
            while not disconnected.done():
                left = max(self._next_ping - now(), 0) if self._framing.ping else None
                await asyncio.wait([disconnected], timeout=left)
                if not disconnected.done():
                    self._next_ping = now() + self._interval
                    await self._ping()
        finally:
            disconnected.cancel()
            await asyncio.gather(disconnected, return_exceptions=True)
        raise ClientDisconnected

    async def _ping(self) -> None:
        if not self._has_started:
            headers = list(self._framing.headers)
            if self._conversation_id is not None:
                headers.append((b"x-conversation-id", self._conversation_id.encode()))
            await self._connection.send({"type": "http.response.start", "status": 200, "headers": headers})
            # Not before: if the turn begins while the message waits for the client, it is not sent.
            self._has_started = True
        await self._send(self._framing.ping)

    async def _send(self, body: bytes, *, is_last: bool = False) -> None:
        await self._connection.send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def _send_rest(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # The response has started already. Its first part can be in this message, see ``START_WITH_BODY``.
            message = {**message, **BODY}
        if "body" in message:
            await self._connection.send(message)
