"""What happens during a turn, as frozen values.

Their order is

    Started (ParametersIgnored | ModelCalled | ReasoningDelta | TextDelta | RefusalDelta | ToolStarted | ToolCompleted
             | ToolFailed | Handoff | ClientToolCall | ClientToolArguments | ApprovalRequested | ApprovalDecided)*
    (Completed | Failed | Cancelled)

``turns`` keeps that order and the pairs: every ToolStarted has exactly one ToolCompleted or ToolFailed before the
closing event. Encoders are a ``match`` over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

import msgspec
from msgspec import Struct

from proxy.messages import FinishReason, Usage


class Started(Struct, frozen=True, omit_defaults=True, tag="started"):
    """The turn began; ``agent`` has the floor.

    ``steps`` are the agents whose work the turns of this team are made of; empty when that is not known.
    """

    turn_id: str
    agent: str
    steps: tuple[str, ...] = ()


# Deltas come by the thousand and contain no cycles: the garbage collector need not track them.
class TextDelta(Struct, frozen=True, gc=False, omit_defaults=True, tag="text"):
    """A piece of the text of the answer, as the provider sent it; never empty."""

    text: str
    logprobs: Any = None
    """The wire's ``logprobs.content`` list for this piece, when asked for and given."""


class ReasoningDelta(Struct, frozen=True, gc=False, tag="reasoning"):
    """A piece of the model's reasoning, which is not part of the answer; never empty."""

    text: str


class RefusalDelta(Struct, frozen=True, gc=False, omit_defaults=True, tag="refusal"):
    """A piece of a refusal; never empty."""

    text: str
    logprobs: Any = None
    """The wire's ``logprobs.refusal`` list for this piece, when asked for and given."""


class ToolStarted(Struct, frozen=True, tag="tool_started"):
    """A tool of the server runs. ``arguments`` is the JSON text as the model wrote it, cut to a short form."""

    call_id: str
    name: str
    arguments: str
    agent: str


class ToolCompleted(Struct, frozen=True, tag="tool_completed"):
    """It gave a result (cut to a short form here)."""

    call_id: str
    name: str
    result: str
    seconds: float


class ToolFailed(Struct, frozen=True, tag="tool_failed"):
    """It failed; ``error`` is what the model was told."""

    call_id: str
    name: str
    error: str
    seconds: float


class Handoff(Struct, frozen=True, tag="handoff"):
    """``source`` gave the floor to ``target``."""

    source: str
    target: str
    reason: str = ""


class ClientToolCall(Struct, frozen=True, tag="client_tool_call"):
    """The agent calls a tool of the caller's: the first piece of call ``index`` (0, 1, … within the turn)."""

    index: int
    call_id: str
    name: str


class ClientToolArguments(Struct, frozen=True, tag="client_tool_arguments"):
    """A further piece of the arguments of call ``index``."""

    index: int
    arguments: str


Decision = Literal["approve", "refuse"]
DecidedBy = Literal["message", "api"]
"""Whether a person said it in the conversation, or a program by the approval's id."""


class ApprovalRequested(Struct, frozen=True, tag="approval_requested"):
    """A call of the server's waits until a person has approved it; ``arguments`` is cut to a short form."""

    approval_id: str
    call_id: str
    name: str
    arguments: str


class ApprovalDecided(Struct, frozen=True, tag="approval_decided"):
    """A person decided about a call that an earlier turn asked for.

    ``call_id`` is the id under which an approved call is run now; of a refused one, that of the request.
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
    """A model call ended, well or not; ``usage`` is None when the model did not tell.

    ``cost`` is None when there is no usage, or no price for the model.
    """

    agent: str
    model: str
    usage: Usage | None
    seconds: float
    cost: float | None = None


class Completed(Struct, frozen=True, tag="completed"):
    """The turn is finished and stored; ``agent`` has the floor now."""

    agent: str
    finish_reason: FinishReason
    usage: Usage


class Failed(Struct, frozen=True, tag="failed"):
    """The turn failed. ``code`` is stable, ``message`` a sentence for the caller, ``retry_after`` in seconds.

    ``is_repeatable``: running the turn again does no harm (no tool with effects ran, and it may help).
    """

    code: str
    message: str
    usage: Usage
    retry_after: float | None = None
    is_repeatable: bool = False
    param: str | None = None
    """The parameter of the request that the failure is about."""


class Cancelled(Struct, frozen=True, tag="cancelled"):
    """The turn was stopped from outside."""

    reason: Literal["client_left", "requested", "shutting_down"]
    agent: str
    usage: Usage


ClosingEvent = Completed | Failed | Cancelled
_CLOSING = (Completed, Failed, Cancelled)


def is_closing(event: Event) -> TypeGuard[ClosingEvent]:
    """Whether the event is a turn's last."""
    # Asked for every chunk; isinstance would ask the metaclass of these classes, which takes ten times as long.
    return type(event) in _CLOSING


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
    | Completed
    | Failed
    | Cancelled
)


class Entry(Struct, frozen=True):
    """An event, its position (1, 2, 3 …) in the turn's log, and when it was logged (seconds since the epoch)."""

    position: int
    event: Event
    time: float = 0.0


class Journal(Struct, frozen=True):
    """A turn's log as it is kept: its events, and when each came, in milliseconds after ``began``."""

    began: float
    after_ms: list[int]
    events: list[Event]

    def entries(self) -> list[Entry]:
        """Return the log as its readers see it."""
        return [
            Entry(position, event, self.began + after / 1000)
            for position, (event, after) in enumerate(zip(self.events, self.after_ms, strict=True), 1)
        ]


_encode_journal = msgspec.json.Encoder().encode
decode_journal = msgspec.json.Decoder(Journal).decode


def encode_journal(events: Sequence[Event], times: Sequence[float]) -> bytes:
    """Return the log of a turn for keeping; ``times`` are those of the events."""
    # Live and replayed, an event came at the same millisecond.
    began = round(times[0], 3) if times else 0.0
    return _encode_journal(Journal(began, [round((time - began) * 1000) for time in times], list(events)))
