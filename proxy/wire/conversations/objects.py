"""Response objects of conversations and their items (Conversations API).

One stored message can be several items: its content, and each tool call. An item id consists of the turn id and the
position in the turn, so it does not change. The extension key ``handoff`` has the agent, and whether the item is
hidden.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from proxy.messages import (
    AssistantMessage,
    AudioPart,
    Content,
    CustomToolCall,
    FilePart,
    ForeignItem,
    FunctionMessage,
    ImagePart,
    Item,
    Message,
    Part,
    RefusalPart,
    TextPart,
    ToolCall,
    ToolMessage,
    text_of,
)
from proxy.wire.chat.schema import Metadata
from proxy.wire.conversations.item_input import MAX_ITEMS
from proxy.wire.responses.compaction import compaction_body
from proxy.wire.validation.body_decoder import BodyDecoder
from proxy.wire.validation.query_params import ListQuery

# --- bodies --------------------------------------------------------------------------------------------------

_Items = Annotated[list[Any], Meta(max_length=MAX_ITEMS)]


class NewConversation(Struct, frozen=True, forbid_unknown_fields=True):
    """Body to create a conversation."""

    items: _Items | None = None
    metadata: Metadata | None = None


class NewMetadata(Struct, frozen=True, forbid_unknown_fields=True):
    """Body to replace the metadata; null removes all."""

    metadata: Metadata | None


class NewItems(Struct, frozen=True, forbid_unknown_fields=True):
    """Body to add items."""

    items: _Items


NEW_CONVERSATION = BodyDecoder(NewConversation)
NEW_METADATA = BodyDecoder(NewMetadata)
NEW_ITEMS = BodyDecoder(NewItems)


def conversation_body(conversation_id: str, created_at: float, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return a conversation as it leaves."""
    return {
        "id": conversation_id,
        "object": "conversation",
        "created_at": int(created_at),
        "metadata": dict(metadata),
    }


def list_body(data: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return a list object. The ids of an empty list are ``""``, which ends pagination in the SDKs."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": has_more,
    }


# --- items ---------------------------------------------------------------------------------------------------


class WireItem(Struct, frozen=True):
    """An item object, and where it is stored.

    ``call_id`` is set if the item is a tool call; None means the content of a message without its calls.
    """

    id: str
    turn_id: str
    position: int
    body: dict[str, Any]
    is_hidden: bool = False
    call_id: str | None = None


def items_of(
    turn_id: str, position: int, item: Item | ForeignItem, pending: Collection[str]
) -> Iterator[WireItem]:
    """Yield the items of a stored message; ``pending`` are the call ids that its turn left to the client."""
    place = f"{_stem(turn_id)}_{position}"
    if isinstance(item, ForeignItem):
        item_id = f"{'rs' if item.body.get('type') == 'reasoning' else 'item'}_{place}"
        yield WireItem(item_id, turn_id, position, {"id": item_id, **item.body})
        return
    message = item.message
    if item.compaction is not None:
        if item.compaction.retained_from is not None:
            item_id, is_hidden = f"cmp_{place}", not item.visible
            body = {
                **compaction_body(item_id, text_of(message)),
                **_agent_fields(item.agent, is_hidden=is_hidden),
            }
            yield WireItem(item_id, turn_id, position, body, is_hidden)
        return
    calls = (message.tool_calls or ()) if isinstance(message, AssistantMessage) else ()
    if not calls or _assistant_content(message):
        prefix = "fco" if isinstance(message, ToolMessage | FunctionMessage) else "msg"
        item_id, is_hidden = f"{prefix}_{place}", not item.visible
        body = {"id": item_id, **_message_body(message), **_agent_fields(item.agent, is_hidden=is_hidden)}
        yield WireItem(item_id, turn_id, position, body, is_hidden)
    for call in calls:
        # A call of an agent that is not pending for the client is a server tool call or a handoff.
        is_hidden = not item.visible or (item.agent is not None and call.id not in pending)
        prefix = "ctc" if isinstance(call, CustomToolCall) else "fc"
        # Not the index of the call in the message, which changes when a call before it is deleted.
        item_id = f"{prefix}_{place}_{blake2b(call.id.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"
        body = {"id": item_id, **_call_body(call), **_agent_fields(item.agent, is_hidden=is_hidden)}
        yield WireItem(item_id, turn_id, position, body, is_hidden, call.id)


