"""Encode all events of a turn as JSON frames, the format of the event feed and the WebSocket.

A frame::

    {"position": 7, "part": 0, "type": "tool.completed", "time": 1795458009.123, "turn_id": "chatcmpl-…",
     "agent": "sales", "data": {"call_id": "call_…", "name": "execute_order", "result": "…", "seconds": 0.012}}

``position`` counts the events of the turn from 1; ``part`` counts the frames of an event from 0. ``time`` is in seconds
since the epoch. ``agent`` is the active agent, or the agent of a team inside of it. ``docs/events.md`` documents types
and data; types and keys can be added, but not changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from proxy.errors import InvalidRequest, ProxyError
from proxy.events import (
    TAKEOVER_POSITIONS,
    AgentSpeaking,
    ApprovalDecided,
    ApprovalRequested,
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    ContextCompacted,
    DelegateEvent,
    Entry,
    Event,
    Failed,
    Handoff,
    MemberTeamEvent,
    ModelCalled,
    ParametersIgnored,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import Usage
from proxy.wire.chat.answer_text import TextJoiner
from proxy.wire.chat.response_models import ErrorBody, encode, usage_body
from proxy.wire.errors import error_response
from proxy.wire.events import sse
from proxy.wire.events.takeover import CLOSING_POSITION
from proxy.wire.turn_summary import StepProgress, rounded_cost

FrameType = Literal[
    "turn.started",
    "turn.resumed",
    "agent.speaking",
    "reasoning.delta",
    "text.delta",
    "refusal.delta",
    "tool.started",
    "tool.completed",
    "tool.failed",
    "handoff",
    "client_tool.requested",
    "client_tool.arguments",
    "approval.requested",
    "approval.decided",
    "context.compacted",
    "delegate.event",
    "member.event",
    "usage",
    "turn.completed",
    "turn.failed",
    "turn.cancelled",
]
TYPES: Collection[str] = frozenset(get_args(FrameType))
DETAILS: Mapping[str, Collection[str]] = {
    "tool.started": ("arguments",),
    "tool.completed": ("result",),
    "tool.failed": ("error",),
    "handoff": ("reason",),
    "approval.requested": ("arguments",),
}
"""By frame type, the keys with content of agents and tools that is not part of the message."""
REASONING = "reasoning.delta"
BEHIND: sse.Position = (10**12, 0)
"""A position after all frames of a turn."""


class FeedFrame(Struct, frozen=True):
    """One frame of the feed."""

    position: int
    part: int
    type: FrameType
    time: float
    turn_id: str
    agent: str
    data: dict[str, Any]


class Feed:
    """Encodes the entries of a turn as frames. It needs every entry from the first.

    ``hides_details`` omits ``DETAILS`` and reasoning (``PROXY_HANDOFF_DETAILS=false``).
    """

    def __init__(self, turn_id: str, *, hides_details: bool = False) -> None:
        self._turn_id = turn_id
        self._hides_details = hides_details
        self._agent = ""
        self._reported_agent = ""
        self._joints = TextJoiner()
        self._progress = StepProgress()
        self._delegates: dict[str, Feed] = {}
        """By the call that started the delegate."""
        self._member_team: Feed | None = None
        self._callers: dict[str, str] = {}
        """The agents that called the running tools."""
        self._takeovers = 0

    def frames(self, entry: Entry) -> list[FeedFrame]:
        """Return the frames of one entry; empty only for hidden events."""
        caller = self._caller(entry.event)
        frames = [
            FeedFrame(
                entry.position, part, kind, round(entry.time, 3), self._turn_id, caller or self._agent, data
            )
            for part, (kind, data) in enumerate(chain(self._takeover(entry), self._frames_of(entry)))
        ]
        return (
            list(map(_without_details, filter(_is_not_reasoning, frames))) if self._hides_details else frames
        )

    def _caller(self, event: Event) -> str | None:
        """Return the agent that called the tool that an event is about; None for other events."""
        # Not a ``match``: nearly all events are text, and a pattern that does not match takes longer than a call.
        if type(event) is ToolStarted:
            self._callers[event.call_id] = event.agent
            return event.agent
        if type(event) is ToolCompleted or type(event) is ToolFailed:
            return self._callers.pop(event.call_id, None)
        return None

    def _takeover(self, entry: Entry) -> Iterator[tuple[FrameType, dict[str, Any]]]:
        """Yield a frame for the first entry after another worker has taken over the turn."""
        takeovers, place = divmod(entry.position, TAKEOVER_POSITIONS)
        if self._takeovers < takeovers and entry.position < CLOSING_POSITION:
            # A reader can have later events of the first worker, which the turn does not have any more.
            after = place - 1 + TAKEOVER_POSITIONS * self._takeovers
            self._takeovers = takeovers
            yield "turn.resumed", {"after": after}

    def _frames_of(self, entry: Entry) -> Iterator[tuple[FrameType, dict[str, Any]]]:
        event = entry.event
        match event:
            case TextDelta():
                yield from self._agent_speaking()
                yield "text.delta", {"text": self._joints.join(event.text)}
            case ReasoningDelta():
                yield from self._agent_speaking()
                yield "reasoning.delta", {"text": event.text}
            case RefusalDelta():
                yield from self._agent_speaking()
                yield "refusal.delta", {"text": event.text}
            case Started():
                self._agent = event.agent
                self._progress = StepProgress(event.steps)
                yield "turn.started", self._progress_data()
            case ToolStarted():
                yield "tool.started", _named(event, arguments=event.arguments)
            case ToolCompleted():
                yield "tool.completed", _named(event, result=event.result, seconds=_seconds(event.seconds))
            case ToolFailed():
                yield "tool.failed", _named(event, error=event.error, seconds=_seconds(event.seconds))
            case Handoff():
                self._joints.pause()
                self._progress.add_handoff(event.source)
                data = {"from": event.source, "to": event.target, "reason": event.reason}
                yield "handoff", {**data, **self._progress_data()}
                self._agent = event.target
            case ClientToolCall():
                yield "client_tool.requested", {"index": event.index, **_named(event)}
            case ClientToolArguments():
                yield "client_tool.arguments", {"index": event.index, "arguments": event.arguments}
            case ApprovalRequested():
                data = {"approval_id": event.approval_id, **_named(event, arguments=event.arguments)}
                yield "approval.requested", data
            case ApprovalDecided():
                data = {"approval_id": event.approval_id, **_named(event)}
                yield "approval.decided", {**data, "decision": event.decision, "by": event.by}
            case ParametersIgnored():
                pass
            case DelegateEvent():
                yield from self._delegate_frames(event, entry)
            case MemberTeamEvent():
                yield from self._member_team_frames(event, entry)
            case AgentSpeaking():
                yield "agent.speaking", {}
            case ContextCompacted():
                yield "context.compacted", _compaction_data(event)
            case ModelCalled():
                self._joints.pause()
                usage = usage_body(event.usage) if event.usage else None
                cost = {} if event.cost is None else {"cost": rounded_cost(event.cost)}
                yield (
                    "usage",
                    {"model": event.model, "usage": usage, "seconds": _seconds(event.seconds), **cost},
                )
            case Completed():
                self._progress.complete()
                data = {"finish_reason": event.finish_reason, "usage": _total(event.usage)}
                yield "turn.completed", {**data, **self._progress_data()}
            case Failed():
                yield (
                    "turn.failed",
                    {
                        "code": event.code,
                        "message": event.message,
                        "is_repeatable": event.is_repeatable,
                        "usage": _total(event.usage),
                    },
                )
            case Cancelled():
                yield "turn.cancelled", {"reason": event.reason, "usage": _total(event.usage)}

    def _delegate_frames(
        self, event: DelegateEvent, entry: Entry
    ) -> Iterator[tuple[FrameType, dict[str, Any]]]:
        """Yield the frames of a delegate's event, each as the data of one frame."""
        if event.call_id not in self._delegates:
            self._delegates[event.call_id] = Feed(self._turn_id, hides_details=self._hides_details)
        inner = msgspec.structs.replace(entry, event=event.event)
        for frame in self._delegates[event.call_id].frames(inner):
            body = {"type": frame.type, "agent": event.agent, "data": frame.data}
            yield "delegate.event", {"call_id": event.call_id, "event": body}

    def _member_team_frames(
        self, event: MemberTeamEvent, entry: Entry
    ) -> Iterator[tuple[FrameType, dict[str, Any]]]:
        """Yield the frames of an event of a team inside of the active agent, each as the data of one frame."""
        if self._member_team is None:
            self._member_team = Feed(self._turn_id, hides_details=self._hides_details)
        inner = msgspec.structs.replace(entry, event=event.event)
        for frame in self._member_team.frames(inner):
            data = frame.data if event.progress is None else {**frame.data, "progress": event.progress}
            yield "member.event", {"event": {"type": frame.type, "agent": event.agent, "data": data}}

    def _agent_speaking(self) -> Iterator[tuple[FrameType, dict[str, Any]]]:
        if self._reported_agent != self._agent:
            self._reported_agent = self._agent
            yield "agent.speaking", self._progress_data()

    def _progress_data(self) -> dict[str, Any]:
        percent = self._progress.percent
        return {} if percent is None else {"progress": percent}


