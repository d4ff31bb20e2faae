"""Delegates: the tools by which an agent gives the floor to another. They never run; here are their words."""

from __future__ import annotations

import json

from proxy.messages import FunctionTool

_MAX_REASON = 300


def delegate_spec(name: str, target: str, when: str = "") -> FunctionTool:
    """Return the tool ``name`` that hands over to ``target``; ``when`` tells the model when to use it."""
    sentence = f"Hand the conversation over to {target}."
    description = f"{sentence} {when.strip()}" if when.strip() else sentence
    return FunctionTool(
        name,
        description,
        {
            "type": "object",
            "properties": {
                "reason": {
                    "type": "string",
                    "description": f"What {target} needs to know: what is wanted, and what is done so far.",
                }
            },
            "additionalProperties": False,
        },
    )


def handoff_reason(arguments_json: str) -> str:
    """Return the reason that a delegate call gives, as one line of at most 300 characters.

    A handoff needs no arguments, so bad ones do not stop it: they give ``""``.
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


def handoff_result(target: str) -> str:
    """Return the tool result that stands behind the delegate call when ``target`` takes the floor.

    The new agent is its first reader. A mere "transferred" makes models tell the user about transfers; what
    is now expected has to be said.
    """
    return (
        f"You are {target} now and have the floor. Follow your own instructions and answer the user's last "
        "message yourself. Say nothing about a transfer."
    )
