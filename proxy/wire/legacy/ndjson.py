"""Encode a turn as newline-delimited JSON, for legacy clients of ``/chat/completions``.

Text is sent as deltas; tool calls and handoffs as status sentences if the format supports them. A failed turn ends with
a line that has the usual ``error`` object and a ``content`` that the client accepts but does not add to its message.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

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
from proxy.wire.chat.response_models import ErrorBody, encode
from proxy.wire.errors import failure_of, stream_error
from proxy.wire.events.sse import one_line, pieces


class LineEncoder:
    """Encodes each entry as one line or none. With ``is_typed``, ``content`` is an object with a ``type``."""

    def __init__(self, *, is_typed: bool) -> None:
        self._is_typed = is_typed
        self._joints = TextJoiner()
        self._ran_tools: list[str] = []

    def encode(self, entry: Entry) -> bytes:
        """Return the line of one entry; often empty."""
        event = entry.event
        match event:
            case TextDelta():
                return self._text(self._joints.join(event.text))
            case RefusalDelta():
                return self._text(event.text)
            case ToolStarted():
                self._ran_tools.append(event.name)
                return self._status(f"Executing {event.name}")
            case Handoff():
                self._joints.pause()
                return self._status(f"You are now talking to {event.target}")
            case ModelCalled():
                self._joints.pause()
            case Failed():
                return self._failed(event)
            case Cancelled():
                if event.reason != "requested":
                    return self._failed(failure_of(event, ran=self._ran_tools))
            case DelegateEvent() | MemberTeamEvent():
                self._ran_tools += started_tools(event)
            case (
                Started()
                | ParametersIgnored()
                | ContextCompacted()
                | ReasoningDelta()
                | ToolCompleted()
                | ToolFailed()
                | ClientToolCall()
                | ClientToolArguments()
                | ApprovalRequested()
                | ApprovalDecided()
                | AgentSpeaking()
                | Completed()
            ):
                pass
        return b""

    def _text(self, text: str) -> bytes:
        return b"".join(
            _line({"content": {"type": "string", "message": piece} if self._is_typed else piece})
            for piece in pieces(text)
        )

    def _status(self, sentence: str) -> bytes:
        return _line({"content": {"type": "function", "message": sentence}}) if self._is_typed else b""

    def _failed(self, failed: Failed) -> bytes:
        content = {"type": "error", "message": failed.message} if self._is_typed else ""
        return _line({"content": content, "error": error_body(failed)})


class WholeText(Struct, frozen=True):
    """A complete response in one line."""

    content: str


class TextBuilder:
    """Builds a response in one line from the entries of a turn."""

    def __init__(self) -> None:
        self._joints = TextJoiner()
        self._pieces: list[str] = []
        self._ran_tools: list[str] = []
        self._failed: Failed | None = None

    def add(self, entry: Entry) -> None:
        """Add the next entry."""
        event = entry.event
        if isinstance(event, TextDelta):
            self._pieces.append(self._joints.join(event.text))
        elif isinstance(event, RefusalDelta):
            self._pieces.append(event.text)
        elif isinstance(event, ModelCalled | Handoff):
            self._joints.pause()
        elif isinstance(event, ToolStarted | DelegateEvent | MemberTeamEvent):
            self._ran_tools += started_tools(event)
        elif isinstance(event, Failed):
            self._failed = event
        elif isinstance(event, Cancelled) and event.reason != "requested":
            self._failed = failure_of(event, ran=self._ran_tools)

    def clear(self) -> None:
        """Drop the text."""
        self._pieces.clear()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def failure(self) -> Failed | None:
        """The failure of a failed turn."""
        return self._failed

    def answer(self) -> WholeText | Failed:
        """Return the response or the failure of the turn."""
        return self._failed or WholeText(self.text)


def error_body(failed: Failed) -> ErrorBody:
    """Return the ``error`` object of a stream."""
    problem = stream_error(failed)
    return ErrorBody(problem.message, problem.type, problem.param, problem.code)


def _line(body: dict[str, Any]) -> bytes:
    return one_line(encode(body)) + b"\n"
