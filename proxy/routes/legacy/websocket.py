"""``WS /ws``: the chat that a caller has going on, over the WebSocket of older clients, one message at a time."""

from __future__ import annotations

import asyncio
import logging

from starlette.websockets import WebSocket

from proxy.errors import InternalTurnError, InvalidRequest, ProxyError
from proxy.events import Entry
from proxy.routes.dependencies import Services
from proxy.routes.legacy.chat import chat_ask
from proxy.routes.middleware.rate_limit import admit as admit_turn
from proxy.routes.request_body import ClientLeft
from proxy.routes.sockets import Channel, admit
from proxy.wire.legacy.chat import ChatSocketEvents, refused, socket_message
from proxy.wire.legacy.requests import CHAT, SOCKET
from proxy.wire.validation.json_objects import read_object

logger = logging.getLogger(__name__)

MAX_WAITING = 16
"""Messages that may wait for the answers before theirs."""


async def chat_socket(websocket: WebSocket) -> None:
    """Serve one socket."""
    admitted = await admit(websocket)
    if admitted is None:
        return
    services, caller, channel = admitted
    waiting: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING)
    answering = asyncio.create_task(_answer_all(websocket, services, caller, channel, waiting), name="chat")
    try:
        async for message in channel.messages():
            try:
                waiting.put_nowait(message)
            except asyncio.QueueFull:
                await _tell(channel, InvalidRequest("Too many messages wait to be answered."))
    except ClientLeft:
        pass
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def _answer_all(
    websocket: WebSocket, services: Services, caller: str, channel: Channel, waiting: asyncio.Queue[bytes]
) -> None:
    while True:
        message = await waiting.get()
        try:
            await _answer(websocket, services, caller, channel, message)
        except ClientLeft:
            return
        except ProxyError as error:
            await _tell(channel, error)
        except Exception:
            logger.exception("a message of a socket could not be answered")
            await _tell(channel, InternalTurnError())


async def _answer(
    websocket: WebSocket, services: Services, caller: str, channel: Channel, message: bytes
) -> None:
    given = read_object(CHAT, bytes(read_object(SOCKET, message).data))
    ask = await chat_ask(services, caller, dict(websocket.scope), given, message)
    await admit_turn(services, caller)
    opened = await services.turns.open(ask)
    events = ChatSocketEvents()

    def encode(entry: Entry) -> list[str]:
        told = events.message(entry)
        return [] if told is None else [told]

    try:
        await channel.tell(opened.live, encode)
    finally:
        # A server that stops closes its sockets first; their turns have their time to finish all the same.
        if not services.turns.is_closing:
            opened.live.left()


async def _tell(channel: Channel, error: ProxyError) -> None:
    await channel.send(socket_message(refused(error)))
