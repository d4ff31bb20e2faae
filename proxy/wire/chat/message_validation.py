"""What a list of messages has to obey beyond its types, and the one form in which the rest of the proxy sees it.

After ``checked`` every message but an assistant's has content, no assistant message has an empty ``tool_calls``, and
calls and results of the deprecated kind (``function_call``, role ``function``) have become tool calls and results,
with ids that begin with ``TRANSLATED_ID``. A ``function`` message whose call is not in the list stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from proxy.errors import InvalidRequest
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
"""How the id of a translated ``function_call`` begins; the index of its message follows."""

# Images and files are taken in tool results too, as editors send them; whether one can be used is for the model to say.
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
"""Content parts of all messages of a request together: each of them is copied, stored and encoded as an object."""


def misplaced_result(index: int, role: str = "tool") -> InvalidRequest:
    """The error for a result that answers no call; for lists, and for results sent on their own."""
    calls = "tool_calls" if role == "tool" else "function_call"
    return InvalidRequest(
        f"Invalid parameter: messages with role '{role}' must be a response to a preceding message with '{calls}'.",
        # With a dot, as the official API has it here and nowhere else.
        param=f"messages.[{index}].role",
    )


def checked(messages: list[Message], *, max_messages: int) -> list[Message]:
    """Return the messages in their one form.

    Results without any assistant message before them pass: they may answer the calls of a stored conversation.

    Raises:
        InvalidRequest: Too many messages, content that is missing or of a kind that the role cannot have, or a tool
            result out of place.
    """
    if len(messages) > max_messages:
        raise too_long("array", "messages", max_messages, len(messages))
    check_parts("messages", (message.content for message in messages))
    changed: dict[int, Message] = {}
    calls: dict[str, int] | None = (
        None  # ids waiting for results, and how many; None before any assistant message
    )
    for index, message in enumerate(messages):
        # Most messages are text and nothing else; with a thousand of them, each step here counts.
        proper = message if message.content.__class__ is str else _with_content(message, index)
        kind = message.__class__
        if kind is UserMessage:
            if calls:
                calls = {}
        elif isinstance(proper, AssistantMessage):
            if (
                proper.tool_calls is not None
                or proper.function_call is not None
                or proper.content.__class__ is not str
            ):
                proper = _with_calls(proper, index)
            calls = dict(Counter(call.id for call in proper.tool_calls)) if proper.tool_calls else {}
        elif kind is ToolMessage or kind is FunctionMessage:
            proper = _answered(proper, calls, index)
        elif calls:
            calls = {}
        if proper is not message:
            changed[index] = proper
    return [changed.get(index, message) for index, message in enumerate(messages)] if changed else messages


def check_parts(param: str, contents: Iterable[object]) -> None:
    """Refuse more than ``MAX_PARTS`` content parts; contents that are no lists have none.

    Raises:
        InvalidRequest: There are more in all contents together.
    """
    parts = sum(len(content) for content in contents if isinstance(content, list))
    if parts > MAX_PARTS:
        raise InvalidRequest(
            f"Invalid '{param}': too many content parts. Expected at most {MAX_PARTS} in all {_NOUNS[param]} together,"
            f" but got {parts}.",
            param=param,
            code="array_above_max_length",
        )


def _with_content(message: Message, index: int) -> Message:
    """Content that is no string: parts are checked, null becomes the empty string.

    No client was seen that leaves content out except on assistant messages, but several send null.
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


def _with_calls(message: AssistantMessage, index: int) -> AssistantMessage:
    """``tool_calls`` is absent or holds calls, those of the old form too; content is null only beside something."""
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


def _answered(message: Message, calls: dict[str, int] | None, index: int) -> Message:
    """A result takes the id of the call that it answers off ``calls``."""
    if calls is None:
        return message
    if isinstance(message, ToolMessage) and calls.get(message.tool_call_id):
        calls[message.tool_call_id] -= 1
        return message
    if isinstance(message, FunctionMessage):
        for call_id, count in calls.items():
            if count and call_id.startswith(TRANSLATED_ID):
                calls[call_id] = 0
                return ToolMessage(tool_call_id=call_id, content=message.content)
    raise misplaced_result(index, "tool" if isinstance(message, ToolMessage) else "function")
