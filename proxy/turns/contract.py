"""Run a team for one turn: order of events, end of open tool calls, time limit.

A ``Team`` writes events to a ``Sink`` and appends its messages to the ``Turn``. The events are in the order that
``proxy.events`` describes, whatever the team does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from proxy.errors import InternalTurnError, ProxyError, TurnTimeout
from proxy.events import (
    ContextCompacted,
    DelegateEvent,
    Event,
    ModelCalled,
    Started,
    TextBatch,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    model_calls,
)
from proxy.messages import FinishReason, FunctionTool, Usage
from proxy.turns.request import BusyPolicy, DisconnectPolicy, TurnRequest
from proxy.turns.text_relay import TextRelay
from proxy.turns.turn import ApprovalRequest, Turn

logger = logging.getLogger(__name__)


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
        """Append events that arrived together; return False if ``drain`` would wait. Does not block."""
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


class Recorder:
    """A sink between a team and the log. It sums up usage, and ends calls that the team leaves open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._open: dict[str, ToolStarted] = {}
        self._uses: dict[tuple[str, str], tuple[int, Usage]] = {}

    @property
    def usage(self) -> Usage:
        """Usage of all model calls so far, including failed ones."""
        usages = [usage for _, usage in self._uses.values()]
        return usages[0] if len(usages) == 1 else sum(usages, Usage())

    @property
    def uses(self) -> list[tuple[str, str, int, Usage]]:
        """Tuples of agent, model, number of calls and usage, in the order of first use."""
        return [(agent, model, calls, usage) for (agent, model), (calls, usage) in self._uses.items()]

    def restore(self, events: Iterable[Event]) -> None:
        """Record events that are in the log already."""
        sink, self._sink = self._sink, NoSink()
        for event in events:
            self.emit(event)
        self._sink = sink

    def emit(self, event: Event) -> None:
        """Record an event and forward it."""
        # Most events are text, which has nothing to record.
        if type(event) is not TextDelta:
            self._record(event)
        self._sink.emit(event)

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Record events and forward them."""
        if type(events) is not TextBatch:
            for event in events:
                if type(event) is not TextDelta:
                    self._record(event)
        return self._sink.emit_batch(events)

    def open_relay(self) -> TextRelay | None:
        """Return a relay of the sink: text has nothing to record."""
        return self._sink.open_relay()

    def _record(self, event: Event) -> None:
        match event:
            case ModelCalled():
                self._add_use(event)
            case ToolStarted():
                self._open[event.call_id] = event
            case ToolCompleted() | ToolFailed():
                self._open.pop(event.call_id, None)
            case ContextCompacted() | DelegateEvent():
                for call in model_calls(event):
                    self._add_use(call)
            case _:
                pass

    def _add_use(self, call: ModelCalled) -> None:
        use = call.agent, call.model
        usage = call.usage or Usage()
        if use in self._uses:
            calls, before = self._uses[use]
            self._uses[use] = calls + 1, before + usage
        else:
            self._uses[use] = 1, usage

    def drain(self) -> Awaitable[None]:
        """Wait as the sink does."""
        return self._sink.drain()

    def attended(self) -> Awaitable[None]:
        """Wait as the sink does."""
        return self._sink.attended()

    def close_open_calls(self, error: str = "the turn ended before the tool did") -> None:
        """Emit ``ToolFailed`` for each call without an end."""
        for call in list(self._open.values()):
            self.emit(ToolFailed(call.call_id, call.name, error, 0.0))


async def run(team: Team, turn: Turn, recorder: Recorder, *, time_limit: float) -> TeamOutcome:
    """Run the team for at most ``time_limit`` seconds. Afterwards each call has an end event.

    Raises:
        TurnFailed: Any failure, without internals.
        CancelledError: The task was cancelled. The team has stopped.
    """
    if turn.resumed is None:
        recorder.emit(Started(turn.id, turn.agent, team.steps))
    else:
        recorder.close_open_calls("the worker ended before the tool did")
    try:
        async with asyncio.timeout(time_limit) as limit:
            return await team.answer(turn, recorder)
    except TimeoutError:
        if limit.expired():
            raise TurnTimeout(time_limit) from None
        logger.exception("turn failed", extra={"turn_id": turn.id})
        raise InternalTurnError from None
    except ProxyError:
        raise
    except Exception:
        logger.exception("turn failed", extra={"turn_id": turn.id})
        raise InternalTurnError from None
    finally:
        recorder.close_open_calls()
