"""A turn as the events of ``/chat/stream``, the answer of ``/chat`` and the messages of ``/ws``."""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.errors import ProxyError
from proxy.events import (
    ApprovalDecided,
    ApprovalRequested,
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    Entry,
    Failed,
    Handoff,
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
from proxy.wire.chat.answer_text import TextJoiner
from proxy.wire.chat.response_models import encode, usage_body
from proxy.wire.errors import error_response, failure_of
from proxy.wire.events.sse import one_line
from proxy.wire.legacy.ndjson import TextBuilder

Told = dict[str, Any]


class ChatEvents:
    """Turns each entry into one of these events or nothing."""

    def __init__(self) -> None:
        self._joints = TextJoiner()
        self._said: list[str] = []
        self._calls: dict[str, Told] = {}

    def told(self, entry: Entry) -> Told | None:
        """Return the event of one entry, with its ``event_type``."""
        event = entry.event
        match event:
            case TextDelta():
                return self._text(self._joints.join(event.text))
            case RefusalDelta():
                return self._text(event.text)
            case ToolStarted():
                call = {"id": event.call_id, "name": event.name, "arguments": arguments_of(event.arguments)}
                self._calls[event.call_id] = call
                return {"event_type": "tool_call_start", "tool_call": call}
            case ToolCompleted():
                return self._ended("tool_call_complete", event.call_id, result=event.result)
            case ToolFailed():
                return self._ended("tool_call_error", event.call_id, error=event.error)
            case ModelCalled() | Handoff():
                self._joints.pause()
            case Completed():
                return self._complete()
            case Failed():
                return failed(event)
            case Cancelled():
                if event.reason == "requested":
                    return self._complete()
                return failed(failure_of(event, ran_tools=bool(self._calls)))
            case (
                Started()
                | ParametersIgnored()
                | ReasoningDelta()
                | ClientToolCall()
                | ClientToolArguments()
                | ApprovalRequested()
                | ApprovalDecided()
            ):
                pass
        return None

    def _text(self, text: str) -> Told:
        self._said.append(text)
        return {"event_type": "chat_chunk", "content": text}

    def _ended(self, event_type: str, call_id: str, **how: str) -> Told:
        call = self._calls[call_id] = {**self._calls[call_id], **how}
        return {"event_type": event_type, "tool_call": call}

    def _complete(self) -> Told:
        return {"event_type": "chat_complete", "final_response": "".join(self._said)}


class ChatEventEncoder:
    """These events as server-sent ones."""

    def __init__(self) -> None:
        self._events = ChatEvents()

    def encode(self, entry: Entry) -> bytes:
        """Return the event of one entry; often none."""
        told = self._events.told(entry)
        return b"" if told is None else b"data: %b\n\n" % one_line(encode(told))


class ChatBuilder:
    """Gathers a turn into the answer of ``/chat``."""

    def __init__(self, conversation_id: str) -> None:
        self._conversation_id = conversation_id
        self._text = TextBuilder()
        self._calls: dict[str, Told] = {}
        self._events = ChatEvents()
        self._closing: Told = {}

    def take(self, entry: Entry) -> None:
        """Take the next entry."""
        self._text.take(entry)
        told = self._events.told(entry)
        if told is not None and "tool_call" in told:
            self._calls[told["tool_call"]["id"]] = told["tool_call"]
        if isinstance(entry.event, Completed | Cancelled):
            self._closing = {"agent": entry.event.agent, "usage": usage_body(entry.event.usage)}

    def answer(self) -> Told | Failed:
        """Return the answer, or how the turn failed."""
        if self._text.failure is not None:
            return self._text.failure
        return {
            "response": self._text.text,
            "tool_calls": list(self._calls.values()),
            "conversation_id": self._conversation_id,
            **self._closing,
        }


class ChatSocketEvents:
    """These events as messages of the older WebSocket."""

    def __init__(self) -> None:
        self._events = ChatEvents()

    def message(self, entry: Entry) -> str | None:
        """Return the message of one entry, or None."""
        told = self._events.told(entry)
        return None if told is None else socket_message(told)


def socket_message(told: Told) -> str:
    """Return an event as a message: the three of a tool are of one type there, and tell which in ``data``."""
    event_type = str(told["event_type"])
    if event_type.startswith("tool_call"):
        return encode({"type": "tool_call", "data": told}).decode()
    return encode(
        {"type": event_type, "data": {k: value for k, value in told.items() if k != "event_type"}}
    ).decode()


def failed(event: Failed) -> Told:
    """Return the event of a turn that failed: a sentence, and the code that never changes."""
    return {"event_type": "error", "error": event.message, "code": event.code}


def refused(error: ProxyError) -> Told:
    """Return the event of a request that was refused."""
    problem = error_response(error)
    return {"event_type": "error", "error": problem.message, "code": problem.code}


def arguments_of(text: str) -> Any:
    """Return a call's arguments as an object; those that are none (cut short, for one) stay text."""
    try:
        return msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        return text
