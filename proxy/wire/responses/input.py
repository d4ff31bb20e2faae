"""Convert the input items of the Responses API to messages.

Consecutive assistant items (text, refusals, function calls) become one assistant message, and each tool result follows
its tool call, wherever the client put it. Reasoning and server tool calls that a client sends back are ignored, because
this server has stored them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from proxy.errors import InvalidRequest
from proxy.messages import (
    AssistantMessage,
    CustomToolCall,
    FunctionCall,
    Message,
    ProviderState,
    ToolCall,
    ToolMessage,
    UserMessage,
    text_of,
)
from proxy.wire.approvals import ApprovalDecision, is_approval
from proxy.wire.chat.message_validation import check_parts
from proxy.wire.conversations.item_input import (
    CallInput,
    MessageInput,
    OutputInput,
    convert,
    message_of,
    output_of,
)
from proxy.wire.provider_state import state_of_reasoning
from proxy.wire.responses.compaction import SummaryDecoder
from proxy.wire.responses.schema import (
    IGNORED_ITEMS,
    SUPPORTED_ITEMS,
    UNSUPPORTED_ITEMS,
    ApprovalResponseInput,
    CompactionInput,
    ItemReference,
)
from proxy.wire.validation.errors import clip, missing, not_among, too_long, unsupported_value


class Reference(Struct, frozen=True):
    """A reference to a stored item; ``param`` is its path in the input."""

    id: str
    param: str


class EncryptedReasoning(Struct, frozen=True):
    """A reasoning item of a provider that the client sends back, with its encrypted content."""

    body: dict[str, Any]


class SummaryPiece(Struct, frozen=True):
    """A summary of all input before it."""

    text: str


ResolvedPiece = Message | ApprovalDecision | EncryptedReasoning | SummaryPiece
InputPiece = ResolvedPiece | Reference
"""A parsed input item: a message with one content, a reference to one, or a decision."""


def parse_input(items: str | Sequence[dict[str, Any]], *, max_items: int) -> list[InputPiece]:
    """Return the parsed input items in order.

    Raises:
        InvalidRequest: An item is invalid, or its type is not supported.
    """
    if isinstance(items, str):
        return [UserMessage(content=items)]
    if len(items) > max_items:
        raise too_long("array", "input", max_items, len(items))
    check_parts("input", (part for item in items for part in (item.get("content"), item.get("output"))))
    summaries = SummaryDecoder()
    pieces = (_parse_item(item, f"input[{index}]", summaries) for index, item in enumerate(items))
    return [piece for piece in pieces if piece is not None]


def _parse_item(item: dict[str, Any], at: str, summaries: SummaryDecoder) -> InputPiece | None:
    match _item_type(item, at):
        case "message":
            return _message(item, at)
        case "function_call":
            call = convert(item, CallInput, at)
            function = FunctionCall(call.name, call.arguments)
            return AssistantMessage(content=None, tool_calls=[ToolCall(call.call_id, function)])
        case "function_call_output":
            result = convert(item, OutputInput, at)
            return ToolMessage(result.call_id, output_of(result, at))
        case "reasoning" if isinstance(item.get("encrypted_content"), str):
            return EncryptedReasoning(item)
        case "item_reference":
            reference = convert(item, ItemReference, at).id
            # The approval request itself is stored in this server.
            return None if is_approval(reference) else Reference(reference, f"{at}.id")
        case "mcp_approval_response":
            given = convert(item, ApprovalResponseInput, at)
            return ApprovalDecision(given.approval_request_id, given.approve, given.reason)
        case "compaction":
            content = convert(item, CompactionInput, at).encrypted_content
            return SummaryPiece(summaries.decode(content, param=f"{at}.encrypted_content"))
        case _:
            return None


def _item_type(item: dict[str, Any], at: str) -> str:
    kind = item.get("type")
    if kind is None:
        if item.keys() & {"role", "content"}:
            return "message"
        if "id" in item:
            return "item_reference"
        raise missing(f"{at}.type")
    if not isinstance(kind, str):
        raise InvalidRequest(
            f"Invalid type for '{at}.type': expected a string.", param=f"{at}.type", code="invalid_type"
        )
    if kind in UNSUPPORTED_ITEMS:
        raise unsupported_value(f"{at}.type", f"'{at}.type' does not support '{kind}' with this model.")
    if kind not in SUPPORTED_ITEMS and kind not in IGNORED_ITEMS:
        raise not_among(f"{at}.type", kind, SUPPORTED_ITEMS + IGNORED_ITEMS)
    return kind


def _message(item: dict[str, Any], at: str) -> Message:
    if item.get("content", ...) is None or (item.get("content") == [] and item.get("role") == "assistant"):
        # Some clients send null for empty content; chat completions accept it too.
        item = {**item, "content": ""}
    return message_of(convert(item, MessageInput, at), at)


# --- merging -------------------------------------------------------------------------------------------------


def approval_responses(said: Iterable[InputPiece]) -> list[ApprovalDecision]:
    """Return the new decisions, which follow the last assistant message."""
    new: list[ApprovalDecision] = []
    for piece in said:
        if isinstance(piece, AssistantMessage):
            new.clear()
        elif isinstance(piece, ApprovalDecision):
            new.append(piece)
    return new


class JoinedInput(NamedTuple):
    """The messages of an input; the other values are by the index of the message."""

    messages: list[Message]
    states: dict[int, ProviderState]
    """Provider state of messages that follow reasoning items."""
    summaries: set[int]
    """Messages that are summaries of everything before them."""


def joined(pieces: Iterable[ResolvedPiece]) -> JoinedInput:
    """Return the messages, with consecutive assistant pieces as one, and results directly after their calls.

    Pieces before and after a decision are two messages.

    Raises:
        InvalidRequest: A call that has no result.
    """
    whole: list[Message] = []
    row: list[AssistantMessage] = []
    results: dict[str, ToolMessage] = {}
    reasoning: list[dict[str, Any]] = []
    states: dict[int, ProviderState] = {}
    """By ``id()`` of the message."""
    summaries: set[int] = set()
    """By ``id()`` of the message."""

    def end_row() -> None:
        if row:
            whole.append(_merge(row))
            if (state := state_of_reasoning(reasoning)) is not None:
                states[id(whole[-1])] = state
        row.clear()
        reasoning.clear()

    for piece in pieces:
        if isinstance(piece, EncryptedReasoning):
            reasoning.append(piece.body)
            continue
        if isinstance(piece, AssistantMessage):
            row.append(piece)
            continue
        end_row()
        if isinstance(piece, ApprovalDecision):
            continue
        if isinstance(piece, SummaryPiece):
            piece = UserMessage(content=piece.text)
            summaries.add(id(piece))
        if isinstance(piece, ToolMessage):
            results.setdefault(piece.tool_call_id, piece)
        whole.append(piece)
    end_row()
    messages = _place_results(whole, results) if any(map(_calls_of, whole)) else whole
    return JoinedInput(
        messages,
        {at: states[id(one)] for at, one in enumerate(messages) if id(one) in states},
        {at for at, one in enumerate(messages) if id(one) in summaries},
    )


def _merge(row: Sequence[AssistantMessage]) -> AssistantMessage:
    if len(row) == 1:
        return row[0]
    texts = [text for text in map(_text, row) if text]
    # Items of this server already have the separator at the start of the second text (``chat.answer_text``).
    joints = [
        text if not place or text.startswith("\n") else f"\n\n{text}" for place, text in enumerate(texts)
    ]
    refusal = "".join(message.refusal or "" for message in row)
    calls = [call for message in row for call in message.tool_calls or ()]
    return AssistantMessage(
        content="".join(joints) or (None if calls or refusal else ""),
        refusal=refusal or None,
        tool_calls=calls or None,
    )


def _text(message: AssistantMessage) -> str:
    return text_of(message) if message.content else ""


def _calls_of(message: Message) -> Sequence[ToolCall | CustomToolCall]:
    return (message.tool_calls or ()) if isinstance(message, AssistantMessage) else ()


def _place_results(messages: Sequence[Message], results: Mapping[str, ToolMessage]) -> list[Message]:
    called = {call.id for message in messages for call in _calls_of(message)}
    whole: list[Message] = []
    for message in messages:
        if isinstance(message, ToolMessage) and message.tool_call_id in called:
            continue
        whole.append(message)
        for call in _calls_of(message):
            if call.id not in results:
                raise InvalidRequest(
                    f"No tool output found for function call {clip(call.id)}.", param="input"
                )
            whole.append(results[call.id])
    return whole
