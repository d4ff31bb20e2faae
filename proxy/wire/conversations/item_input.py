"""Convert items that a client adds to a conversation (Conversations API, "Create items") to messages.

Messages, function calls and their outputs become messages that agents see. Items of hosted tools and reasoning are
stored unchanged. Items that cannot have an effect (a reference to an unknown item, tools that are not offered) are
rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, inspect

from proxy.errors import InvalidRequest
from proxy.messages import (
    AssistantMessage,
    AudioData,
    AudioPart,
    DeveloperMessage,
    FileData,
    FilePart,
    ForeignItem,
    FunctionCall,
    ImagePart,
    ImageUrl,
    Item,
    Message,
    OpenCalls,
    Part,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.wire.validation.error_messages import explain
from proxy.wire.validation.errors import (
    clip,
    empty,
    missing,
    not_among,
    unsupported_parameter,
    unsupported_value,
)

MAX_ITEMS = 20

# --- content of items ----------------------------------------------------------------------------------------


class InputText(Struct, frozen=True, tag="input_text", tag_field="type"):
    """Text of a user."""

    text: str


class OutputText(Struct, frozen=True, tag="output_text", tag_field="type"):
    """Text of an assistant."""

    text: str


class PlainText(Struct, frozen=True, tag="text", tag_field="type"):
    """Text of any role."""

    text: str


class Refusal(Struct, frozen=True, tag="refusal", tag_field="type"):
    """Refusal of an assistant."""

    refusal: str


class InputImage(Struct, frozen=True, tag="input_image", tag_field="type"):
    """An image."""

    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = None


class InputFile(Struct, frozen=True, tag="input_file", tag_field="type"):
    """A file."""

    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None


class InputAudio(Struct, frozen=True, tag="input_audio", tag_field="type"):
    """Audio."""

    input_audio: AudioData


_Part = InputText | OutputText | PlainText | Refusal | InputImage | InputFile | InputAudio


class MessageInput(Struct, frozen=True):
    """A message."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[_Part], Meta(min_length=1)]
    phase: Literal["commentary", "final_answer"] | None = None


class CallInput(Struct, frozen=True):
    """A call of a client tool."""

    call_id: Annotated[str, Meta(min_length=1)]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    arguments: str


class OutputInput(Struct, frozen=True):
    """The output of a client tool."""

    call_id: Annotated[str, Meta(min_length=1)]
    output: str | list[_Part]


class SummaryText(Struct, frozen=True, tag="summary_text", tag_field="type"):
    """A summary of reasoning."""

    text: str


class ReasoningText(Struct, frozen=True, tag="reasoning_text", tag_field="type"):
    """Text of reasoning."""

    text: str


class ReasoningInput(Struct, frozen=True):
    """Reasoning of a model."""

    summary: list[SummaryText]
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


_FOREIGN = (
    "reasoning",
    "file_search_call",
    "web_search_call",
    "image_generation_call",
    "computer_call",
    "computer_call_output",
    "code_interpreter_call",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "custom_tool_call",
    "custom_tool_call_output",
    "tool_search_call",
    "tool_search_output",
    "compaction",
    "program",
    "program_output",
)
_SUPPORTED = ("message", "function_call", "function_call_output", *_FOREIGN)
_UNSUPPORTED = ("item_reference", "compaction_trigger", "additional_tools", "configuration_update")

_PARTS: dict[str, tuple[str, ...]] = {
    "user": ("input_text", "text", "input_image", "input_file", "input_audio"),
    "assistant": ("output_text", "refusal", "input_text", "text"),
    "system": ("input_text", "text"),
    "developer": ("input_text", "text"),
    "output": ("input_text", "text", "output_text", "input_image", "input_file"),
}

# --- decoding ------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Struct)


def decode_items(
    values: Sequence[Any], calls: OpenCalls, *, param: str = "items"
) -> list[Item | ForeignItem]:
    """Return the items. ``calls`` are the open tool calls at the end of the conversation; the items update them.

    Raises:
        InvalidRequest: An item is invalid, its type is not supported, or a tool output is out of place.
    """
    found: list[Item | ForeignItem] = []
    for index, value in enumerate(values):
        item = _decode(value, calls, f"{param}[{index}]")
        if isinstance(item, Item):
            calls.observe(item.message)
        found.append(item)
    return found


