"""Validate and normalise the messages of a request, beyond the checks of their types.

After ``validate_messages``, all messages except assistant messages have content, no assistant message has empty
``tool_calls``, and deprecated function calls and results (``function_call``, role ``function``) are tool calls and
results with ids that start with ``TRANSLATED_ID``. A ``function`` message without its call in the list is unchanged.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from proxy.errors import InvalidRequest
from proxy.message_lists import text_messages
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    FunctionMessage,
    Message,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.wire.validation.errors import empty, missing, not_among, too_long

TRANSLATED_ID = "call_function_"
"""Prefix of the id of a converted ``function_call``; the index of its message follows."""

# Images and files are accepted in tool results, too, because code editors send them. The model decides whether it
# supports them.
_PARTS: dict[type[Any], tuple[str, ...]] = {
    SystemMessage: ("text",),
    DeveloperMessage: ("text",),
    AssistantMessage: ("text", "refusal"),
    FunctionMessage: ("text",),
    UserMessage: ("text", "image_url", "input_audio", "file"),
    ToolMessage: ("text", "image_url", "input_audio", "file"),
}

_NOUNS = {"messages": "messages", "input": "items", "items": "items"}

MAX_PARTS = 10_000
"""Maximum number of content parts in a request: each is copied, stored and encoded as an object."""


def unexpected_tool_result(index: int, role: str = "tool") -> InvalidRequest:
    """Return the error for a tool result without a tool call, in a message list or in a separate request."""
    calls = "tool_calls" if role == "tool" else "function_call"
    return InvalidRequest(
        f"Invalid parameter: messages with role '{role}' must be a response to a preceding message with '{calls}'.",
        # OpenAI's ``param`` has a dot after "messages" for this error, unlike others. Observed, not documented.
        param=f"messages.[{index}].role",
    )


def validate_messages(messages: list[Message], *, max_messages: int) -> list[Message]:
    """Return the normalised messages; ``TextMessages`` if they have only text, as nearly all lists do.

    Tool results without a preceding assistant message are valid: they can answer tool calls of a stored conversation.

    Raises:
        InvalidRequest: There are too many messages, content is missing or not allowed for the role, or a tool result
            is out of place.
    """
    if len(messages) > max_messages:
        raise too_long("array", "messages", max_messages, len(messages))
    if (only_text := text_messages(messages)) is not None:
        return only_text
    check_parts("messages", [message.content for message in messages])
    changed: dict[int, Message] = {}
    calls: _OpenCalls | None = None  # None before any assistant message
    for index, message in enumerate(messages):
        # Fast path: most messages have only text, and a request can have thousands.
        proper = message if message.content.__class__ is str else _normalize_content(message, index)
        kind = message.__class__
        if kind is UserMessage:
            if calls is not None:
                calls = _NO_CALLS
        elif type(proper) is AssistantMessage:
            if (
                proper.tool_calls is not None
                or proper.function_call is not None
                or proper.content.__class__ is not str
            ):
                proper = _normalize_calls(proper, index)
            calls = _OpenCalls(call.id for call in proper.tool_calls) if proper.tool_calls else _NO_CALLS
        elif kind is ToolMessage or kind is FunctionMessage:
            proper = _match_result(proper, calls, index)
        elif calls is not None:
            calls = _NO_CALLS
        if proper is not message:
            changed[index] = proper
    return [changed.get(index, message) for index, message in enumerate(messages)] if changed else messages


def check_parts(param: str, contents: Iterable[object]) -> None:
    """Reject more than ``MAX_PARTS`` content parts; contents other than lists have none.

    Raises:
        InvalidRequest: All contents together exceed the limit.
    """
    parts = sum([len(content) for content in contents if isinstance(content, list)])
    if parts > MAX_PARTS:
        raise InvalidRequest(
            f"Invalid '{param}': too many content parts. Expected at most {MAX_PARTS} in all {_NOUNS[param]} together,"
            f" but got {parts}.",
            param=param,
            code="array_above_max_length",
        )


def _normalize_content(message: Message, index: int) -> Message:
    """Check content parts, and convert null content to the empty string.

    Several clients send null; none is known to omit content, except in assistant messages.
    """
    content = message.content
    if content:
        for place, part in enumerate(content):
            if part.__class__ is not TextPart:
                _check_part(message, part, f"messages[{index}].content[{place}].type")
        return message
    if isinstance(message, AssistantMessage):
        return message
    if content is UNSET:
        raise missing(f"messages[{index}].content")
    if content is None:
        return msgspec.structs.replace(message, content="")
    raise empty("array", f"messages[{index}].content")


def _check_part(message: Message, part: Any, param: str) -> None:
    allowed = _PARTS[message.__class__]
    kind = part.__struct_config__.tag
    if kind not in allowed:
        raise not_among(param, kind, allowed)


def _normalize_calls(message: AssistantMessage, index: int) -> AssistantMessage:
    """Convert ``function_call`` to ``tool_calls``, and null content without other output to the empty string."""
    calls = message.tool_calls or None
    if calls is None and message.function_call is not None:
        calls = [ToolCall(id=f"{TRANSLATED_ID}{index}", function=message.function_call)]
    content = message.content
    if not content and not isinstance(content, str):
        is_silent = calls is None and message.refusal is None and message.audio is None
        content = "" if is_silent else None
    if calls is message.tool_calls and content is message.content and message.function_call is None:
        return message
    return msgspec.structs.replace(message, content=content, tool_calls=calls, function_call=None)


class _OpenCalls:
    """The calls of an assistant message that wait for results."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._counts = Counter(ids)
        # A separate queue: a search among all calls for every result would take quadratic time.
        self._translated = deque(call_id for call_id in self._counts if call_id.startswith(TRANSLATED_ID))

    def __bool__(self) -> bool:
        return bool(self._counts)

    def remove(self, call_id: str) -> bool:
        """Remove a call; return whether it was there."""
        if not self._counts.get(call_id):
            return False
        self._counts[call_id] -= 1
        return True

    def pop_translated(self) -> str | None:
        """Remove the first call of the deprecated kind, and return its id; None if there is none."""
        while self._translated:
            call_id = self._translated.popleft()
            if self._counts[call_id]:
                self._counts[call_id] = 0
                return call_id
        return None


_NO_CALLS = _OpenCalls(())


def _match_result(message: Message, calls: _OpenCalls | None, index: int) -> Message:
    """Check that a result answers one of the open ``calls``, and remove its id from them."""
    if calls is None:
        return message
    if isinstance(message, ToolMessage) and calls.remove(message.tool_call_id):
        return message
    if isinstance(message, FunctionMessage) and (call_id := calls.pop_translated()) is not None:
        return ToolMessage(tool_call_id=call_id, content=message.content)
    raise unexpected_tool_result(index, "tool" if isinstance(message, ToolMessage) else "function")
