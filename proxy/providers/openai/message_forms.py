"""Forms of messages and schemas that some providers reject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_empty(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message has an empty text, or nothing at all."""
    if message.get("role") != "assistant":
        return False
    return message.get("content") == "" or not (message.get("content") or message.get("tool_calls"))


def lacks_reasoning(message: Mapping[str, Any]) -> bool:
    """Whether a message with calls has no ``reasoning_content``: another model made the calls, or a client."""
    return bool(message.get("tool_calls")) and not message.get("reasoning_content")


def lacks_signature(message: Mapping[str, Any]) -> bool:
    """Whether the first call of a message has no state of its provider; parallel calls have one signature."""
    calls = message.get("tool_calls")
    return calls is not None and len(calls) > 0 and not calls[0].get("extra_content")


def lacks_properties(schema: object) -> bool:
    """Whether the schema, or one in it, describes an object without ``properties``."""
    if isinstance(schema, list):
        return any(map(lacks_properties, schema))
    if not isinstance(schema, dict):
        return False
    return (schema.get("type") == "object" and "properties" not in schema) or any(
        map(lacks_properties, schema.values())
    )