def _decode(value: Any, calls: OpenCalls, at: str) -> Item | ForeignItem:
    kind = _item_type(value, at)
    match kind:
        case "message":
            return Item(message_of(convert(value, MessageInput, at), at))
        case "function_call":
            call = convert(value, CallInput, at)
            function = FunctionCall(call.name, call.arguments)
            return Item(AssistantMessage(None, tool_calls=[ToolCall(call.call_id, function)]))
        case "function_call_output":
            return Item(_result(convert(value, OutputInput, at), calls, at))
        case "reasoning":
            convert(value, ReasoningInput, at)
        case _:
            pass
    if kind in _UNSUPPORTED:
        raise unsupported_value(
            f"{at}.type", f"'{at}.type' does not support '{kind}' with conversations of this server."
        )
    if kind not in _FOREIGN:
        raise not_among(f"{at}.type", kind, _SUPPORTED)
    return ForeignItem({name: inner for name, inner in value.items() if name != "id"})


def _item_type(value: Any, at: str) -> str:
    if not isinstance(value, dict):
        convert(value, MessageInput, at)
    kind = value.get("type")
    if kind is None:
        # ``type`` is optional for messages and item references (OpenAI SDKs, ``ResponseInputItemParam``).
        return "item_reference" if "id" in value and not value.keys() & {"role", "content"} else "message"
    if not isinstance(kind, str):
        raise InvalidRequest(
            f"Invalid type for '{at}.type': expected a string.", param=f"{at}.type", code="invalid_type"
        )
    return kind


def convert(value: Any, kind: type[S], at: str) -> S:
    """Convert a value to a type; ``at`` is its path in the body.

    Raises:
        InvalidRequest: The value does not match the type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise explain(inspect.type_info(kind), value, str(error), at=at) from None


def message_of(given: MessageInput, at: str) -> Message:
    """Return the message in the format that all providers support; ``at`` is its path in the body."""
    if isinstance(given.content, str):
        content: str | list[Part] = given.content
    else:
        content = _single_text_as_string(_convert_parts(given.content, given.role, at))
    match given.role:
        case "user":
            return UserMessage(content)
        case "assistant":
            return _assistant_message(content)
        case "system":
            return SystemMessage(content)
        case "developer":
            return DeveloperMessage(content)


def _single_text_as_string(parts: list[Part]) -> str | list[Part]:
    """Convert a single text part to a string, the format that all providers support."""
    return parts[0].text if len(parts) == 1 and isinstance(parts[0], TextPart) else parts


def _assistant_message(content: str | list[Part]) -> AssistantMessage:
    """Return a message with text as a string and a separate refusal, the format that all providers support."""
    if isinstance(content, str):
        return AssistantMessage(content)
    text = "".join(part.text for part in content if isinstance(part, TextPart))
    refusal = "".join(part.refusal for part in content if isinstance(part, RefusalPart))
    return AssistantMessage(text or (None if refusal else ""), refusal=refusal or None)


def output_of(given: OutputInput, at: str) -> str | list[Part]:
    """Return the content of a tool output; ``at`` is its path in the body."""
    if isinstance(given.output, str):
        return given.output
    if not given.output:
        raise empty("array", f"{at}.output")
    return _single_text_as_string(_convert_parts(given.output, "output", at))


def _result(given: OutputInput, calls: OpenCalls, at: str) -> ToolMessage:
    if given.call_id not in calls.ids:
        raise InvalidRequest(
            f"No tool call found for function call output with call_id '{clip(given.call_id)}'. An output must follow "
            "its call, with only other outputs in between.",
            param=f"{at}.call_id",
        )
    return ToolMessage(given.call_id, output_of(given, at))


def _convert_parts(parts: Sequence[_Part], role: str, at: str) -> list[Part]:
    field = "output" if role == "output" else "content"
    return [_convert_part(part, role, f"{at}.{field}[{place}]") for place, part in enumerate(parts)]


def _convert_part(part: _Part, role: str, at: str) -> Part:
    kind = str(part.__struct_config__.tag)
    if kind not in _PARTS[role]:
        raise not_among(f"{at}.type", kind, _PARTS[role])
    match part:
        case InputText() | OutputText() | PlainText():
            return TextPart(part.text)
        case Refusal():
            return RefusalPart(part.refusal)
        case InputImage():
            return _image(part, at)
        case InputFile():
            return _file(part, at)
        case InputAudio():
            return AudioPart(part.input_audio)


def _image(part: InputImage, at: str) -> ImagePart:
    if part.image_url is None and part.file_id is not None:
        raise unsupported_parameter(f"{at}.file_id", "is not supported: this server keeps no files.")
    if not part.image_url:
        raise missing(f"{at}.image_url")
    return ImagePart(ImageUrl(part.image_url, part.detail))


def _file(part: InputFile, at: str) -> FilePart:
    for name in ("file_url", "file_id"):
        if getattr(part, name) is not None:
            raise unsupported_parameter(
                f"{at}.{name}", "is not supported: this server keeps and fetches no files."
            )
    if not part.file_data:
        raise missing(f"{at}.file_data")
    return FilePart(FileData(file_data=part.file_data, filename=part.filename))
