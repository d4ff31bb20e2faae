"""Messages of the proxy's WebSocket protocol, which ``docs/events.md`` documents.

The client sends one of five messages, each with an optional ``id`` that the reply repeats::

    {"type": "start", "id": "1", "request": {a chat completion's body}, "headers": {"X-Conversation-Id": "…"}}
    {"type": "subscribe", "id": "2", "turn_id": "chatcmpl-…", "after": "7.1", "types": ["text.delta"]}
    {"type": "unsubscribe", "id": "3", "turn_id": "chatcmpl-…"}
    {"type": "cancel", "id": "4", "turn_id": "chatcmpl-…"}
    {"type": "ping", "id": "5"}

``headers`` override those of the handshake; every message can have them. The client receives a ``reply`` or an
``error`` for each message, in order, and between them the frames of ``events.feed``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from proxy.errors import InvalidRequest, ProxyError
from proxy.events import Entry
from proxy.wire.chat.response_models import ErrorBody, encode
from proxy.wire.errors import error_response
from proxy.wire.events import sse
from proxy.wire.events.feed import Feed, feed_types
from proxy.wire.validation.body_decoder import BodyDecoder
from proxy.wire.validation.errors import missing

Action = Literal["start", "subscribe", "unsubscribe", "cancel", "ping"]
_Short = Annotated[str, Meta(max_length=128)]


class ClientMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """A message of the client; the action determines which other fields are used."""

    type: Action
    id: _Short | None = None
    request: Raw = Raw(b"")
    headers: dict[str, str] | None = None
    turn_id: _Short | None = None
    after: str | int | None = None
    types: list[str] | None = None

    @property
    def turn(self) -> str:
        """The turn id.

        Raises:
            InvalidRequest: It is missing.
        """
        if not self.turn_id:
            raise missing("turn_id")
        return self.turn_id

    @property
    def body(self) -> bytes:
        """The request of a ``start`` message.

        Raises:
            InvalidRequest: It is missing.
        """
        body = bytes(self.request)
        if not body:
            raise missing("request")
        return body

    @property
    def position(self) -> sse.Position:
        """The position of the last frame that the client has seen."""
        return sse.START if self.after is None else sse.position(str(self.after), param="after")

    @property
    def wanted(self) -> frozenset[str]:
        """The frame types to send; empty for all."""
        return feed_types(",".join(self.types or ()))


CLIENT_MESSAGE = BodyDecoder(ClientMessage)


class _Named(Struct, frozen=True):
    id: _Short | None = None


_decode_name = msgspec.json.Decoder(_Named).decode


def id_of(text: bytes) -> str | None:
    """Return the id of a message, even if the message is otherwise invalid; None if it has none."""
    try:
        return _decode_name(text).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class FrameMessages:
    """Encodes the entries of a turn as messages. It needs every entry from the first."""

    def __init__(self, feed: Feed, *, types: Collection[str] = (), after: sse.Position = sse.START) -> None:
        self._feed = feed
        self._types = types
        self._after = after

    def encode(self, entry: Entry) -> Iterable[str]:
        """Return the requested frames of one entry."""
        for frame in self._feed.frames(entry):
            is_requested = not self._types or frame.type in self._types
            if is_requested and (frame.position, frame.part) > self._after:
                yield encode(frame).decode()


def reply(message: ClientMessage, **facts: Any) -> str:
    """Return the reply to a successful action."""
    return encode({"type": "reply", "id": message.id, "action": message.type, **facts}).decode()


def refusal(error: ProxyError, message_id: str | None, *, turn_id: str | None = None) -> str:
    """Return the error of a failed action, or of a subscribed turn if ``turn_id`` is set.

    ``status`` is the equivalent HTTP status; ``retry_after`` (seconds) is present if it is known.
    """
    problem = error_response(error)
    message: dict[str, Any] = {"type": "error", "id": message_id, "status": problem.status}
    if turn_id is not None:
        message["turn_id"] = turn_id
    if problem.retry_after is not None:
        message["retry_after"] = problem.retry_after
    body = ErrorBody(problem.message, problem.type, problem.param, problem.code)
    return encode({**message, "error": body}).decode()


def too_many_subscriptions(limit: int) -> InvalidRequest:
    """Return the error for too many subscriptions of one connection."""
    return InvalidRequest(f"A connection can subscribe to at most {limit} turns.", code="too_many_turns")