class FeedEncoder:
    """Encodes the feed as server-sent events without a name, which ``EventSource`` passes to ``onmessage``.

    ``types`` filters the frames (empty for all); ``after`` is the last position that the reader has seen. ``prefix``
    is prepended to event ids in a feed of several turns.
    """

    def __init__(
        self, feed: Feed, *, types: Collection[str] = (), after: sse.Position = sse.START, prefix: str = ""
    ) -> None:
        self._feed = feed
        self._types = types
        self._after = after
        self._prefix = prefix.encode()

    def encode(self, entry: Entry) -> bytes:
        """Return the requested frames of one entry."""
        return b"".join(
            b"id: %b%d.%d\ndata: %b\n\n"
            % (self._prefix, frame.position, frame.part, sse.one_line(encode(frame)))
            for frame in self._feed.frames(entry)
            if (not self._types or frame.type in self._types) and (frame.position, frame.part) > self._after
        )


def error_frame(error: ProxyError) -> bytes:
    """Return the event of type ``error`` without an id, after which the reader must not reconnect."""
    problem = error_response(error)
    body = ErrorBody(problem.message, problem.type, problem.param, problem.code)
    return sse.named("error", encode({"type": "error", "status": problem.status, "error": body}))


def parse_conversation_position(value: str, *, param: str) -> tuple[str, sse.Position]:
    """Return turn id and position of an event id of a conversation feed; a turn id alone means after its last frame.

    Raises:
        InvalidRequest: The value is not an event id.
    """
    turn_id, _, place = value.partition(".")
    if not turn_id:
        raise InvalidRequest(
            f"Invalid '{param}': expected the id of a frame, as in 'chatcmpl-….12.0', or of a turn.",
            param=param,
            code="invalid_value",
        )
    return turn_id, sse.position(place, param=param) if place else BEHIND


