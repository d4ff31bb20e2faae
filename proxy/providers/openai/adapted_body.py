"""Applies what was learned of a provider to the body of a request.

Fields are omitted while the body is built, so that ``extra_body`` of the team file still wins. Reshapings change the
whole body at the end, with its messages as plain JSON values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec

from proxy.providers.openai.adaptation import HARMLESS, TWINS, Adaptation, Omission, Reshaping
from proxy.providers.openai.call_ids import short_id
from proxy.providers.openai.message_forms import is_empty, lacks_reasoning, lacks_signature

Body = dict[str, Any]
Messages = list[dict[str, Any]]

_CONTINUE = "Continue."
_NO_REASONING = " "
"""Kimi K2.5 and later reject an empty text too."""
_NO_SIGNATURE = {"google": {"thought_signature": "skip_thought_signature_validator"}}
"""For calls that another model made: https://ai.google.dev/gemini-api/docs/thought-signatures"""
_NO_ANSWER = "(no answer)"
_PAST_TOOL = "No longer available. Do not call it."
_NOT_SCHEMAS = frozenset(("enum", "const", "default", "examples"))
_CALLER_NAMES = {
    "reasoning": ("reasoning_effort",),
    "reasoning.effort": ("reasoning_effort",),
    "text.verbosity": ("verbosity",),
    "include": ("logprobs",),
}
"""Names of fields of Responses in chat completions."""
_LIMITS = ("max_tokens", "max_completion_tokens")


def omit_fields(body: Body, adaptations: Collection[Adaptation]) -> frozenset[str]:
    """Leave rejected fields out of the body, or send them under their other name.

    Returns the parameters, as callers name them, that have no effect therefore.
    """
    omissions = [one for one in adaptations if isinstance(one, Omission)]
    rejected = {one.name for one in omissions if one.value is None and one.next_to is None}
    ignored: set[str] = set()
    for omission in omissions:
        holder, name = _own_holder(body, omission.name)
        if name not in holder or not _applies(omission, holder[name], body):
            continue
        value = holder.pop(name)
        if not holder and holder is not body:
            body.pop(omission.name.partition(".")[0])
        twin = TWINS.get(name)
        if twin is not None and omission.value is None and twin not in rejected:
            body.setdefault(twin, value)
        elif omission.name not in HARMLESS:
            ignored.update(caller_names(omission.name))
    return frozenset(ignored)


def without_effect(adaptations: Iterable[Adaptation]) -> frozenset[str]:
    """Return the parameters, as callers name them, that have no effect with any value."""
    rejected = {
        one.name
        for one in adaptations
        if isinstance(one, Omission) and one.value is None and one.next_to is None
    }
    return frozenset(
        caller_name
        for name in rejected - HARMLESS
        if TWINS.get(name) is None or TWINS[name] in rejected
        for caller_name in caller_names(name)
    )


def caller_names(field: str) -> tuple[str, ...]:
    """Return what callers may have set if this field of a request is rejected."""
    if field in _LIMITS or field == "max_output_tokens":
        return _LIMITS
    if field.startswith(("text.format", "response_format")):
        return ("response_format",)
    return _CALLER_NAMES.get(field, (field,))


def reshape(body: Body, adaptations: Collection[Adaptation]) -> frozenset[str]:
    """Change the form of the body. Its messages and tools are JSON values, and belong to it.

    Returns the parameters that have no effect therefore.
    """
    ignored: set[str] = set()
    if Reshaping.NO_EFFORT_WITH_TOOLS in adaptations and body.get("tools"):
        if body.get("reasoning_effort", "none") != "none":
            ignored.add("reasoning_effort")
        body["reasoning_effort"] = "none"
    if Reshaping.SCHEMA_PROPERTIES in adaptations:
        for tool in body.get("tools", ()):
            _add_properties(tool)
    for reshaping, change in _MESSAGE_CHANGES:
        if reshaping in adaptations and "messages" in body:
            body["messages"] = change(body["messages"])
    if Reshaping.SYSTEM_ROLE in adaptations or Reshaping.DEVELOPER_ROLE in adaptations:
        _change_roles(body, adaptations)
    if Reshaping.SHORT_CALL_IDS in adaptations:
        _shorten_ids(body)
    if Reshaping.NO_NAMES in adaptations:
        for message in body.get("messages", ()):
            if message["role"] != "function" and message.pop("name", None) is not None:
                ignored.add("messages.name")
    if Reshaping.HISTORY_TOOLS in adaptations and not body.get("tools"):
        _add_past_tools(body)
    return frozenset(ignored)


def plain(body: Body) -> Body:
    """Return the body with messages and tools as JSON values that nothing else refers to."""
    changed: Body = msgspec.json.decode(msgspec.json.encode(body))
    return changed


