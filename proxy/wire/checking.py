"""What a list of messages has to obey beyond its types, and the one form in which the rest of the proxy sees it.

After ``checked`` every message but an assistant's has content, no assistant message has an empty ``tool_calls``, and
calls and results of the deprecated kind (``function_call``, role ``function``) have become tool calls and results,
with ids that begin with ``TRANSLATED_ID``. A ``function`` message whose call is not in the list stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from proxy.errors import InvalidRequest
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    FunctionMessage,
    Message,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.wire.explaining import missing, not_among, too_long

TRANSLATED_ID = "call_function_"
"""How the id of a translated ``function_call`` begins; the index of its message follows."""

_KIND = {"text": TextPart, "refusal": RefusalPart}
# Images and files are taken in tool results too, as editors send them; whether one can be used is for the model to say.
_PARTS: dict[type[Any], tuple[str, ...]] = {
    SystemMessage: ("text",),
    DeveloperMessage: ("text",),
    AssistantMessage: ("text", "refusal"),
    FunctionMessage: ("text",),
    UserMessage: ("text", "image_url", "input_audio", "file"),
    ToolMessage: ("text", "image_url", "input_audio", "file"),
}


def misplaced_tool_message(index: int) -> InvalidRequest:
    """The error for a tool result that answers no call; for lists, and for results sent on their own."""
    return InvalidRequest(
        "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
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
    changed: list[Message] | None = None
    calls: list[str] | None = None  # ids waiting for their results; None before the first assistant message
    for index, message in enumerate(messages):
        proper = message
        content = message.content
        if content.__class__ is not str:
            proper = _with_content(message, index)
        kind = message.__class__
        if kind is AssistantMessage:
            proper = _with_calls(proper, index)  # type: ignore[arg-type]
            calls = [call.id for call in proper.tool_calls] if proper.tool_calls else []
        elif kind is ToolMessage or kind is FunctionMessage:
            proper = _answered(proper, calls, messages, index)
        elif calls:
            calls = []
        if proper is not message:
            if changed is None:
                changed = list(messages)
            changed[index] = proper
    return messages if changed is None else changed


def _with_content(message: Message, index: int) -> Message:
    """Content that is no string: parts are checked, null becomes the empty string.

    No client was seen that leaves content out except on assistant messages, but several send null.
    """
    content = message.content
    is_assistant = isinstance(message, AssistantMessage)
    if isinstance(content, list):
        if content or (is_assistant and message.tool_calls):  # type: ignore[union-attr]
            return _with_parts(message, content, index)
        raise InvalidRequest(
            f"Invalid 'messages[{index}].content': empty array. Expected an array with minimum length 1, but got an "
            "empty array instead.",
            param=f"messages[{index}].content",
            code="empty_array",
        )
    if is_assistant:
        return message
    if content is UNSET:
        raise missing(f"messages[{index}].content")
    return msgspec.structs.replace(message, content="")


def _with_parts(message: Message, content: Sequence[Any], index: int) -> Message:
    if not content:
        return msgspec.structs.replace(message, content=None)
    allowed = _PARTS[message.__class__]
    for place, part in enumerate(content):
        if part.__class__ is not TextPart:
            kind = part.__struct_config__.tag
            if kind not in allowed:
                raise not_among(f"messages[{index}].content[{place}].type", kind, allowed)
    return message


def _with_calls(message: AssistantMessage, index: int) -> AssistantMessage:
    """``tool_calls`` is absent or has calls in it; something is said or called."""
    if message.tool_calls:
        return (
            message if message.function_call is None else msgspec.structs.replace(message, function_call=None)
        )
    if message.function_call is not None:
        call = ToolCall(id=f"{TRANSLATED_ID}{index}", function=message.function_call)
        return msgspec.structs.replace(message, function_call=None, tool_calls=[call])
    if message.tool_calls is not None:
        message = msgspec.structs.replace(message, tool_calls=None)
    if not isinstance(message.content, str | list) and message.refusal is None and message.audio is None:
        return msgspec.structs.replace(message, content="")
    return message


def _answered(message: Message, calls: list[str] | None, messages: Sequence[Message], index: int) -> Message:
    """A result takes the id of the call that it answers off ``calls``."""
    if calls is None:
        return message
    if isinstance(message, ToolMessage) and message.tool_call_id in calls:
        calls.remove(message.tool_call_id)
        return message
    if isinstance(message, FunctionMessage) and calls and calls[0].startswith(TRANSLATED_ID):
        return ToolMessage(tool_call_id=calls.pop(0), content=message.content)
    raise misplaced_tool_message(index)
