"""What several adapters share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from proxy.members.port import Answer, HandOver, MemberContext, Unused
from proxy.messages import Item, Parameters
from proxy.tools.handoff_tools import handoff_reason

NOT_EXECUTED = "not executed: no result was given for this call"
"""The result of a call that frameworks require for each call of the history."""


def unused_parameters(parameters: Parameters, known: Collection[str]) -> Unused | None:
    """Return the parameters of the request that a framework cannot be given; None if there are none."""
    unused = tuple(name for name in msgspec.to_builtins(parameters) if name not in known)
    return Unused(unused) if unused else None


def hand_over_to(target: str, arguments: str) -> HandOver:
    """Return the handover of a call of a handoff tool; ``arguments`` is JSON text."""
    try:
        data = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, ValueError):
        data = None
    return HandOver(target, handoff_reason(arguments), data if isinstance(data, dict) else None)


def items_since(context: MemberContext) -> Sequence[Item]:
    """Return the items behind the last one with a state of the member, for frameworks that keep the conversation."""
    items = context.items
    newest = max((at for at, item in enumerate(items) if context.state_of(item) is not None), default=-1)
    return items[newest + 1 :]


def answered_calls(
    calls: Sequence[tuple[str, str, Mapping[str, Any]]], answers: Sequence[Answer]
) -> dict[str, str]:
    """Return the results of calls (id, name, arguments) by their id; each answer belongs to one call."""
    left = list(answers)
    found: dict[str, str] = {}
    for call_id, name, arguments in calls:
        for at, answer in enumerate(left):
            if answer.name == name and answer.arguments == arguments:
                found[call_id] = answer.result
                del left[at]
                break
    return found
