"""Messages of our own WebSocket protocol; ``docs/events.md`` describes it.

What the client sends is one of five, each with an ``id`` of its own choice that comes back in the reply::

    {"type": "start", "id": "1", "request": {a chat completion's body}, "headers": {"X-Conversation-Id": "…"}}
    {"type": "subscribe", "id": "2", "turn_id": "chatcmpl-…", "after": "7.1", "types": ["text.delta"]}
    {"type": "unsubscribe", "id": "3", "turn_id": "chatcmpl-…"}
    {"type": "cancel", "id": "4", "turn_id": "chatcmpl-…"}
    {"type": "ping", "id": "5"}

``headers`` are laid over those with which the socket was opened; every message may have them. The client gets a
``reply`` or an ``error`` for each message, in their order, and between them the frames of ``wire.feed``.
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
    """What a client sends; which keys count is the action's affair."""

    type: Action
    id: _Short | None = None
    request: Raw = Raw(b"")
    headers: dict[str, str] | None = None
    turn_id: _Short | None = None
    after: str | int | None = None
    types: list[str] | None = None

    @property
    def turn(self) -> str:
        """The turn that is meant.

        Raises:
            InvalidRequest: None is named.
        """
        if not self.turn_id:
            raise missing("turn_id")
        return self.turn_id

    @property
    def body(self) -> bytes:
        """The request of a start.

        Raises:
            InvalidRequest: There is none.
        """
        body = bytes(self.request)
        if not body:
            raise missing("request")
        return body

    @property
    def position(self) -> sse.Position:
        """The last frame that the client saw."""
        return sse.START if self.after is None else sse.position(str(self.after), param="after")

    @property
    def wanted(self) -> frozenset[str]:
        """The types of frames to be sent; empty for all."""
        return feed_types(",".join(self.types or ()))


CLIENT_MESSAGE = BodyDecoder(ClientMessage)


class _Named(Struct, frozen=True):
    id: _Short | None = None


_decode_name = msgspec.json.Decoder(_Named).decode


def id_of(text: bytes) -> str | None:
    """Return the id of a message, also of one that is wrong otherwise; None when it has none."""
    try:
        return _decode_name(text).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class FrameMessages:
    """Turns a turn's entries into messages; it has to be given every entry from the first."""

    def __init__(self, feed: Feed, *, types: Collection[str] = (), after: sse.Position = sse.START) -> None:
        self._feed = feed
        self._types = types
        self._after = after

    def encode(self, entry: Entry) -> Iterable[str]:
        """Return the frames of one entry that were asked for."""
        for frame in self._feed.frames(entry):
            is_wanted = not self._types or frame.type in self._types
            if is_wanted and (frame.position, frame.part) > self._after:
                yield encode(frame).decode()


def reply(message: ClientMessage, **facts: Any) -> str:
    """Return what tells that an action was done."""
    return encode({"type": "reply", "id": message.id, "action": message.type, **facts}).decode()


def refusal(error: ProxyError, message_id: str | None, *, turn_id: str | None = None) -> str:
    """Return what tells that it was not; ``turn_id`` when it is about a turn that was being told.

    ``status`` is the one that HTTP would have, and ``retry_after`` (seconds) when to come back, if that is known.
    """
    problem = error_response(error)
    told: dict[str, Any] = {"type": "error", "id": message_id, "status": problem.status}
    if turn_id is not None:
        told["turn_id"] = turn_id
    if problem.retry_after is not None:
        told["retry_after"] = problem.retry_after
    body = ErrorBody(problem.message, problem.type, problem.param, problem.code)
    return encode({**told, "error": body}).decode()


def too_many(limit: int) -> InvalidRequest:
    """More turns are followed over one socket than it may."""
    return InvalidRequest(f"At most {limit} turns can be followed over one socket.", code="too_many_turns")
