"""What a turn asks of a team: a ``Team`` writes events to a ``Sink`` and appends its messages to the ``Turn``.

``service.runner`` and ``turns.recorder`` ensure the order of events that ``proxy.events`` describes, whatever the team
does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Sequence
from typing import Protocol

from msgspec import Struct

from proxy.events import Event, ModelCalled
from proxy.messages import FinishReason, FunctionTool
from proxy.turns.request import BusyPolicy, DisconnectPolicy, TurnRequest
from proxy.turns.text_relay import TextRelay
from proxy.turns.turn import ApprovalRequest, Turn


class TeamOutcome(Struct, frozen=True):
    """Result of a team that did not fail.

    ``pending`` are the ids of calls of client tools, whose results the client has to send. ``approvals`` are calls for
    which the answer requests approval.
    """

    finish_reason: FinishReason
    pending: tuple[str, ...] = ()
    approvals: tuple[ApprovalRequest, ...] = ()


class Sink(Protocol):
    """Receives the events of a team."""

    def emit(self, event: Event) -> None:
        """Append an event. Does not block."""
        ...

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Append events that arrived together; return False if ``drain`` would wait. Does not block.

        None of them ends the turn.
        """
        ...

    def open_relay(self) -> TextRelay | None:
        """Return a relay for text that needs no event now; None if it has to be emitted."""
        ...

    def drain(self) -> Awaitable[None]:
        """Wait until the slowest reader is within the high-water mark (backpressure)."""
        ...

    def attended(self) -> Awaitable[None]:
        """Wait while the turn must not start a model call or tool call, because its client has left."""
        ...


class Team(Protocol):
    """A group of agents that answers a turn."""

    @property
    def name(self) -> str:
        """The model id of the team."""
        ...

    @property
    def entry(self) -> str:
        """The agent that answers in a new conversation."""
        ...

    @property
    def agents(self) -> Collection[str]:
        """The names of the agents."""
        ...

    @property
    def steps(self) -> tuple[str, ...]:
        """The agents of a turn in order, if it is fixed; else empty."""
        ...

    @property
    def has_tools(self) -> bool:
        """Whether an agent has tools that the proxy runs; handoffs are tools."""
        ...

    @property
    def has_effects(self) -> bool:
        """Whether one of the tools can have effects."""
        ...

    @property
    def time_limit(self) -> float | None:
        """Time limit of a turn in seconds; None for the default."""
        ...

    def answer(self, turn: Turn, sink: Sink) -> Awaitable[TeamOutcome]:
        """Run agents until the turn has an answer.

        Emits neither ``Started`` nor a closing event. If the task is cancelled, all connections of the turn are closed
        before this returns.

        Raises:
            TurnFailed: The turn could not be finished.
        """
        ...


class AnsweringTeam(Team, Protocol):
    """A team that checks request parameters."""

    def check_parameters(self, request: TurnRequest) -> Sequence[str]:
        """Return the names of the request parameters that have no effect on this team.

        Raises:
            RejectedRequest: The request requires something that the team does not support.
        """
        ...


class ServedTeam(AnsweringTeam, Protocol):
    """A team as ``TurnService`` needs it."""

    @property
    def on_disconnect(self) -> DisconnectPolicy | None:
        """The team's policy for turns whose client disconnects; None for the default."""
        ...

    @property
    def busy(self) -> BusyPolicy | None:
        """What a request does while a turn of its conversation is running; None to reject it."""
        ...

    @property
    def snapshot(self) -> str | None:
        """Digest of the definition of the team; None if it has no versions."""
        ...

    @property
    def side(self) -> AnsweringTeam:
        """The team for side requests (titles, tags): one model, without server tools and state."""
        ...

    def input_tokens(self, turn: Turn) -> int:
        """Return the estimated size of the turn's first model call in tokens."""
        ...

    async def summarise(self, turn: Turn) -> tuple[str, Sequence[ModelCalled]]:
        """Return a summary of the context of a turn, and the model calls that wrote it.

        Raises:
            UpstreamFailed: No summary could be written.
        """
        ...

    def check_client_tools(self, tools: tuple[FunctionTool, ...]) -> None:
        """Raise ``ToolNameTaken`` if a client tool has the name of a tool of the team."""
        ...


class NoSink:
    """Discards events."""

    def emit(self, event: Event) -> None:
        """Discard the event."""

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Discard the events."""
        return True

    def open_relay(self) -> None:
        """Return None."""
        return

    async def drain(self) -> None:
        """Return at once."""

    async def attended(self) -> None:
        """Return at once."""
