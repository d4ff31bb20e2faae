"""What WebSockets have in common: who may open one, messages in and out, and turns told over it.

Origins are checked before (``routes.browsers``). The server itself refuses messages over the limit (it closes the
socket with 1009 and says why), asks every 20 seconds whether the client is still there, and closes sockets first when
it stops (1012).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from proxy.errors import Unauthorized
from proxy.events import ClosingEvent, Entry
from proxy.routes.dependencies import Services, services_of
from proxy.routes.error_handlers import answer_of
from proxy.routes.request_body import ClientLeft, authorization_of
from proxy.turns.live import LiveTurn

PROTOCOL = "handoff.v1"
KEY_PREFIX = "handoff-key."
"""A page cannot set headers: it offers the two protocols ``handoff.v1`` and ``handoff-key.KEY``, the key
percent-encoded where it has characters that the name of a protocol may not have."""


class Channel:
    """An open socket. Messages leave one at a time, whoever sends them."""

    def __init__(self, websocket: WebSocket, *, stall: float) -> None:
        """``stall`` is for how many seconds a client may take nothing of what it is sent."""
        self._websocket = websocket
        self._stall = stall
        self._sending = asyncio.Lock()
        self._receiving: asyncio.Timeout | None = None
        self._is_lost = False

    async def send(self, text: str) -> None:
        """Send a message.

        Raises:
            ClientLeft: The client is gone, or takes nothing any more; so it is from then on.
        """
        async with self._sending:
            if self._is_lost:
                raise ClientLeft
            try:
                async with asyncio.timeout(self._stall):
                    await self._websocket.send_text(text)
            except (TimeoutError, WebSocketDisconnect, RuntimeError):
                # Starlette raises a RuntimeError for what is sent behind a close.
                self._lose()
                raise ClientLeft from None

    async def messages(self) -> AsyncIterator[bytes]:
        """Give each message until the client leaves, or takes nothing any more."""
        while (message := await self._receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            yield text.encode("utf-8", "replace") if text is not None else message.get("bytes") or b""

    async def _receive(self) -> Message:
        try:
            async with asyncio.timeout(None) as self._receiving:
                if not self._is_lost:
                    return await self._websocket.receive()
        except TimeoutError:
            pass
        finally:
            self._receiving = None
        return {"type": "websocket.disconnect"}

    def _lose(self) -> None:
        """Whoever reads learns it, too: a client that stalls would be waited for as long as it keeps its socket."""
        self._is_lost = True
        if self._receiving is not None:
            self._receiving.reschedule(0)

    async def tell(
        self, live: LiveTurn, encode: Callable[[Entry], Iterable[str]], *, is_observer: bool = False
    ) -> None:
        """Send what is made of a turn's entries, from the first to the closing one."""
        with live.follower(is_observer=is_observer) as follower:
            while True:
                entries = await follower.next()
                for entry in entries:
                    for text in encode(entry):
                        await self.send(text)
                if not entries or isinstance(entries[-1].event, ClosingEvent):
                    return


async def admit(websocket: WebSocket) -> tuple[Services, str, Channel] | None:
    """Accept who may call; others get the error that HTTP would give, and None is returned."""
    services = services_of(websocket.scope)
    try:
        caller = services.keys.caller(authorization_of(websocket.scope))
    except Unauthorized as error:
        await websocket.send_denial_response(answer_of(error))
        return None
    offered = websocket.scope.get("subprotocols", ())
    await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    return services, caller, Channel(websocket, stall=services.settings.stalled_client_timeout)
