"""Request bodies of the legacy endpoints.

Three kinds of clients send different bodies to ``/chat/completions``; ``kind_of`` detects the kind by its keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from proxy.errors import InvalidRequest
from proxy.messages import AssistantMessage, Message, UserMessage
from proxy.wire.agents import MAX_INSTRUCTIONS
from proxy.wire.validation.body_decoder import BodyDecoder

MAX_QUESTION = 4000
"""Maximum length of a question to ``/ask-stream``, in characters."""

_CONVERSATION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
# At least one character that is not white space.
_Text = Annotated[str, Meta(min_length=1, pattern=r"\S")]

BodyKind = Literal["message", "sources", "openai"]


class NewMessageBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A new message in a conversation stored under the id."""

    message: _Text
    conversation_id: str | None = None
    agent: str | None = None
    """A team or custom agent; the default team if unset."""


class SourceMessage(Struct, frozen=True):
    """A message and its author."""

    source: Literal["user", "assistant"]
    content: str


class SourcesBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A complete message list; ``stream: false`` requests one line instead of a stream."""

    stream: bool | None = None
    messages: Annotated[list[SourceMessage], Meta(min_length=1)]


class LegacyChatBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A new message in the current chat of the caller."""

    message: _Text
    reset_history: bool | None = None
    parallel_tools: bool | None = None
    agent: str | None = None
    """As for ``NewMessageBody``."""


class QuestionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A question without a conversation."""

    question: Annotated[str, Meta(min_length=1, max_length=MAX_QUESTION, pattern=r"\S")]


class LegacyAgentBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A custom agent in the legacy format; the timeout is in seconds."""

    name: Annotated[str, Meta(max_length=500)] | None = None
    instructions: Annotated[str, Meta(min_length=1, max_length=MAX_INSTRUCTIONS)]
    model: str | None = None
    max_parallel_tools: Annotated[int, Meta(ge=1, le=64)] = 8
    tool_call_timeout: Annotated[float, Meta(gt=0, le=600)] = 30.0


class SocketBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A message of the legacy WebSocket."""

    type: Literal["chat"]
    data: Raw


NEW_MESSAGE = BodyDecoder(NewMessageBody)
SOURCES = BodyDecoder(SourcesBody)
CHAT = BodyDecoder(LegacyChatBody)
QUESTION = BodyDecoder(QuestionBody)
SOCKET = BodyDecoder(SocketBody)
LEGACY_AGENT = BodyDecoder(LegacyAgentBody)


_ABSENT = Raw(b"")


class _Keys(Struct, frozen=True):
    message: Raw = _ABSENT
    messages: Raw = _ABSENT


class _Source(Struct, frozen=True):
    source: Raw = _ABSENT
    role: Raw = _ABSENT


_decode_keys = msgspec.json.Decoder(_Keys).decode
_decode_sources = msgspec.json.Decoder(list[_Source]).decode


def kind_of(body: bytes) -> BodyKind:
    """Return the kind of a body; an unknown body is treated as an OpenAI request, which has the best error messages."""
    try:
        keys = _decode_keys(body)
        if keys.messages is _ABSENT:
            return "openai" if keys.message is _ABSENT else "message"
        first = next(iter(_decode_sources(keys.messages)), None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "openai"
    if first is None or first.source is _ABSENT or first.role is not _ABSENT:
        return "openai"
    return "sources"


def messages_of(body: SourcesBody, *, max_messages: int) -> Sequence[Message]:
    """Return the messages.

    Raises:
        InvalidRequest: There are too many messages, or the last one is not a user message.
    """
    if len(body.messages) > max_messages:
        raise InvalidRequest(
            f"Invalid 'messages': array too long. Expected at most {max_messages} messages.",
            param="messages",
            code="array_above_max_length",
        )
    if body.messages[-1].source != "user":
        raise InvalidRequest(
            "Invalid 'messages': the last message must have the source 'user'.",
            param="messages",
            code="invalid_value",
        )
    return [
        UserMessage(content=one.content) if one.source == "user" else AssistantMessage(content=one.content)
        for one in body.messages
    ]


def conversation_id(value: str) -> str:
    """Return a conversation id of a legacy client if it is valid.

    Raises:
        InvalidRequest: The id is invalid.
    """
    if _CONVERSATION_ID.fullmatch(value):
        return value
    raise InvalidRequest(
        "Invalid 'conversation_id': expected 1 to 128 of the characters A-Z, a-z, 0-9, '_' and '-'.",
        param="conversation_id",
        code="invalid_value",
    )
