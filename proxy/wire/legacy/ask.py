"""Encode a turn as the events of ``/ask-stream``: active agent, responses and progress.

``progress`` is computed by ``wire.turn_summary``. Clients require a value, so for a team without steps every agent is a
step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from proxy.errors import CompletionNotFound, InvalidRequest
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
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.response_models import encode
from proxy.wire.errors import failure_of
from proxy.wire.events.sse import one_line
from proxy.wire.legacy.chat import arguments_of
from proxy.wire.turn_summary import StepProgress

_NUMBER = re.compile(r"\d{1,6}", re.ASCII)


class QuestionOptions(AnswerOptions, frozen=True, kw_only=True, omit_defaults=True):
    """Options of the encoder, stored with the turn so that its stream can be resumed."""

    question: str = ""
    agents: tuple[str, ...] = ()
    """All agents of the team."""


_decode_options = msgspec.json.Decoder(QuestionOptions).decode


def decode_question_options(turn_id: str, options: bytes) -> QuestionOptions:
    """Decode the stored options of a turn.

    Raises:
        CompletionNotFound: The turn was begun at another endpoint.
    """
    try:
        known = _decode_options(options)
    except msgspec.DecodeError:
        known = None
    if known is None or not known.question:
        raise CompletionNotFound(turn_id)
    return known


class QuestionEncoder:
    """Encodes entries as server-sent events.

    Each event has the id ``turn:number``. Clients that know server-sent events get it in an ``id`` line too
    (``has_id_lines``); readers of ``data`` lines alone would take that line for data.
    """

    def __init__(
        self,
        turn_id: str,
        question: str,
        *,
        agents: Sequence[str],
        after: int = 0,
        has_id_lines: bool = False,
    ) -> None:
        """``agents`` are all agents of the team; ``after`` is the number of the last event that the client has."""
        self._turn_id = turn_id
        self._question = question
        self._agents = agents
        self._after = after
        self._has_id_lines = has_id_lines
        self._number = 0
        self._progress = StepProgress(agents)
        self._agent = ""
        self._texts: list[str] = []
        self._final = ""
        self._unsent: str | None = None
        """Text of the last model response: whether it completed a step is known at the next event."""
        self._messages = 1
        self._ran_tools: list[str] = []
        self._time = 0.0

    def encode(self, entry: Entry) -> bytes:
        """Return the events of one entry; often none."""
        self._time = entry.time
        return b"".join(self._event(*parts) for parts in self._events(entry))

    def _events(self, entry: Entry) -> Iterator[tuple[str, str, dict[str, Any]]]:
        event = entry.event
        if isinstance(event, Handoff):
            self._progress.add_handoff(event.source)
        elif isinstance(event, Completed):
            self._progress.add_handoff(event.agent)
        if self._unsent is not None and not isinstance(event, ParametersIgnored):
            text, self._unsent = self._unsent, None
            yield "agent_response", text, {"progress": self._progress.percent}
        match event:
            case Started():
                self._agent = event.agent
                self._progress = StepProgress(event.steps or self._agents)
                started = {"question": self._question, "progress": self._progress.percent}
                yield "started", "The team has started to work on the question.", started
                yield self._agent_thinking()
            case TextDelta() | RefusalDelta():
                self._texts.append(event.text)
            case ParametersIgnored() | ContextCompacted() | AgentSpeaking():
                pass
            case DelegateEvent() | MemberTeamEvent():
                self._ran_tools += started_tools(event)
            case ModelCalled():
                said, self._texts = "".join(self._texts).strip(), []
                self._messages += 1
                if said:
                    self._final = self._unsent = said
            case ToolStarted():
                self._ran_tools.append(event.name)
                parts = {"tool_name": event.name, "parameters": arguments_of(event.arguments)}
                yield (
                    "tool_execution",
                    f"Executing {event.name}",
                    {**parts, "progress": self._progress.percent},
                )
            case ToolCompleted() | ToolFailed():
                self._messages += 1
            case Handoff():
                self._agent = event.target
                yield self._agent_thinking()
            case Completed():
                yield self._completed(event.finish_reason)
            case Failed():
                yield self._failed(event)
            case Cancelled():
                if event.reason == "requested":
                    yield self._completed("stop")
                else:
                    yield self._failed(failure_of(event, ran=self._ran_tools))
            case (
                ReasoningDelta()
                | ClientToolCall()
                | ClientToolArguments()
                | ApprovalRequested()
                | ApprovalDecided()
            ):
                pass

    def _agent_thinking(self) -> tuple[str, str, dict[str, Any]]:
        return "agent_thinking", f"{self._agent} is working.", {"progress": self._progress.percent}

    def _completed(self, finish_reason: str) -> tuple[str, str, dict[str, Any]]:
        self._progress.complete()
        final = "".join(self._texts).strip() or self._final
        data = {
            "final_response": final,
            "total_messages": self._messages,
            "response_length": len(final),
            "finish_reason": finish_reason,
            "progress": self._progress.percent,
        }
        return "completed", "The question is answered.", data

    def _failed(self, event: Failed) -> tuple[str, str, dict[str, Any]]:
        data = {"error": event.message, "code": event.code, "progress": self._progress.percent}
        return "error", event.message, data

    def _event(self, event_type: str, message: str, data: dict[str, Any]) -> bytes:
        self._number += 1
        if self._number <= self._after:
            return b""
        event_id = f"{self._turn_id}:{self._number}"
        event = {
            "event_type": event_type,
            "timestamp": datetime.fromtimestamp(self._time, UTC).isoformat(timespec="milliseconds"),
            "agent_name": self._agent,
            "message": message,
            "data": data,
        }
        id_line = b"id: %b\n" % event_id.encode() if self._has_id_lines else b""
        return b"%bdata: %b\n\n" % (id_line, one_line(encode({"event": event, "id": event_id})))


def last_event(value: str) -> tuple[str, int]:
    """Parse the id of the last event that a client has; return the turn and the number of the event.

    Raises:
        InvalidRequest: The value is not an event id.
    """
    turn_id, _, number = value.rpartition(":")
    if not turn_id or not _NUMBER.fullmatch(number):
        raise _invalid("Last-Event-ID", "the id of an event, as in 'chatcmpl-…:12'")
    return turn_id, int(number)


def last_number(turn_id: str, *, last_event_id: str, starting_after: str) -> int:
    """Return the number of the last event of a turn that a client has: from the header, or the query; else 0.

    The number alone is an event id too, because the path has the turn.

    Raises:
        InvalidRequest: The value is not an event id, or one of another turn.
    """
    if last_event_id:
        turn, number = last_event(last_event_id if ":" in last_event_id else f"{turn_id}:{last_event_id}")
        if turn != turn_id:
            raise _invalid("Last-Event-ID", "the id of an event of this turn")
        return number
    if starting_after and not _NUMBER.fullmatch(starting_after):
        raise _invalid("starting_after", "the number of an event")
    return int(starting_after or 0)


def _invalid(param: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': expected {expected}.", param=param, code="invalid_value")