def _own_holder(body: Body, path: str) -> tuple[Body, str]:
    """Return the object that holds a field, and the name of the field in it; the object belongs to this body."""
    first, _, rest = path.partition(".")
    if not rest:
        return body, first
    holder = body.get(first)
    if not isinstance(holder, dict):
        return {}, rest
    # Objects of a team file are shared by all requests.
    body[first] = holder = dict(holder)
    return holder, rest


def _applies(omission: Omission, value: object, body: Mapping[str, Any]) -> bool:
    if omission.next_to is not None:
        return omission.next_to in body
    return omission.value is None or msgspec.json.encode(value) == omission.value


def _add_properties(schema: object) -> None:
    if isinstance(schema, list):
        for one in schema:
            _add_properties(one)
    elif isinstance(schema, dict):
        for name, inner in schema.items():
            if name not in _NOT_SCHEMAS:
                _add_properties(inner)
        if schema.get("type") == "object":
            schema.setdefault("properties", {})


def _change_roles(body: Body, adaptations: Collection[Adaptation]) -> None:
    is_both = Reshaping.SYSTEM_ROLE in adaptations and Reshaping.DEVELOPER_ROLE in adaptations
    old, new = ("system", "developer") if Reshaping.DEVELOPER_ROLE in adaptations else ("developer", "system")
    for message in body.get("messages") or body.get("input", ()):
        if is_both and message.get("role") in ("system", "developer"):
            message["role"] = "user"
        elif message.get("role") == old:
            message["role"] = new


def _shorten_ids(body: Body) -> None:
    for message in body.get("messages", ()):
        for call in message.get("tool_calls") or ():
            call["id"] = short_id(call["id"])
        if "tool_call_id" in message:
            message["tool_call_id"] = short_id(message["tool_call_id"])
    for item in body.get("input", ()):
        if "call_id" in item:
            item["call_id"] = short_id(item["call_id"])


def _add_past_tools(body: Body) -> None:
    calls = [call for message in body.get("messages", ()) for call in message.get("tool_calls") or ()]
    names = dict.fromkeys(call["function"]["name"] for call in calls if "function" in call)
    schema = {"type": "object", "properties": {}}
    if names:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": name, "description": _PAST_TOOL, "parameters": schema},
            }
            for name in names
        ]
        body["tool_choice"] = "none"


def _without_empty(messages: Messages) -> Messages:
    changed = []
    for message in messages:
        if is_empty(message):
            if text := message.get("refusal"):
                message["content"] = text
            elif message.get("tool_calls"):
                message["content"] = None
            else:
                continue
        changed.append(message)
    return changed


def _with_content(messages: Messages) -> Messages:
    for message in messages:
        if message["role"] == "assistant" and message.get("content") is None:
            message["content"] = message.get("refusal") or ""
    return messages


def _with_reasoning(messages: Messages) -> Messages:
    for message in messages:
        if lacks_reasoning(message):
            message["reasoning_content"] = _NO_REASONING
    return messages


def _with_signatures(messages: Messages) -> Messages:
    for message in messages:
        if lacks_signature(message):
            message["tool_calls"][0]["extra_content"] = _NO_SIGNATURE
    return messages


def _with_separate_calls(messages: Messages) -> Messages:
    changed = []
    for message in messages:
        if message.get("content") and message.get("tool_calls"):
            changed.append({"role": message["role"], "content": message["content"]})
            message = {**message, "content": None}
        changed.append(message)
    return changed


def _with_assistant_behind_tool(messages: Messages) -> Messages:
    changed: Messages = []
    for message in messages:
        if message["role"] == "user" and changed and changed[-1]["role"] == "tool":
            changed.append({"role": "assistant", "content": _NO_ANSWER})
        changed.append(message)
    return changed


def _with_user_last(messages: Messages) -> Messages:
    is_open = bool(messages) and messages[-1]["role"] == "assistant"
    return [*messages, {"role": "user", "content": _CONTINUE}] if is_open else messages


_MESSAGE_CHANGES: tuple[tuple[Reshaping, Callable[[Messages], Messages]], ...] = (
    (Reshaping.NO_EMPTY_MESSAGES, _without_empty),
    (Reshaping.SEPARATE_CALLS, _with_separate_calls),
    (Reshaping.EMPTY_CONTENT, _with_content),
    (Reshaping.REASONING_PLACEHOLDER, _with_reasoning),
    (Reshaping.SIGNATURE_PLACEHOLDER, _with_signatures),
    (Reshaping.ASSISTANT_BEHIND_TOOL, _with_assistant_behind_tool),
    (Reshaping.USER_LAST, _with_user_last),
)
