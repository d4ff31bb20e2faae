"""``WS /v1/ws``: any number of turns over one socket, begun, followed, resumed and stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from starlette.websockets import WebSocket

from proxy.errors import CompletionNotFound, InternalTurnError, ProxyError
from proxy.routes.chat_completions import chat_ask
from proxy.routes.dependencies import Services
from proxy.routes.middleware.rate_limit import admit as admit_turn
from proxy.routes.request_body import ClientLeft, first_of, headers_of
from proxy.routes.sockets import Channel, admit
from proxy.service.turns import Opened
from proxy.turns.live import LiveTurn
from proxy.wire.chat.parse import decode_chat
from proxy.wire.events.feed import Feed
from proxy.wire.events.websocket import (
    CLIENT_MESSAGE,
    ClientMessage,
    FrameMessages,
    id_of,
    refusal,
    reply,
    too_many,
)
from proxy.wire.validation.json_objects import read_object

logger = logging.getLogger(__name__)

MAX_TURNS = 256
"""Turns that are followed at a time."""


async def turn_socket(websocket: WebSocket) -> None:
    """Serve one socket."""
    admitted = await admit(websocket)
    if admitted is None:
        return
    services, caller, channel = admitted
    session = Session(services, caller, headers_of(websocket.scope), channel)
    try:
        async for message in channel.messages():
            await session.serve(message)
    except ClientLeft:
        pass
    finally:
        await session.close()


class Session:
    """One socket, the turns that it began and that still run here, and those that it is told."""

    def __init__(self, services: Services, caller: str, headers: dict[str, str], channel: Channel) -> None:
        self._services = services
        self._caller = caller
        self._headers = headers
        self._channel = channel
        self._begun: dict[str, LiveTurn] = {}
        self._telling: dict[str, asyncio.Task[None]] = {}

    @property
    def begun(self) -> Sequence[str]:
        """The turns that this socket began and that still run."""
        return list(self._begun)

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
        if not self._services.turns.is_closing:
            for live in list(self._begun.values()):
                live.left()

    # --- what a client may want ---

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
                status = await self._cancel(message)
                await self._channel.send(reply(message, turn_id=message.turn, status=status))
            case "ping":
                await self._channel.send(reply(message))

    async def _start(self, message: ClientMessage) -> None:
        wanted = message.wanted
        self._make_room()
        settings = self._services.settings
        request = decode_chat(
            message.body, max_messages=settings.max_messages, strict=settings.strict_parameters
        )
        ask = chat_ask(self._services, self._caller, self._headers_with(message), message.body, request)
        await admit_turn(self._services, self._caller)
        opened = await self._services.turns.open(ask)
        self._remember(opened.live)
        ignored = [*request.ignored, *opened.ignored]
        more = {"ignored": ignored} if ignored else {}
        await self._channel.send(reply(message, **_facts(opened), **more))
        await self._tell(opened, FrameMessages(self._feed(opened), types=wanted))

    async def _subscribe(self, message: ClientMessage) -> None:
        wanted, after = message.wanted, message.position
        if message.turn not in self._telling:
            self._make_room()
        opened = await self._services.turns.attach(
            self._caller, message.turn, end_user=self._end_user(message), is_observer=True
        )
        await self._untell(opened.turn_id)
        await self._channel.send(reply(message, **_facts(opened)))
        await self._tell(opened, FrameMessages(self._feed(opened), types=wanted, after=after))

    async def _cancel(self, message: ClientMessage) -> str:
        """Return how the turn stands afterwards."""
        try:
            record = await self._services.turns.cancel(
                self._caller, message.turn, end_user=self._end_user(message)
            )
        except CompletionNotFound:
            # Side requests are stored nowhere, and known only where they were begun.
            live = self._begun.get(message.turn)
            if live is None or live.conversation_id or live.task is None:
                raise
            live.stop("requested")
            await asyncio.wait([live.task])
            return "cancelled"
        return record.status

    # --- turns that are told ---

    def _make_room(self) -> None:
        if len(self._telling) >= MAX_TURNS:
            raise too_many(MAX_TURNS)

    def _remember(self, live: LiveTurn) -> None:
        """Hold on to a turn that was begun here until it has ended, however long the socket lives."""
        if live.task is not None and not live.task.done():
            self._begun[live.turn_id] = live
            live.task.add_done_callback(lambda _: self._begun.pop(live.turn_id, None))

    async def _tell(self, opened: Opened, frames: FrameMessages) -> None:
        await self._untell(opened.turn_id)
        task = asyncio.create_task(self._follow(opened.live, frames), name=f"tell {opened.turn_id}")
        self._telling[opened.turn_id] = task
        task.add_done_callback(lambda _: self._told(opened.turn_id, task))

    async def _follow(self, live: LiveTurn, frames: FrameMessages) -> None:
        try:
            await self._channel.tell(live, frames.encode, is_observer=live.turn_id not in self._begun)
        except ClientLeft:
            pass
        except Exception:
            logger.exception("a turn could not be told over a socket", extra={"turn_id": live.turn_id})
            with suppress(ClientLeft):
                await self._channel.send(refusal(InternalTurnError(), None, turn_id=live.turn_id))

    def _told(self, turn_id: str, task: asyncio.Task[None]) -> None:
        if self._telling.get(turn_id) is task:
            del self._telling[turn_id]

    async def _untell(self, turn_id: str) -> None:
        task = self._telling.pop(turn_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _feed(self, opened: Opened) -> Feed:
        return Feed(opened.turn_id, hides_details=not self._services.settings.handoff_details)

    # --- what the handshake and the message say together ---

    def _headers_with(self, message: ClientMessage) -> dict[str, str]:
        given = {name.lower(): value for name, value in (message.headers or {}).items()}
        names = self._services.settings.user_headers
        if first_of(self._headers, names):
            # Who opened the socket for a person, a gateway for example, has said which.
            for name in names:
                given.pop(name.lower(), None)
        return {**self._headers, **given}

    def _end_user(self, message: ClientMessage) -> str:
        return first_of(self._headers_with(message), self._services.settings.user_headers)


def _facts(opened: Opened) -> dict[str, str]:
    return {
        "turn_id": opened.turn_id,
        "conversation_id": opened.conversation_id,
        "match": opened.match,
    }
