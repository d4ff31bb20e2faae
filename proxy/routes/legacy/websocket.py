"""``WS /ws``: the current chat of a caller over the legacy WebSocket, one message at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from starlette.websockets import WebSocket

from proxy.errors import InternalTurnError, InvalidRequest, ProxyError, Unauthorized
from proxy.routes.legacy.browser_chats import BrowserChat, browser_chat_of
from proxy.routes.legacy.chat import chat_request
from proxy.routes.middleware.rate_limit import admit as admit_turn
from proxy.routes.model_suggestions import with_suggestions
from proxy.routes.request_body import ClientDisconnected
from proxy.routes.sockets import WebSocketChannel, admit
from proxy.routes.streaming import Headers
from proxy.wire.legacy.chat import ChatSocketEvents, refused, socket_message
from proxy.wire.legacy.requests import CHAT, SOCKET
from proxy.wire.validation.body_decoder import read_object

logger = logging.getLogger(__name__)

MAX_WAITING = 16
"""Messages that can wait while another one is answered."""


async def chat_socket(websocket: WebSocket) -> None:
    """Serve one WebSocket."""
    browser = BrowserChat()

    def cookie_for(caller: str) -> Headers:
        nonlocal browser
        browser = browser_chat_of(websocket.scope, caller)
        return browser.headers

    channel = await admit(websocket, cookie_for)
    if channel is None:
        return
    waiting: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING)
    answers = asyncio.create_task(_answer_all(websocket, channel, waiting, browser.id), name="chat")
    try:
        async with aclosing(channel.messages()) as messages:
            async for message in messages:
                try:
                    waiting.put_nowait(message)
                except asyncio.QueueFull:
                    await _send_error(channel, InvalidRequest("Too many messages wait to be answered."))
    except ClientDisconnected:
        pass
    except Unauthorized as error:
        await channel.close_unauthorized(socket_message(refused(error)))
    finally:
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)


async def _answer_all(
    websocket: WebSocket, channel: WebSocketChannel, waiting: asyncio.Queue[bytes], browser: str
) -> None:
    while True:
        message = await waiting.get()
        try:
            await _answer(websocket, channel, message, browser)
        except ClientDisconnected:
            return
        except Unauthorized as error:
            await channel.close_unauthorized(socket_message(refused(error)))
            return
        except ProxyError as error:
            await _send_error(channel, await with_suggestions(error, channel.services, channel.caller))
        except Exception:
            logger.exception("failed to answer a WebSocket message")
            await _send_error(channel, InternalTurnError())


async def _answer(websocket: WebSocket, channel: WebSocketChannel, message: bytes, browser: str) -> None:
    services, caller = channel.services, channel.caller
    # The key may have been revoked since the handshake.
    await channel.verify_key()
    body = read_object(CHAT, bytes(read_object(SOCKET, message).data))
    ask = await chat_request(services, caller, dict(websocket.scope), body, message, browser=browser)
    await admit_turn(services, caller)
    opened = await services.turns.open(ask)
    events = ChatSocketEvents()
    try:
        await channel.stream_turn(opened.live, events.messages)
    finally:
        # A server that stops closes its sockets first. Their turns still have the grace time to finish.
        if not services.turns.is_closing:
            opened.live.on_client_disconnect(can_return=channel.is_authorized)


async def _send_error(channel: WebSocketChannel, error: ProxyError) -> None:
    await channel.send(socket_message(refused(error)))