def rest_of(message: Message, call_id: str | None) -> Message | None:
    """Return a message without one of its items (see ``WireItem.call_id``); None if nothing remains."""
    if not isinstance(message, AssistantMessage) or not message.tool_calls:
        return None
    if call_id is None:
        return msgspec.structs.replace(message, content=None, refusal=None)
    calls = [call for call in message.tool_calls if call.id != call_id]
    if not calls and not _assistant_content(message):
        return None
    return msgspec.structs.replace(message, tool_calls=calls or None)


def part_of(
    items: Sequence[WireItem], query: ListQuery, *, with_hidden: bool, turn_ids: Sequence[str] = ()
) -> tuple[list[WireItem], bool] | None:
    """Return the requested page of the items, and whether there are more; None if ``after`` cannot be located.

    If the item ``after`` was deleted, its former position is derived from ``turn_ids``, all turns of the conversation.
    """
    is_asc = query.order == "asc"
    ordered = list(items) if is_asc else list(items)[::-1]
    start = 0
    if query.after is not None:
        at = [index for index, item in enumerate(ordered) if item.id == query.after]
        if at:
            start = at[-1] + 1
        else:
            turns = {_stem(turn_id): index for index, turn_id in enumerate(turn_ids)}
            found = _ITEM_ID.fullmatch(query.after)
            if found is None or found[1] not in turns:
                return None
            place = (turns[found[1]], int(found[2]))
            places = [(turns[_stem(item.turn_id)], item.position) for item in ordered]
            start = sum(1 for one in places if (one < place if is_asc else one > place))
    visible = [item for item in ordered[start:] if with_hidden or not item.is_hidden]
    return visible[: query.limit], len(visible) > query.limit


_ITEM_ID = re.compile(r"[a-z]+_([^_]+)_(\d{1,9})(?:_[0-9a-f]{8})?", re.ASCII)


def _stem(turn_id: str) -> str:
    """Return the unique part of a turn id."""
    return re.split("[-_]", turn_id, maxsplit=1)[-1]


def _agent_fields(agent: str | None, *, is_hidden: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {} if agent is None else {"agent": agent}
    if is_hidden:
        fields["hidden"] = True
    return {"handoff": fields} if fields else {}


def _call_body(call: ToolCall | CustomToolCall) -> dict[str, Any]:
    if isinstance(call, CustomToolCall):
        custom = {"name": call.custom.name, "input": call.custom.input}
        return {"type": "custom_tool_call", "call_id": call.id, **custom}
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"type": "function_call", "call_id": call.id, **function, "status": "completed"}


def _message_body(message: Message) -> dict[str, Any]:
    match message:
        case ToolMessage():
            about = {"type": "function_call_output", "call_id": message.tool_call_id}
            return {**about, "output": _output(message.content), "status": "completed"}
        case FunctionMessage():
            about = {"type": "function_call_output", "call_id": "", "name": message.name}
            return {**about, "output": _output(message.content), "status": "completed"}
        case AssistantMessage():
            content = _assistant_content(message) or [_output_text("")]
            return {"type": "message", "status": "completed", "role": "assistant", "content": content}
        case _:
            role = str(message.__struct_config__.tag)
            parts = _input_parts(message.content)
            return {"type": "message", "status": "completed", "role": role, "content": parts}


def _assistant_content(message: Message) -> list[dict[str, Any]]:
    if not isinstance(message, AssistantMessage):
        return []
    content = message.content
    if isinstance(content, str):
        said = [_output_text(content)] if content else []
    else:
        said = [
            {"type": "refusal", "refusal": part.refusal}
            if isinstance(part, RefusalPart)
            else _output_text(part.text)
            for part in content or ()
            if isinstance(part, TextPart | RefusalPart)
        ]
    if message.refusal:
        said.append({"type": "refusal", "refusal": message.refusal})
    return said


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _output(content: Content) -> str | list[dict[str, Any]]:
    return _input_parts(content) if isinstance(content, list) else content or ""


def _input_parts(content: Content) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    return [_input_part(part) for part in content or ()]


def _input_part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "input_text", "text": part.text}
        case RefusalPart():
            return {"type": "refusal", "refusal": part.refusal}
        case ImagePart():
            image = part.image_url
            return {"type": "input_image", "image_url": image.url, "detail": image.detail or "auto"}
        case FilePart():
            return {"type": "input_file", **msgspec.to_builtins(part.file)}
        case AudioPart():
            return {"type": "input_audio", "input_audio": msgspec.to_builtins(part.input_audio)}
