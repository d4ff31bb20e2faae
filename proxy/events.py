"""The events of a turn, as frozen values.

Their order is

    Started (ParametersIgnored | ContextCompacted | ModelCalled | ReasoningDelta | TextDelta | RefusalDelta
             | ToolStarted | ToolCompleted | ToolFailed | Handoff | ClientToolCall | ClientToolArguments
             | ApprovalRequested | ApprovalDecided | DelegateEvent | MemberTeamEvent)*
    (Completed | Failed | Cancelled)

``turns`` ensures this order, and that every ToolStarted has exactly one ToolCompleted or ToolFailed before the closing
event. Encoders are a ``match`` over all event types.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any, Literal, TypeGuard

import msgspec
from msgspec import Struct

from proxy.messages import FinishReason, Usage


class Started(Struct, frozen=True, omit_defaults=True, tag="started"):
    """The turn started with ``agent`` active.

    ``steps`` are the agents that work in a turn of this team in order; empty if the team does not define them.
    """

    turn_id: str
    agent: str
    steps: tuple[str, ...] = ()


# A turn has thousands of deltas, which contain no cycles: exclude them from garbage collection (msgspec, "gc=False").
class TextDelta(Struct, frozen=True, gc=False, omit_defaults=True, tag="text"):
    """A delta of the message text, as the provider sent it; never empty."""

    text: str
    logprobs: Any = None
    """The ``logprobs.content`` list of this delta; None if not requested or not sent."""


class TextBatch(list[TextDelta]):
    """Deltas of the message text that arrived together, without log probabilities.

    Nearly all batches of a turn are of this class. What processes batches need not look at each delta then.
    """

    __slots__ = ("texts",)

    texts: list[str]
    """The texts of the deltas."""

    @classmethod
    def of(cls, texts: list[str]) -> TextBatch:
        """Return the batch of these texts, none of which is empty."""
        batch = cls(map(TextDelta, texts))
        batch.texts = texts
        return batch


class ReasoningDelta(Struct, frozen=True, gc=False, tag="reasoning"):
    """A delta of the reasoning, which is not part of the message; never empty."""

    text: str


class RefusalDelta(Struct, frozen=True, gc=False, omit_defaults=True, tag="refusal"):
    """A delta of a refusal; never empty."""

    text: str
    logprobs: Any = None
    """The ``logprobs.refusal`` list of this delta; None if not requested or not sent."""


class ToolStarted(Struct, frozen=True, tag="tool_started"):
    """A server tool call started. ``arguments`` is the JSON text as the model wrote it, truncated."""

    call_id: str
    name: str
    arguments: str
    agent: str


class ToolCompleted(Struct, frozen=True, tag="tool_completed"):
    """The tool call returned a result, truncated here."""

    call_id: str
    name: str
    result: str
    seconds: float


class ToolFailed(Struct, frozen=True, tag="tool_failed"):
    """The tool call failed; ``error`` is the text that the model received."""

    call_id: str
    name: str
    error: str
    seconds: float


class Handoff(Struct, frozen=True, tag="handoff"):
    """``source`` handed over to ``target``, which is the active agent now."""

    source: str
    target: str
    reason: str = ""


class ClientToolCall(Struct, frozen=True, tag="client_tool_call"):
    """A client tool call started; ``index`` counts the calls of the turn from 0."""

    index: int
    call_id: str
    name: str


class ClientToolArguments(Struct, frozen=True, tag="client_tool_arguments"):
    """A delta of the arguments of call ``index``."""

    index: int
    arguments: str


Decision = Literal["approve", "refuse"]
DecidedBy = Literal["message", "api"]
"""Whether the decision was a message in the conversation or an API request with the approval id."""


class ApprovalRequested(Struct, frozen=True, tag="approval_requested"):
    """A server tool call requires approval; ``arguments`` is truncated."""

    approval_id: str
    call_id: str
    name: str
    arguments: str


class ApprovalDecided(Struct, frozen=True, tag="approval_decided"):
    """A decision on an approval that an earlier turn requested.

    For an approved call, ``call_id`` is the id of its execution in this turn; for a rejected one, of the request.
    """

    approval_id: str
    call_id: str
    name: str
    decision: Decision
    by: DecidedBy


class ParametersIgnored(Struct, frozen=True, tag="parameters_ignored"):
    """Parameters of the request that the provider rejected, so that the model was called without them."""

    names: tuple[str, ...]


class ModelCalled(Struct, frozen=True, tag="model_called", omit_defaults=True):
    """A model call ended, successfully or not; ``usage`` is None if the provider did not report it.

    ``cost`` is None if there is no usage or no price of the model.
    """

    agent: str
    model: str
    usage: Usage | None
    seconds: float
    cost: float | None = None


CompactionMethod = Literal["shortened", "summarised", "dropped"]
"""Old tool results were shortened, the oldest messages replaced by a summary, or left out for this turn."""


class ContextCompacted(Struct, frozen=True, tag="context_compacted", omit_defaults=True):
    """The context of ``agent`` was shortened before a model call; the numbers of tokens are estimates."""

    agent: str
    method: CompactionMethod
    tokens_before: int
    tokens_after: int
    seconds: float = 0.0
    calls: tuple[ModelCalled, ...] = ()
    """The model calls that wrote the summary."""
    summary: str = ""


class DelegateEvent(Struct, frozen=True, tag="delegate"):
    """An event of a delegate, an agent or team that ``call_id`` called with a task; ``agent`` is its active agent."""

    call_id: str
    agent: str
    event: Event


class AgentSpeaking(Struct, frozen=True, tag="agent_speaking"):
    """``agent`` of a team inside of a member begins to write. Its text is that of the member."""

    agent: str


class MemberTeamEvent(Struct, frozen=True, tag="member_team", omit_defaults=True):
    """An event inside of the active agent, which is a team itself, such as one of another handoff-proxy.

    ``agent`` is the agent of that team. Its text, reasoning and model calls are those of the active agent.
    """

    agent: str
    event: Event
    progress: int | None = None
    """Percentage that the team reported with the event."""


def innermost(event: Event) -> Event:
    """Return the event of the innermost delegate, or team inside of a member; other events unchanged."""
    while isinstance(event, DelegateEvent | MemberTeamEvent):
        event = event.event
    return event


def with_innermost(event: Event, inner: Event) -> Event:
    """Return the event with another one in the place of its innermost event."""
    if isinstance(event, DelegateEvent | MemberTeamEvent):
        return msgspec.structs.replace(event, event=with_innermost(event.event, inner))
    return inner


def started_tools(event: Event) -> tuple[str, ...]:
    """Return the name of the tool that an event reports as started, also in a delegate or a team of a member."""
    inner = innermost(event)
    return (inner.name,) if isinstance(inner, ToolStarted) else ()


def model_calls(event: Event) -> tuple[ModelCalled, ...]:
    """Return the model calls that an event reports."""
    match event:
        case ModelCalled():
            return (event,)
        case ContextCompacted():
            return event.calls
        case DelegateEvent():
            return model_calls(event.event)
        case _:
            return ()


class Completed(Struct, frozen=True, tag="completed"):
    """The turn is completed and stored; ``agent`` is the active agent."""

    agent: str
    finish_reason: FinishReason
    usage: Usage


class Failed(Struct, frozen=True, tag="failed"):
    """The turn failed. ``code`` is stable, ``message`` a sentence for the caller, ``retry_after`` in seconds.

    ``is_repeatable`` is true if no tool with side effects has run and a repeat of the turn can succeed.
    """

    code: str
    message: str
    usage: Usage
    retry_after: float | None = None
    is_repeatable: bool = False
    param: str | None = None
    """The parameter of the request that the failure is about."""


class Cancelled(Struct, frozen=True, tag="cancelled"):
    """The turn was cancelled."""

    reason: Literal["client_left", "requested", "shutting_down"]
    agent: str
    usage: Usage


ClosingEvent = Completed | Failed | Cancelled
CLOSING: frozenset[type] = frozenset((Completed, Failed, Cancelled))
"""The classes of closing events."""


def is_closing(event: Event) -> TypeGuard[ClosingEvent]:
    """Return whether the event is the last one of a turn."""
    # Called for every chunk. isinstance calls the metaclass of msgspec structs, which takes ten times as long.
    return type(event) in CLOSING


Event = (
    Started
    | TextDelta
    | ReasoningDelta
    | RefusalDelta
    | ToolStarted
    | ToolCompleted
    | ToolFailed
    | Handoff
    | ClientToolCall
    | ClientToolArguments
    | ApprovalRequested
    | ApprovalDecided
    | ParametersIgnored
    | ModelCalled
    | ContextCompacted
    | DelegateEvent
    | AgentSpeaking
    | MemberTeamEvent
    | Completed
    | Failed
    | Cancelled
)


class Entry(Struct, frozen=True, gc=False):
    """An event, its position (1, 2, 3 …) in the turn's log, and when it was logged (seconds since the epoch)."""

    position: int
    event: Event
    time: float = 0.0