def feed_types(value: str) -> frozenset[str]:
    """Return the frame types in a comma-separated parameter.

    Raises:
        InvalidRequest: A type is unknown.
    """
    named = frozenset(name.strip() for name in value.split(",") if name.strip())
    for name in sorted(named - frozenset(TYPES)):
        raise InvalidRequest(
            f"Invalid value: '{name[:64]}'. Supported values are: {', '.join(get_args(FrameType))}.",
            param="types",
            code="invalid_value",
        )
    return named


def _is_not_reasoning(frame: FeedFrame) -> bool:
    return frame.type != REASONING


def _without_details(frame: FeedFrame) -> FeedFrame:
    hidden = DETAILS.get(frame.type)
    if hidden is None:
        return frame
    data = {name: value for name, value in frame.data.items() if name not in hidden}
    return msgspec.structs.replace(frame, data=data)


def _named(
    event: ToolStarted | ToolCompleted | ToolFailed | ClientToolCall | ApprovalRequested | ApprovalDecided,
    **more: Any,
) -> dict[str, Any]:
    return {"call_id": event.call_id, "name": event.name, **more}


def _compaction_data(event: ContextCompacted) -> dict[str, Any]:
    used = [call.usage for call in event.calls if call.usage is not None]
    costs = [call.cost for call in event.calls]
    data: dict[str, Any] = {
        "method": event.method,
        "tokens_before": event.tokens_before,
        "tokens_after": event.tokens_after,
        "seconds": _seconds(event.seconds),
    }
    if event.calls:
        data["model"] = event.calls[-1].model
        data["usage"] = _total(sum(used, Usage())) if used else None
        if None not in costs:
            data["cost"] = rounded_cost(sum(cost or 0 for cost in costs))
    return data


def _seconds(seconds: float) -> float:
    return round(seconds, 3)


def _total(usage: Usage) -> Any:
    return usage_body(usage)
