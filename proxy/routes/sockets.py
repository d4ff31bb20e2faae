"""What all WebSockets share: authentication, messages in both directions, and the stream of a turn.

The CORS middleware checks origins before. The protocol implementation closes a socket with code 1009 if a message is
too large, sends a ping every 20 seconds, and closes sockets with code 1012 when the server stops. An API key that is
revoked or expires closes its sockets with code 1008.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from functools import partial

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from proxy.errors import Unauthorized
from proxy.events import ClosingEvent, Entry
from proxy.routes.dependencies import Services, access_of, services_of
from proxy.routes.error_response import answer_of
from proxy.routes.request_body import ClientDisconnected, authorization_of
from proxy.routes.streaming import Headers
from proxy.turns.live import LiveTurn
from proxy.turns.log_reader import without_handover

PROTOCOL = "handoff.v1"
"""A page cannot set headers of a WebSocket. It offers the subprotocols ``handoff.v1`` and ``handoff-key.KEY``."""
POLICY_VIOLATION = 1008
"""Close code (RFC 6455, 7.4.1)."""
INVALID_KEY = "invalid_api_key"
"""Reason of the close frame: the error code of the same problem over HTTP."""


class WebSocketChannel:
    """An accepted WebSocket. Messages are sent one at a time, whichever task sends them.

    ``find_services`` returns the present services: a reload of the team files replaces them.
    """

    def __init__(self, websocket: WebSocket, find_services: Callable[[], Services], caller: str) -> None:
        self._find_services = find_services
        self.caller = caller
        self._websocket = websocket
        self._authorization = authorization_of(websocket.scope)
        self._stall = find_services().settings.stalled_client_timeout
        self._sending = asyncio.Lock()
        self._receiving: asyncio.Timeout | None = None
        self._is_lost = False
        self._unauthorized: Unauthorized | None = None

    @property
    def services(self) -> Services:
        """The present services."""
        return self._find_services()

    async def send(self, text: str) -> None:
        """Send a message.

        Raises:
            ClientDisconnected: The client has disconnected, or has read nothing for the time limit of stalled clients.
                From then on every call raises it.
        """
        async with self._sending:
            if self._is_lost:
                raise ClientDisconnected
            try:
                async with asyncio.timeout(self._stall):
                    await self._websocket.send_text(text)
            except (TimeoutError, WebSocketDisconnect, RuntimeError):
                # Starlette raises RuntimeError for a message after a close.
                self._lose()
                raise ClientDisconnected from None

    async def close_unauthorized(self, error_message: str) -> None:
        """Send a last message, then close with code 1008."""
        with suppress(ClientDisconnected):
            await self.send(error_message)
        async with self._sending:
            if self._is_lost:
                return
            self._lose()
            with suppress(WebSocketDisconnect, RuntimeError):
                await self._websocket.close(POLICY_VIOLATION, INVALID_KEY)

    @property
    def is_authorized(self) -> bool:
        """Whether the API key was valid when it was checked last."""
        return self._unauthorized is None

    async def verify_key(self) -> None:
        """Check the API key with which the socket was opened.

        Raises:
            Unauthorized: It is not valid any more.
            StoreUnavailable: It cannot be checked.
        """
        try:
            await self.services.key_monitor.verify(self._authorization, self.caller)
        except Unauthorized as error:
            self._unauthorized = error
            raise

    async def messages(self) -> AsyncGenerator[bytes]:
        """Yield messages until the client disconnects or stalls.

        Raises:
            Unauthorized: The API key is not valid any more.
        """
        with self.services.key_monitor.watch(self._authorization, self.caller, self._invalidate):
            while (message := await self._receive())["type"] != "websocket.disconnect":
                text = message.get("text")
                yield text.encode("utf-8", "replace") if text is not None else message.get("bytes") or b""
                # Thousands of short messages can have arrived at once, and neither they nor their replies have to wait.
                await asyncio.sleep(0)
        if self._unauthorized is not None and not self._is_lost:
            raise self._unauthorized

    async def _receive(self) -> Message:
        try:
            async with asyncio.timeout(None) as self._receiving:
                if not self._is_lost and self._unauthorized is None:
                    return await self._websocket.receive()
        except TimeoutError:
            pass
        finally:
            self._receiving = None
        return {"type": "websocket.disconnect"}

    def _lose(self) -> None:
        # The reader stops too. Otherwise it would wait as long as a stalled client leaves its connection open.
        self._is_lost = True
        self._stop_receiving()

    def _invalidate(self, error: Unauthorized) -> None:
        self._unauthorized = error
        self._stop_receiving()

    def _stop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.reschedule(0)

    async def stream_turn(
        self, live: LiveTurn, encode: Callable[[Entry], Iterable[str]], *, is_observer: bool = False
    ) -> None:
        """Send the messages of all entries of a turn, from the first entry to the closing one."""
        with live.reader(is_observer=is_observer) as follower:
            while True:
                entries = await follower.next()
                if is_observer:
                    entries = without_handover(entries)
                for entry in entries:
                    for text in encode(entry):
                        await self.send(text)
                if not entries or isinstance(entries[-1].event, ClosingEvent):
                    return


async def admit(
    websocket: WebSocket, headers_for: Callable[[str], Headers] = lambda caller: []
) -> WebSocketChannel | None:
    """Accept a handshake with a valid API key; reject others with the same response as over HTTP and return None.

    ``headers_for`` returns headers of the accepting response for the caller.
    """
    services = services_of(websocket.scope)
    try:
        caller = access_of(websocket.scope, services).caller
    except Unauthorized as error:
        await websocket.send_denial_response(answer_of(error))
        return None
    offered = websocket.scope.get("subprotocols", ())
    subprotocol = PROTOCOL if PROTOCOL in offered else None
    await websocket.accept(subprotocol=subprotocol, headers=headers_for(caller))
    return WebSocketChannel(websocket, partial(services_of, websocket.scope), caller)