TAKEOVER_POSITIONS = 1_000_000
"""Positions of events after the n-th takeover by another worker begin at n times this number, plus their place in the
log: a reader that has events which the first worker had not recorded does not take the new ones for them."""


class Journal(Struct, frozen=True, omit_defaults=True):
    """A turn log for storage: the events, and the time of each in milliseconds after ``began``.

    ``takeovers`` are the numbers of events before each takeover by another worker.
    """

    began: float
    after_ms: list[int]
    events: list[Event]
    takeovers: list[int] = []

    def entries(self) -> list[Entry]:
        """Return the log entries."""
        entries = [
            Entry(position, event, self.began + after / 1000)
            for position, (event, after) in enumerate(zip(self.events, self.after_ms, strict=True), 1)
        ]
        return entries if not self.takeovers else with_positions(entries, self.takeovers)


def with_positions(entries: Sequence[Entry], takeovers: Sequence[int]) -> list[Entry]:
    """Return the entries of a log from its beginning with their positions; ``takeovers`` as in ``Journal``."""
    return [
        Entry(
            index + 1 + TAKEOVER_POSITIONS * sum(start <= index for start in takeovers),
            entry.event,
            entry.time,
        )
        for index, entry in enumerate(entries)
    ]


_encode_journal = msgspec.json.Encoder().encode
decode_journal = msgspec.json.Decoder(Journal).decode


def encode_journal(events: list[Event], times: Sequence[float], takeovers: Sequence[int] = ()) -> bytes:
    """Encode a turn log for storage; ``times`` are the times of the events, ``takeovers`` those of ``Journal``."""
    # Rounded to milliseconds, as in encoders, so that live and replayed events have the same time.
    began = round(times[0], 3) if times else 0.0
    # Not ``round``, which takes twice as long: an answer has thousands of events.
    after_ms = [floor((time - began) * 1000 + 0.5) for time in times]
    return _encode_journal(Journal(began, after_ms, events, list(takeovers)))
