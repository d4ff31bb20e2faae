"""Check what the code of a member yields: events whose values have the declared types, and text that can be stored.

The code is that of an operator or of a framework, and an event with other values would fail later, where nothing says
which member it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from proxy.events import (
    AgentSpeaking,
    ApprovalDecided,
    ApprovalRequested,
    ContextCompacted,
    Handoff,
    MemberTeamEvent,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    innermost,
)
from proxy.members.port import (
    HandOver,
    Incomplete,
    MemberEvent,
    ModelUsed,
    Reasoning,
    TeamEvent,
    Text,
    ToolBegan,
    ToolEnded,
    Unused,
)
from proxy.messages import Usage
from proxy.providers.sanitize import clean

_MAX_TOKENS = 2**53
"""JSON numbers up to this one are exact in all clients (RFC 8259, section 6)."""
_IN_TEAM = (
    AgentSpeaking | ApprovalDecided | ApprovalRequested | ContextCompacted | Handoff | ToolCompleted | ToolFailed
    | ToolStarted
)  # fmt: skip
"""Events of a team inside of a member."""


class InvalidMemberValue(ValueError):
    """A value is not an event, or has a member of another type; the message names types, and no values."""


def checked_event(event: object) -> MemberEvent:
    """Return the event with its text cleaned, a string as ``Text``.

    Raises:
        InvalidMemberValue: It is not an event.
    """
    match event:
        case str():
            return Text(_text(event, "text"))
        case Text(text=text):
            return Text(_text(text or "", "Text.text"))
        case Reasoning(text=text):
            return Reasoning(_text(text or "", "Reasoning.text"))
        case ToolBegan():
            return ToolBegan(
                _text(event.call_id, "ToolBegan.call_id"),
                _text(event.name, "ToolBegan.name"),
                _text(event.arguments, "ToolBegan.arguments"),
                _text(event.agent, "ToolBegan.agent"),
            )
        case ToolEnded():
            result = _text(event.result, "ToolEnded.result")
            return ToolEnded(_text(event.call_id, "ToolEnded.call_id"), result, bool(event.is_error))
        case HandOver():
            return _checked_handover(event)
        case ModelUsed():
            return _checked_use(event)
        case Unused(names=tuple() | list() as names) if all(isinstance(name, str) for name in names):
            return Unused(tuple(names))
        case Incomplete(reason="length" | "content_filter"):
            return event
        case TeamEvent():
            return TeamEvent(_checked_team_event(event.event))
        case _:
            raise InvalidMemberValue(type(event).__name__)


def checked_text(value: str) -> str:
    """Return text of a member that can be stored and sent: an exact ``str`` without halves of surrogate pairs."""
    # msgspec encodes no subclasses of ``str``, such as members of an Enum, whose ``str()`` can be another text.
    return clean("".join((value,)))


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidMemberValue(f"{name} is {type(value).__name__}")
    return checked_text(value)


def _checked_handover(event: HandOver) -> HandOver:
    to, reason = _text(event.to, "HandOver.to"), _text(event.reason or "", "HandOver.reason")
    if event.input is None:
        return HandOver(to, reason)
    if not isinstance(event.input, Mapping):
        raise InvalidMemberValue(f"HandOver.input is {type(event.input).__name__}")
    try:
        return HandOver(to, reason, msgspec.json.decode(msgspec.json.encode(dict(event.input))))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        raise InvalidMemberValue("HandOver.input is not JSON") from None


def _checked_use(event: ModelUsed) -> ModelUsed:
    if not isinstance(event.usage, Usage):
        raise InvalidMemberValue(f"ModelUsed.usage is {type(event.usage).__name__}")
    for name in Usage.__struct_fields__:
        tokens = getattr(event.usage, name)
        if type(tokens) is not int or not 0 <= tokens <= _MAX_TOKENS:
            raise InvalidMemberValue(f"ModelUsed.usage.{name} is not a number of tokens")
    cost = event.cost
    if cost is not None and not (type(cost) in (int, float) and math.isfinite(cost) and cost >= 0):
        raise InvalidMemberValue("ModelUsed.cost is not an amount")
    return ModelUsed(_text(event.model or "", "ModelUsed.model"), event.usage, cost)


def _checked_team_event(event: object) -> MemberTeamEvent:
    # The values of an event are those of its JSON form.
    try:
        found = msgspec.json.decode(msgspec.json.encode(event), type=MemberTeamEvent)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        raise InvalidMemberValue("TeamEvent.event is not an event of a team") from None
    if not isinstance(innermost(found), _IN_TEAM):
        raise InvalidMemberValue("TeamEvent.event is not an event of a team")
    return found
