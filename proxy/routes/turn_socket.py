"""``WS /v1/ws``: any number of turns over one socket, begun, followed, resumed and stopped."""

from __future__ import annotations

import asyncio
import logging

from starlette.websockets import WebSocket

from proxy.errors import InternalTurnError, ProxyError
from proxy.exchange.service import Opened
from proxy.live import LiveTurn
from proxy.routes.bodies import ClientLeft, first_of, headers_of
from proxy.routes.chat import chat_ask
from proxy.routes.dependencies import Services
from proxy.routes.sockets import Channel, admit
from proxy.wire.decoding import decode_chat
from proxy.wire.objects import read_object
from proxy.wire.sockets import CLIENT_MESSAGE, ClientMessage, FrameMessages, id_of, refusal, reply, too_many

logger = logging.getLogger(__name__)

MAX_TURNS = 64
"""Turns that are followed at a time."""


async def turn_socket(websocket: WebSocket) -> None:
    """Serve one socket."""
    admitted = await admit(websocket)
    if admitted is None:
        return
    services, caller, channel = admitted
    session = _Session(services, caller, headers_of(websocket.scope), channel)
    try:
        async for message in channel.messages():
            await session.serve(message)
    except ClientLeft:
        pass
    finally:
        await session.close()


class _Session:
    """One socket, the turns that it began and those that it is told."""

    def __init__(self, services: Services, caller: str, headers: dict[str, str], channel: Channel) -> None:
        self._services = services
        self._caller = caller
        self._headers = headers
        self._end_user = first_of(headers, services.settings.user_headers)
        self._channel = channel
        self._begun: dict[str, LiveTurn] = {}
        self._telling: dict[str, asyncio.Task[None]] = {}

    async def serve(self, text: bytes) -> None:
        """Do what a message wants; a mistake in it is told and ends nothing."""
        try:
            await self._do(read_object(CLIENT_MESSAGE, text))
        except ProxyError as error:
            await self._channel.send(refusal(error, id_of(text)))
        except ClientLeft:
            raise
        except Exception:
            logger.exception("a message of a socket could not be served")
            await self._channel.send(refusal(InternalTurnError(), id_of(text)))

    async def close(self) -> None:
        """Stop telling; turns that were begun here are left, and stop if their policy says so."""
        for turn_id in list(self._telling):
            await self._untell(turn_id)
        # A server that stops closes its sockets first; their turns have their time to finish all the same.
        if not self._services.exchange.is_closing:
            for live in self._begun.values():
                live.left()

    async def _do(self, message: ClientMessage) -> None:
        match message.type:
            case "start":
                await self._start(message)
            case "subscribe":
                await self._subscribe(message)
            case "unsubscribe":
                await self._untell(message.turn)
                await self._channel.send(reply(message, turn_id=message.turn))
            case "cancel":
                record = await self._services.exchange.cancel(
                    self._caller, message.turn, end_user=self._end_user
                )
                await self._channel.send(reply(message, turn_id=record.id, status=record.status))

    async def _start(self, message: ClientMessage) -> None:
        wanted = message.wanted
        self._make_room()
        settings = self._services.settings
        request = decode_chat(message.body, max_messages=settings.max_messages)
        given = {name.lower(): value for name, value in (message.headers or {}).items()}
        ask = chat_ask(self._services, self._caller, {**self._headers, **given}, message.body, request)
        opened = await self._services.exchange.open(ask)
        self._begun[opened.turn_id] = opened.live
        ignored = [*request.ignored, *opened.ignored]
        more = {"ignored": ignored} if ignored else {}
        await self._channel.send(reply(message, **_facts(opened), **more))
        await self._tell(opened, FrameMessages(opened.turn_id, types=wanted))

    async def _subscribe(self, message: ClientMessage) -> None:
        frames = FrameMessages(message.turn, types=message.wanted, after=message.position)
        if message.turn not in self._telling:
            self._make_room()
        opened = await self._services.exchange.attach(self._caller, message.turn, end_user=self._end_user)
        await self._untell(message.turn)
        await self._channel.send(reply(message, **_facts(opened)))
        await self._tell(opened, frames)

    def _make_room(self) -> None:
        if len(self._telling) >= MAX_TURNS:
            raise too_many(MAX_TURNS)

    async def _tell(self, opened: Opened, frames: FrameMessages) -> None:
        turn_id = opened.turn_id
        await self._untell(turn_id)
        is_observer = turn_id not in self._begun
        task = asyncio.create_task(
            self._channel.tell(opened.live, frames.encode, is_observer=is_observer), name=f"tell {turn_id}"
        )
        self._telling[turn_id] = task
        task.add_done_callback(lambda done: self._told(turn_id, done))

    def _told(self, turn_id: str, task: asyncio.Task[None]) -> None:
        if self._telling.get(turn_id) is task:
            del self._telling[turn_id]
            live = self._begun.get(turn_id)
            if live is not None and live.is_finished:
                del self._begun[turn_id]
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, ClientLeft):
            logger.error("a turn could not be told over a socket", exc_info=error)

    async def _untell(self, turn_id: str) -> None:
        task = self._telling.pop(turn_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _facts(opened: Opened) -> dict[str, str]:
    return {
        "turn_id": opened.turn_id,
        "conversation_id": opened.conversation_id,
        "match": opened.match,
    }
