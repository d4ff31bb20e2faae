"""``WS /v1/ws``: start, follow, resume and cancel any number of turns over one WebSocket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing, suppress

from starlette.websockets import WebSocket

from proxy.auth import Access
from proxy.errors import CompletionNotFound, InternalTurnError, ProxyError, Unauthorized
from proxy.routes.chat_completions import chat_turn_request, decode_chat_body, with_response_format
from proxy.routes.dependencies import Services
from proxy.routes.middleware.rate_limit import admit as admit_turn
from proxy.routes.model_suggestions import with_suggestions
from proxy.routes.request_body import ClientDisconnected, first_of, headers_of
from proxy.routes.request_headers import comparable_body
from proxy.routes.sockets import WebSocketChannel, admit
from proxy.service.turns import TurnHandle
from proxy.turns.live import LiveTurn
from proxy.wire.events.feed import Feed
from proxy.wire.events.websocket import (
    CLIENT_MESSAGE,
    ClientMessage,
    FrameMessages,
    id_of,
    refusal,
    reply,
    too_many_subscriptions,
)
from proxy.wire.validation.body_decoder import read_object

logger = logging.getLogger(__name__)

MAX_TURNS = 256
"""Turns that one socket can stream at the same time."""


async def turn_socket(websocket: WebSocket) -> None:
    """Serve one WebSocket."""
    channel = await admit(websocket)
    if channel is None:
        return
    session = WebSocketSession(channel, headers_of(websocket.scope))
    try:
        async with aclosing(channel.messages()) as messages:
            async for message in messages:
                await session.serve(message)
    except ClientDisconnected:
        pass
    except Unauthorized as error:
        await channel.close_unauthorized(refusal(error, None))
    finally:
        await session.close()


class WebSocketSession:
    """One WebSocket: the running turns that it started, and the turns that it streams."""

    def __init__(self, channel: WebSocketChannel, headers: dict[str, str]) -> None:
        """``headers`` are those of the handshake, by lower-case name."""
        self._caller = channel.caller
        self._headers = headers
        self._channel = channel
        self._started: dict[str, LiveTurn] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}

    @property
    def _services(self) -> Services:
        return self._channel.services

    @property
    def started(self) -> Sequence[str]:
        """The running turns that this socket started."""
        return list(self._started)

    async def serve(self, text: bytes) -> None:
        """Process a message. An error in it is reported, and the socket stays open.

        Raises:
            ClientDisconnected: The client has disconnected, or the socket was closed because the API key is not valid.
        """
        try:
            # The key may have been revoked since the handshake.
            await self._channel.verify_key()
            await self._process(read_object(CLIENT_MESSAGE, text))
        except Unauthorized as error:
            await self._channel.close_unauthorized(refusal(error, id_of(text)))
            raise ClientDisconnected from None
        except ProxyError as error:
            explained = await with_suggestions(error, self._services, self._caller)
            await self._channel.send(refusal(explained, id_of(text)))
        except ClientDisconnected:
            raise
        except Exception:
            logger.exception("failed to process a WebSocket message")
            await self._channel.send(refusal(InternalTurnError(), id_of(text)))

    async def close(self) -> None:
        """Stop streaming. For the turns that this socket started, this is a client disconnect."""
        for turn_id in list(self._streams):
            await self._stop_stream(turn_id)
        # A server that stops closes its sockets first. Their turns still have the grace time to finish.
        if not self._services.turns.is_closing:
            for live in list(self._started.values()):
                live.on_client_disconnect(can_return=self._channel.is_authorized)

    # --- actions of the client ---

    async def _process(self, message: ClientMessage) -> None:
        match message.type:
            case "start":
                await self._start(message)
            case "subscribe":
                await self._subscribe(message)
            case "unsubscribe":
                await self._stop_stream(message.turn)
                await self._channel.send(reply(message, turn_id=message.turn))
            case "cancel":
                status = await self._cancel(message)
                await self._channel.send(reply(message, turn_id=message.turn, status=status))
            case "ping":
                await self._channel.send(reply(message))

    async def _start(self, message: ClientMessage) -> None:
        types = message.wanted
        self._check_stream_count()
        request = await decode_chat_body(self._services, message.body)
        access = Access(self._caller, self._services.keys.terms_of(self._caller))
        headers = self._headers_with(message)
        body = await comparable_body(message.body, headers)
        turn_request, _ = chat_turn_request(self._services, access, headers, body, request)
        if request.parameters.response_format is not None:
            turn_request = await with_response_format(turn_request)
        await admit_turn(self._services, self._caller)
        opened = await self._services.turns.open(turn_request)
        self._add_started(opened.live)
        ignored = [*request.ignored, *opened.ignored]
        more = {"ignored": ignored} if ignored else {}
        await self._channel.send(reply(message, **_facts(opened), **more))
        await self._stream(opened, FrameMessages(self._feed(opened), types=types))

    async def _subscribe(self, message: ClientMessage) -> None:
        types, after = message.wanted, message.position
        if message.turn not in self._streams:
            self._check_stream_count()
        opened = await self._services.turns.attach(
            self._caller, message.turn, end_user=self._end_user(message), is_observer=True
        )
        await self._stop_stream(opened.turn_id)
        await self._channel.send(reply(message, **_facts(opened)))
        await self._stream(opened, FrameMessages(self._feed(opened), types=types, after=after))

    async def _cancel(self, message: ClientMessage) -> str:
        """Cancel a turn and return its status."""
        try:
            record = await self._services.turns.cancel(
                self._caller, message.turn, end_user=self._end_user(message)
            )
        except CompletionNotFound:
            # Side requests are not stored. Only the socket that started one can cancel it.
            live = self._started.get(message.turn)
            if live is None or live.conversation_id or live.task is None:
                raise
            live.stop("requested")
            await asyncio.wait([live.task])
            return "cancelled"
        return record.status

    # --- streams of turns ---

    def _check_stream_count(self) -> None:
        if len(self._streams) >= MAX_TURNS:
            raise too_many_subscriptions(MAX_TURNS)

    def _add_started(self, live: LiveTurn) -> None:
        """Record a turn that this socket started, until the turn ends."""
        if live.task is not None and not live.task.done():
            self._started[live.turn_id] = live
            live.task.add_done_callback(lambda _: self._started.pop(live.turn_id, None))

    async def _stream(self, opened: TurnHandle, frames: FrameMessages) -> None:
        await self._stop_stream(opened.turn_id)
        task = asyncio.create_task(self._run_stream(opened.live, frames), name=f"stream {opened.turn_id}")
        self._streams[opened.turn_id] = task
        task.add_done_callback(lambda _: self._remove_stream(opened.turn_id, task))

    async def _run_stream(self, live: LiveTurn, frames: FrameMessages) -> None:
        is_observer = live.turn_id not in self._started
        try:
            await self._channel.stream_turn(live, frames.encode, is_observer=is_observer)
        except ClientDisconnected:
            pass
        except Exception:
            logger.exception("failed to stream turn over WebSocket", extra={"turn_id": live.turn_id})
            with suppress(ClientDisconnected):
                await self._channel.send(refusal(InternalTurnError(), None, turn_id=live.turn_id))

    def _remove_stream(self, turn_id: str, task: asyncio.Task[None]) -> None:
        if self._streams.get(turn_id) is task:
            del self._streams[turn_id]

    async def _stop_stream(self, turn_id: str) -> None:
        task = self._streams.pop(turn_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _feed(self, opened: TurnHandle) -> Feed:
        return Feed(opened.turn_id, hides_details=not self._services.settings.handoff_details)

    # --- headers of the handshake and of the message ---

    def _headers_with(self, message: ClientMessage) -> dict[str, str]:
        added = {name.lower(): value for name, value in (message.headers or {}).items()}
        names = self._services.settings.user_headers
        if first_of(self._headers, names):
            # A gateway that opens a socket for an end user has identified that user. A message cannot change it.
            for name in names:
                added.pop(name.lower(), None)
        return {**self._headers, **added}

    def _end_user(self, message: ClientMessage) -> str:
        return first_of(self._headers_with(message), self._services.settings.user_headers)


def _facts(opened: TurnHandle) -> dict[str, str]:
    return {
        "turn_id": opened.turn_id,
        "conversation_id": opened.conversation_id,
        "match": opened.match,
    }
