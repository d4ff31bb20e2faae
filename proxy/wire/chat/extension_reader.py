"""Read the objects of the handoff extension (``extension_objects``) that another handoff-proxy sends with its answer.

They come over the network: values of other types are dropped, and text is truncated as in the events of this server.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from proxy.events import (
    AgentSpeaking,
    ApprovalDecided,
    ApprovalRequested,
    ContextCompacted,
    DelegateEvent,
    Event,
    Handoff,
    MemberTeamEvent,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.wire.chat.extension_objects import ExtensionEvent

_MAX_TEXT = 1000
_MAX_NAME = 128
_MAX_DEPTH = 8
"""Delegates inside of each other."""
_SILENT = "agent.speaking"


def read_extension_event(body: dict[str, Any]) -> MemberTeamEvent | None:
    """Return the event that the ``handoff`` object of a chunk reports; None for others, as in the last chunk."""
    try:
        shown = msgspec.convert(body, ExtensionEvent)
    except msgspec.ValidationError:
        return None
    event = _event(shown, 0)
    if event is None:
        return None
    progress = None if isinstance(shown.progress, UnsetType) else shown.progress
    if progress is not None and not 0 <= progress <= 100:
        progress = None
    return MemberTeamEvent(_name(shown.agent), event, progress)


def has_line(body: dict[str, Any]) -> bool:
    """Whether the event of the object is also a line of ``reasoning_content`` in the same chunk."""
    while isinstance(inner := body.get("event"), dict):
        body = inner
    return body.get("type") != _SILENT


def _event(shown: ExtensionEvent, depth: int) -> Event | None:
    call_id, name = _name(shown.call_id), _name(shown.name)
    seconds = shown.seconds if isinstance(shown.seconds, float) else 0.0
    match shown.type:
        case "agent.speaking":
            return AgentSpeaking(_name(shown.agent))
        case "handoff":
            return Handoff(_name(shown.source), _name(shown.target), _text(shown.reason))
        case "tool.started":
            return ToolStarted(call_id, name, _text(shown.arguments), _name(shown.agent))
        case "tool.completed":
            return ToolCompleted(call_id, name, _text(shown.result), seconds)
        case "tool.failed":
            return ToolFailed(call_id, name, _text(shown.error), seconds)
        case "approval.requested":
            return ApprovalRequested(_name(shown.approval_id), call_id, name, _text(shown.arguments))
        case "approval.decided":
            if isinstance(shown.decision, UnsetType) or isinstance(shown.by, UnsetType):
                return None
            return ApprovalDecided(_name(shown.approval_id), call_id, name, shown.decision, shown.by)
        case "context.compacted":
            if isinstance(shown.method, UnsetType):
                return None
            before, after = (
                0 if size is UNSET else size for size in (shown.tokens_before, shown.tokens_after)
            )
            return ContextCompacted(_name(shown.agent), shown.method, before, after, seconds)
        case "delegate.event" | "member.event":
            if isinstance(shown.event, UnsetType) or depth == _MAX_DEPTH:
                return None
            inner = _event(shown.event, depth + 1)
            agent = _name(shown.event.agent)
            if inner is None:
                return None
            return DelegateEvent(call_id, agent, inner) if call_id else MemberTeamEvent(agent, inner)


def _name(text: str | UnsetType) -> str:
    return "" if isinstance(text, UnsetType) else text[:_MAX_NAME]


def _text(text: str | UnsetType) -> str:
    return "" if isinstance(text, UnsetType) else text[:_MAX_TEXT]
