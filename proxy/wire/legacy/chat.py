"""Encode a turn as the events of ``/chat/stream``, the response of ``/chat`` or the messages of ``/ws``."""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.errors import ProxyError
from proxy.events import (
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
    started_tools,
)
from proxy.wire.chat.answer_text import TextJoiner
from proxy.wire.chat.response_models import encode, usage_body
from proxy.wire.errors import error_response, failure_of
from proxy.wire.events.sse import one_line, pieces
from proxy.wire.legacy.ndjson import TextBuilder

EventBody = dict[str, Any]


class ChatEvents:
    """Converts each entry to an event of these endpoints, or to none."""

    def __init__(self) -> None:
        self._joints = TextJoiner()
        self._texts: list[str] = []
        self._calls: dict[str, EventBody] = {}
        self._ran_tools: list[str] = []

    def event_of(self, entry: Entry) -> EventBody | None:
        """Return the event of one entry with its ``event_type``; None if it has none."""
        event = entry.event
        match event:
            case TextDelta():
                return self._text(self._joints.join(event.text))
            case RefusalDelta():
                return self._text(event.text)
            case ToolStarted():
                self._ran_tools.append(event.name)
                call = {"id": event.call_id, "name": event.name, "arguments": arguments_of(event.arguments)}
                self._calls[event.call_id] = call
                return {"event_type": "tool_call_start", "tool_call": call}
            case ToolCompleted():
                return self._tool_ended("tool_call_complete", event.call_id, result=event.result)
            case ToolFailed():
                return self._tool_ended("tool_call_error", event.call_id, error=event.error)
            case ModelCalled() | Handoff():
                self._joints.pause()
            case Completed():
                return self._complete()
            case Failed():
                return failed(event)
            case Cancelled():
                if event.reason == "requested":
                    return self._complete()
                return failed(failure_of(event, ran=self._ran_tools))
            case DelegateEvent() | MemberTeamEvent():
                self._ran_tools += started_tools(event)
            case (
                Started()
                | ParametersIgnored()
                | ContextCompacted()
                | ReasoningDelta()
                | ClientToolCall()
                | ClientToolArguments()
                | ApprovalRequested()
                | ApprovalDecided()
                | AgentSpeaking()
            ):
                pass
        return None

    def short_events_of(self, entry: Entry) -> list[EventBody]:
        """Return the events of one entry, often none, with a long text in several.

        Only texts can be divided: the event with the whole answer, and results of tools, have any length.
        """
        event_body = self.event_of(entry)
        if event_body is None:
            return []
        texts = pieces(event_body["content"]) if "content" in event_body else ()
        return [{**event_body, "content": piece} for piece in texts] or [event_body]

    def _text(self, text: str) -> EventBody:
        self._texts.append(text)
        return {"event_type": "chat_chunk", "content": text}

    def _tool_ended(self, event_type: str, call_id: str, **how: str) -> EventBody:
        call = self._calls[call_id] = {**self._calls[call_id], **how}
        return {"event_type": event_type, "tool_call": call}

    def _complete(self) -> EventBody:
        return {"event_type": "chat_complete", "final_response": "".join(self._texts)}


class ChatEventEncoder:
    """Encodes the events as server-sent events."""

    def __init__(self) -> None:
        self._events = ChatEvents()

    def encode(self, entry: Entry) -> bytes:
        """Return the event of one entry; often none."""
        bodies = self._events.short_events_of(entry)
        return b"".join(b"data: %b\n\n" % one_line(encode(body)) for body in bodies)


class ChatBuilder:
    """Builds the response of ``/chat`` from the entries of a turn."""

    def __init__(self, conversation_id: str) -> None:
        self._conversation_id = conversation_id
        self._text = TextBuilder()
        self._calls: dict[str, EventBody] = {}
        self._events = ChatEvents()
        self._closing: EventBody = {}

    def add(self, entry: Entry) -> None:
        """Add the next entry."""
        self._text.add(entry)
        event_body = self._events.event_of(entry)
        if event_body is not None and "tool_call" in event_body:
            self._calls[event_body["tool_call"]["id"]] = event_body["tool_call"]
        if isinstance(entry.event, Completed | Cancelled):
            self._closing = {"agent": entry.event.agent, "usage": usage_body(entry.event.usage)}

    def clear(self) -> None:
        """Drop the text and the tool calls."""
        self._text.clear()
        self._events = ChatEvents()
        self._calls.clear()

    def answer(self) -> EventBody | Failed:
        """Return the response or the failure of the turn."""
        if self._text.failure is not None:
            return self._text.failure
        return {
            "response": self._text.text,
            "tool_calls": list(self._calls.values()),
            "conversation_id": self._conversation_id,
            **self._closing,
        }


class ChatSocketEvents:
    """Encodes the events as messages of the legacy WebSocket."""

    def __init__(self) -> None:
        self._events = ChatEvents()

    def messages(self, entry: Entry) -> list[str]:
        """Return the messages of one entry; often none."""
        return [socket_message(event_body) for event_body in self._events.short_events_of(entry)]


def socket_message(event_body: EventBody) -> str:
    """Return an event as a WebSocket message; the three tool events have the type ``tool_call``."""
    event_type = str(event_body["event_type"])
    if event_type.startswith("tool_call"):
        return encode({"type": "tool_call", "data": event_body}).decode()
    return encode(
        {"type": event_type, "data": {k: value for k, value in event_body.items() if k != "event_type"}}
    ).decode()


def failed(event: Failed) -> EventBody:
    """Return the event of a failed turn."""
    return {"event_type": "error", "error": event.message, "code": event.code}


def refused(error: ProxyError) -> EventBody:
    """Return the event of a rejected request."""
    problem = error_response(error)
    return {"event_type": "error", "error": problem.message, "code": problem.code}


def arguments_of(text: str) -> Any:
    """Return the arguments of a call as an object; invalid JSON, such as truncated arguments, stays text."""
    try:
        return msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        return text
