"""Handoff tools, which a model calls to hand over to another agent: definition, reason and tool result.

They are not executed: the agent loop ends with the handoff.
"""

from __future__ import annotations

import json
from typing import Any

from proxy.messages import FunctionTool

_MAX_REASON = 300


def handoff_tool_spec(
    name: str, target: str, when: str = "", schema: dict[str, Any] | None = None
) -> FunctionTool:
    """Return the tool ``name`` that hands over to ``target``; ``when`` describes when to use it.

    ``schema`` is the JSON schema of structured handover data, instead of a reason.
    """
    sentence = f"Hand the conversation over to {target}."
    description = f"{sentence} {when.strip()}" if when.strip() else sentence
    if schema is not None:
        return FunctionTool(name, description, schema)
    return FunctionTool(
        name,
        description,
        {
            "type": "object",
            "properties": {
                "reason": {
                    "type": "string",
                    "description": f"What {target} needs to know: what the user wants and what is already done.",
                }
            },
            "additionalProperties": False,
        },
    )


def handoff_reason(arguments_json: str) -> str:
    """Return the reason in the arguments of a handoff call, as one line of at most 300 characters.

    A handoff needs no arguments: invalid arguments do not prevent it and give ``""``.
    """
    try:
        arguments = json.loads(arguments_json)
    except (ValueError, RecursionError):
        return ""
    reason = arguments.get("reason") if isinstance(arguments, dict) else None
    if not isinstance(reason, str):
        return ""
    line = " ".join(reason.encode(errors="replace").decode().replace("\x00", " ").split())
    return line if len(line) <= _MAX_REASON else f"{line[: _MAX_REASON - 1]}…"


def handoff_result(target: str, data: str = "") -> str:
    """Return the tool result that follows the handoff call when ``target`` becomes the active agent.

    ``target`` reads it first. After a result such as "transferred", models announce the transfer to the user, so the
    text states the expected behaviour.
    """
    return (
        f"You are {target}, now the active agent. Follow your own instructions and answer the user's last "
        "message yourself. Do not mention a transfer." + (f"\n\nHandover data: {data}" if data else "")
    )
