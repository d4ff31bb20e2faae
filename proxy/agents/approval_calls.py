"""Asking a person before a tool runs: the question, and what the model is told meanwhile.

The question is the answer of its turn, so that every client shows it. It holds a short reference that no other
question has, so that a list of messages that shows it leads to this very turn, and to no other that looks alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from proxy.messages import FunctionTool
from proxy.turns.contract import ApprovalRequest

WAITING = (
    "not executed yet: the user has to approve this call and is being asked now. It is run only if the user says yes; "
    "anything else means no."
)
"""The result of a call while a person is asked, and for good if they never say yes."""
NOT_KEPT = "nothing of this conversation is kept"
HAS_FORM = "the answer has to be JSON"
MAX_SHOWN = 1000
"""Characters of one call in a question."""


def not_asked(reason: str) -> str:
    """Return the result of a call about which nobody can be asked."""
    return f"error: not executed: this tool needs the user's approval, which cannot be asked for here, because {reason}"


def told_to_the_model(spec: FunctionTool) -> FunctionTool:
    """Return the tool as the model sees it: else many a model asks for itself, and the person is asked twice."""
    sentence = "The system asks the user to approve each call before it runs; do not ask for that yourself."
    description = f"{spec.description.rstrip()}\n\n{sentence}" if spec.description else sentence
    return msgspec.structs.replace(spec, description=description)


def question(requests: Sequence[ApprovalRequest]) -> str:
    """Return what a person is asked; a plain yes or no answers it."""
    reference = requests[0].id.partition("_")[2][:6]
    if len(requests) == 1:
        return f"Approval {reference}: shall I run {_shown(requests[0])}? Reply yes or no."
    lines = "\n".join(f"- {_shown(request)}" for request in requests)
    return (
        f"Approval {reference}: shall I run these {len(requests)} calls?\n\n{lines}\n\n"
        "Reply yes to run all of them, or no to run none."
    )


def _shown(request: ApprovalRequest) -> str:
    """Return the call as one line that cannot be taken for anything else, neither as Markdown nor by odd characters."""
    try:
        arguments = json.loads(request.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if isinstance(arguments, dict):
        pairs = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
        text = f"{request.tool}({', '.join(pairs)})"
    else:
        text = f"{request.tool}({request.arguments})"
    line = "".join(map(_visible, text[: MAX_SHOWN + 1]))
    if len(text) > MAX_SHOWN:
        return f"`{line[:MAX_SHOWN]}…` (and {len(text) - MAX_SHOWN:,} more characters)"
    return f"`{line}`"


def _visible(character: str) -> str:
    if character == "`":
        return "'"
    return character if character.isprintable() else f"\\u{ord(character):04x}"
