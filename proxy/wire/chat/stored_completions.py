"""Response objects of stored completions and their request messages (API reference, "Chat Completions")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from proxy.events import decode_journal
from proxy.messages import AssistantMessage, DeveloperMessage, Message, SystemMessage, ToolMessage
from proxy.wire.chat.completion import AnswerOptions, completion, decode_options
from proxy.wire.chat.response_models import Completion


def with_request_messages(options: AnswerOptions, messages: Sequence[Message]) -> AnswerOptions:
    """Return the options with the data for listing the request messages that a conversation does not store."""
    instructions = [
        (place, message)
        for place, message in enumerate(messages)
        if isinstance(message, SystemMessage | DeveloperMessage)
    ]
    return msgspec.structs.replace(options, sent=len(messages), instructions=instructions)


def options_of(completion_id: str, created_at: float, options: bytes) -> AnswerOptions | None:
    """Return the encoder options of a stored response; None if it is not a chat completion."""
    try:
        known = decode_options(options)
    except msgspec.DecodeError:
        return None
    return msgspec.structs.replace(known, id=completion_id, created=int(created_at))


def completion_body(
    options: AnswerOptions, journal: bytes, metadata: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return the completion object with its metadata; None if the journal has no completion."""
    if not journal:
        return None
    answer = completion(options, decode_journal(journal).events)
    if not isinstance(answer, Completion):
        return None
    body: dict[str, Any] = msgspec.to_builtins(answer)
    return {**body, "metadata": dict(metadata)}


def message_bodies(completion_id: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the message objects.

    The type in OpenAI's SDKs has only the role ``assistant``; here each message has the role that it was sent with.
    """
    return [_message_body(f"{completion_id}-{place}", message) for place, message in enumerate(messages)]


def _message_body(message_id: str, message: Message) -> dict[str, Any]:
    content = message.content
    body: dict[str, Any] = {
        "id": message_id,
        "role": str(message.__struct_config__.tag),
        "content": content if isinstance(content, str) else None,
        "name": getattr(message, "name", None),
        "content_parts": msgspec.to_builtins(content) if isinstance(content, list) else None,
    }
    if isinstance(message, AssistantMessage):
        body["refusal"] = message.refusal
        if message.tool_calls:
            body["tool_calls"] = msgspec.to_builtins(message.tool_calls)
    elif isinstance(message, ToolMessage):
        body["tool_call_id"] = message.tool_call_id
    return body
