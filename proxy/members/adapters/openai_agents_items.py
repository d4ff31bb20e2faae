"""The input and the output type of runs of the OpenAI Agents SDK."""

from __future__ import annotations

from typing import Any

from agents import AgentOutputSchemaBase

from proxy.members.adapters.common import (
    NOT_EXECUTED,
    Attachment,
    answered_outside,
    attachments_of,
    json_text,
    system_text,
    with_own_messages,
)
from proxy.members.port import MemberContext
from proxy.messages import Item, UserMessage, text_of

# --- items -----------------------------------------------------------------------------------------------------


def input_of(context: MemberContext) -> list[Any]:
    """Return what a new run begins with; an interrupted one had the same."""
    system = system_text(context)
    items: list[Any] = [{"role": "system", "content": system}] if system else []
    items += with_own_messages(context, lambda state: state["items"], _of_user, _of_agent)
    for call, result in answered_outside(context):
        arguments = json_text(call.arguments)
        items += [
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": result},
        ]
    return _closed(items)


def _of_user(message: UserMessage) -> Any:
    attachments = attachments_of(message)
    if not attachments:
        return {"role": "user", "content": text_of(message)}
    text = {"type": "input_text", "text": text_of(message)}
    return {"role": "user", "content": [text, *map(_attachment, attachments)]}


def _of_agent(item: Item, text: str) -> Any:
    return {"role": "assistant", "content": text}


def _attachment(one: Attachment) -> Any:
    match one.kind:
        case "image":
            return {"type": "input_image", "image_url": one.url, "detail": one.detail}
        case "audio":
            form = "mp3" if one.media_type == "audio/mpeg" else one.media_type.partition("/")[2]
            return {"type": "input_audio", "input_audio": {"data": one.base64, "format": form}}
        case _ if one.file_id:
            return {"type": "input_file", "file_id": one.file_id}
        case _:
            return {"type": "input_file", "file_data": one.url, "filename": one.name or "file"}


def _closed(items: list[Any]) -> list[Any]:
    """Return the items with a result for each call."""
    answered = {item["call_id"] for item in items if item.get("type") == "function_call_output"}
    closed: list[Any] = []
    for item in items:
        closed.append(item)
        if item.get("type") == "function_call" and item["call_id"] not in answered:
            output = {"type": "function_call_output", "call_id": item["call_id"], "output": NOT_EXECUTED}
            closed.append(output)
    return closed


def ends_with_text(items: list[Any]) -> bool:
    """Whether the answer was streamed: it is not the output of a tool."""
    last = items[-1] if items else {}
    return last.get("type") == "message" and last.get("role") == "assistant"


# --- output type -----------------------------------------------------------------------------------------------


class _Form(AgentOutputSchemaBase):  # type: ignore[misc]
    """The JSON schema of ``response_format`` as the output type of an agent."""

    def __init__(self, schema: dict[str, Any], *, is_strict: bool) -> None:
        self._schema = schema
        self._is_strict = is_strict

    def is_plain_text(self) -> bool:
        return False

    def name(self) -> str:
        return "response"

    def json_schema(self) -> dict[str, Any]:
        return self._schema

    def is_strict_json_schema(self) -> bool:
        return self._is_strict

    def validate_json(self, json_str: str) -> Any:
        # The proxy checks the answer.
        return json_str


def form_of(context: MemberContext) -> Any:
    """Return the JSON schema of ``response_format`` as an output type; None if there is none."""
    form = context.parameters.response_format or {}
    schema = form.get("json_schema") or {}
    if form.get("type") != "json_schema" or not isinstance(schema.get("schema"), dict):
        return None
    return _Form(schema["schema"], is_strict=bool(schema.get("strict")))
