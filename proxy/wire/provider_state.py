"""Provider state that a client sends itself, with messages that it did not store here.

Stateless clients of reasoning models return what the provider sent: members of assistant messages and of their calls
(chat completions), or reasoning items with ``encrypted_content`` (Responses). Other unknown members are dropped, and so
are those of the wrong type, as anything that the API does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from proxy.messages import CALL_STATE_MEMBERS, MESSAGE_STATE_MEMBERS, ProviderState, is_within_limit

_MARKS = tuple(f'"{name}"'.encode() for name in {*MESSAGE_STATE_MEMBERS, *CALL_STATE_MEMBERS})
_IN_ALL_MARKS = ord("_")
_ASSISTANT = b'"assistant"'
_TYPES: Mapping[str, type] = {
    "reasoning_content": str,
    "reasoning_details": list,
    "thinking_blocks": list,
    "extra_content": dict,
    "provider_specific_fields": dict,
}
_REASONING_MEMBERS = ("type", "id", "summary", "content", "encrypted_content")


class _Body(Struct):
    messages: list[dict[str, msgspec.Raw]]


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_calls = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


def states_in_chat(body: bytes) -> dict[int, ProviderState]:
    """Return the state of the messages that have any, by their index; ``body`` is a valid chat completion request."""
    # All names have one byte that many texts do not have, and it is found a hundred times faster than a name. Most
    # first requests of a conversation have no answer. Not ``in`` for more than one byte: it tries bytes as a number
    # first, and raises and drops an error (CPython, bytes_methods.c).
    if _IN_ALL_MARKS not in body or body.find(_ASSISTANT) < 0:
        return {}
    for mark in _MARKS:
        if body.find(mark) >= 0:
            break
    else:
        return {}
    found: dict[int, ProviderState] = {}
    try:
        messages = _decode_body(body).messages
    except (msgspec.DecodeError, RecursionError):
        return {}
    for index, message in enumerate(messages):
        if bytes(message.get("role", b"")) != _ASSISTANT:
            continue
        members = _members(message, MESSAGE_STATE_MEMBERS)
        state = _bounded(ProviderState("", members, _states_of_calls(message)))
        if state is not None:
            found[index] = state
    return found


def state_of_reasoning(items: Sequence[Mapping[str, Any]]) -> ProviderState | None:
    """Return the state for an assistant message that follows these reasoning items; None if there is none."""
    sent = [
        {name: item[name] for name in _REASONING_MEMBERS if name in item}
        for item in items
        if isinstance(item.get("encrypted_content"), str) and item["encrypted_content"]
    ]
    return _bounded(ProviderState("", items=sent))


def _states_of_calls(message: Mapping[str, msgspec.Raw]) -> list[dict[str, Any]]:
    try:
        calls = _decode_calls(message.get("tool_calls", b"[]"))
    except msgspec.DecodeError:
        return []
    states = [_members(call, CALL_STATE_MEMBERS) for call in calls]
    return states if any(states) else []


def _members(values: Mapping[str, msgspec.Raw], names: Sequence[str]) -> dict[str, Any]:
    decoded = {name: msgspec.json.decode(values[name]) for name in names if name in values}
    return {name: value for name, value in decoded.items() if value and isinstance(value, _TYPES[name])}


def _bounded(state: ProviderState) -> ProviderState | None:
    has_any = bool(state.members or state.calls or state.items)
    return state if has_any and is_within_limit(state) else None
