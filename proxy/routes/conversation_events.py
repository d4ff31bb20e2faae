"""``GET /v1/conversations/{id}/events``: the events of all turns of a conversation, past and future."""

from __future__ import annotations

from contextlib import suppress

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from proxy.errors import CompletionNotFound, InvalidRequest, StoreUnavailable
from proxy.routes.client_connection import ClientConnection
from proxy.routes.dependencies import Services, conversation_of, request_context
from proxy.routes.feed_stream import FeedStream, feed_stream
from proxy.routes.request_body import first_of
from proxy.routes.turns import named_position
from proxy.service.remote_turns import Listener
from proxy.turns.records import Conversation
from proxy.wire.events import sse
from proxy.wire.events.feed import BEHIND, feed_types, parse_conversation_position
from proxy.wire.validation.query_params import bool_param

TURNS_PER_QUERY = 50
"""Turn ids that one query returns. The turns are read one at a time."""
RETRY_SECONDS = 1.0
"""Between two queries while the store does not answer."""


class ConversationEvents:
    """``GET /v1/conversations/{conversation_id}/events``: the events of all turns, live or replayed.

    ``Last-Event-ID`` (or ``?starting_after=``) is the id of the last frame that the reader has, or of a turn;
    ``?types=`` selects types of frames; ``?follow=false`` ends the stream after the existing frames. Otherwise the
    stream stays open until the reader disconnects, its API key becomes invalid, the conversation is deleted, or the
    server stops.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services, headers, access = request_context(scope)
        query = QueryParams(scope["query_string"])
        end_user = first_of(headers, services.settings.user_headers)
        types = feed_types(query.get("types", ""))
        follows = bool_param(query, "follow", default=True)
        position, param = named_position(headers, query)
        conversation = await conversation_of(
            services, access.caller, end_user, scope["path_params"]["conversation_id"]
        )
        reader = _Reader(services, conversation, end_user, follows=follows)
        if position:
            await reader.start_after(position, param)
        scope["state"]["facts"].update(conversation_id=conversation.id)
        named = [(b"x-conversation-id", conversation.id.encode())]
        async with feed_stream(services, ClientConnection(scope, receive, send), named, types) as stream:
            with services.turns.listener(conversation) as listener:
                await reader.write_all(stream, listener)


class _Reader:
    """The position of one reader in a conversation."""

    def __init__(
        self, services: Services, conversation: Conversation, end_user: str, *, follows: bool
    ) -> None:
        self._services = services
        self._conversation = conversation
        self._end_user = end_user
        self._follows = follows
        self._last = 0
        """The key of the last turn that was sent completely."""
        self._after: dict[str, sse.Position] = {}
        """The position that the reader already has of the next turn, by turn id."""

    async def start_after(self, frame_id: str, param: str) -> None:
        """Start after a frame, or after a turn.

        Raises:
            InvalidRequest: The conversation has no such frame.
        """
        turn_id, position = parse_conversation_position(frame_id, param=param)
        conversation = self._conversation
        key = await self._services.library.turn_key(conversation.caller, conversation.id, turn_id)
        if key is None:
            raise InvalidRequest(
                f"Invalid '{param}': the conversation has no turn '{turn_id[:64]}'.",
                param=param,
                code="invalid_value",
            )
        self._last = key if position == BEHIND else key - 1
        self._after[turn_id] = position

    async def write_all(self, stream: FeedStream, listener: Listener) -> None:
        """Send each turn to its end before the next: turns of a conversation do not run concurrently."""
        while not listener.is_gone:
            # Read before the query, so that turns which started before the server began to stop are sent.
            is_closing = self._services.turns.is_closing
            try:
                has_turns = await self._write_next(stream)
            except StoreUnavailable:
                has_turns = False
                listener.wake_in(RETRY_SECONDS)
            else:
                if not has_turns and not self._follows:
                    return
            if not has_turns and is_closing:
                return
            if not has_turns:
                listener.after = self._last
                await stream.wait(listener)

    async def _write_next(self, stream: FeedStream) -> bool:
        """Send the next turns; False if there are none."""
        conversation = self._conversation
        turns = await self._services.library.turns_behind(
            conversation.caller, conversation.id, self._last, limit=TURNS_PER_QUERY
        )
        for key, turn_id in turns:
            # A turn of another end user, or one that was deleted after the query.
            with suppress(CompletionNotFound):
                opened = await self._services.turns.attach(
                    conversation.caller, turn_id, end_user=self._end_user, is_observer=True
                )
                after = self._after.pop(turn_id, sse.START)
                await stream.write_turn(opened, after=after, prefix=f"{turn_id}.")
            self._last = key
        return bool(turns)
