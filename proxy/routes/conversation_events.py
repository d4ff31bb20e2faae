"""``GET /v1/conversations/{id}/events``: the events of all turns of a conversation, as they were and as they come."""

from __future__ import annotations

from contextlib import suppress

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from proxy.errors import CompletionNotFound, InvalidRequest, StoreUnavailable
from proxy.routes.conversation_access import conversation_of
from proxy.routes.dependencies import Services, services_of
from proxy.routes.feed_stream import FeedStream, feed_stream
from proxy.routes.request_body import first_of, headers_of
from proxy.routes.streaming import Connection
from proxy.routes.turns import named_position
from proxy.service.remote_turns import Listener
from proxy.turns.repository import Conversation
from proxy.wire.events import sse
from proxy.wire.events.feed import BEHIND, feed_types, place_in_conversation
from proxy.wire.validation.query_params import is_true

TURNS_AT_ONCE = 50
"""Whose ids are asked for together; they are read one by one."""
RETRY_SECONDS = 1.0
"""Between two questions to a store that does not answer."""


class ConversationEvents:
    """The endpoint.

    ``Last-Event-ID`` (or ``?starting_after=``) names the last frame that the reader saw, or a turn that it knows;
    ``?types=`` the types it wants; ``?follow=false`` ends with what there is. Else the stream stays open until the
    reader leaves, the conversation is deleted, or the server stops.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services = services_of(scope)
        headers = headers_of(scope)
        caller = services.keys.caller(headers.get("authorization"))
        query = QueryParams(scope["query_string"])
        end_user = first_of(headers, services.settings.user_headers)
        types = feed_types(query.get("types", ""))
        follows = is_true(query, "follow", default=True)
        value, param = named_position(headers, query)
        conversation = await conversation_of(
            services, caller, end_user, scope["path_params"]["conversation_id"]
        )
        reader = _Reader(services, conversation, end_user, follows=follows)
        if value:
            await reader.go_behind(value, param)
        scope["state"]["facts"].update(conversation_id=conversation.id)
        named = [(b"x-conversation-id", conversation.id.encode())]
        async with feed_stream(services, Connection(scope, receive, send), named, types) as stream:
            with services.turns.listener(conversation) as listener:
                await reader.tell_all(stream, listener)


class _Reader:
    """Where one reader is in a conversation."""

    def __init__(
        self, services: Services, conversation: Conversation, end_user: str, *, follows: bool
    ) -> None:
        self._services = services
        self._conversation = conversation
        self._end_user = end_user
        self._follows = follows
        self._last = 0
        """The key of the turn up to which everything was told."""
        self._after: dict[str, sse.Position] = {}
        """Of the turn that comes next, what was told of it before."""

    async def go_behind(self, value: str, param: str) -> None:
        """Begin behind a frame.

        Raises:
            InvalidRequest: There is no such frame in the conversation.
        """
        turn_id, position = place_in_conversation(value, param=param)
        known = self._conversation
        key = await self._services.library.turn_key(known.caller, known.id, turn_id)
        if key is None:
            raise InvalidRequest(
                f"Invalid '{param}': the conversation has no turn '{turn_id[:64]}'.",
                param=param,
                code="invalid_value",
            )
        self._last = key if position == BEHIND else key - 1
        self._after[turn_id] = position

    async def tell_all(self, stream: FeedStream, listener: Listener) -> None:
        """Tell turn after turn, each to its end before the next: no two of a conversation run at a time."""
        while not listener.is_gone:
            # Whether it stops is looked at first, so that what began before is told.
            is_closing = self._services.turns.is_closing
            try:
                has_told = await self._tell_next(stream)
            except StoreUnavailable:
                has_told = False
                listener.wake_in(RETRY_SECONDS)
            else:
                if not has_told and not self._follows:
                    return
            if not has_told and is_closing:
                return
            if not has_told:
                listener.after = self._last
                await stream.wait(listener)

    async def _tell_next(self, stream: FeedStream) -> bool:
        """Tell some turns; False when there are none."""
        known = self._conversation
        turns = await self._services.library.turns_behind(
            known.caller, known.id, self._last, limit=TURNS_AT_ONCE
        )
        for key, turn_id in turns:
            # Another person's, or deleted meanwhile.
            with suppress(CompletionNotFound):
                opened = await self._services.turns.attach(
                    known.caller, turn_id, end_user=self._end_user, is_observer=True
                )
                after = self._after.pop(turn_id, sse.START)
                await stream.tell(opened, after=after, prefix=f"{turn_id}.")
            self._last = key
        return bool(turns)
