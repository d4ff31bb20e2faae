"""Run a team for one turn: order of events, end of open tool calls, time limit.

A ``Team`` writes events to a ``Sink`` and appends its messages to the ``Turn``. The events are in the order that
``proxy.events`` describes, whatever the team does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from proxy.errors import InternalTurnError, ProxyError, TurnTimeout
from proxy.events import (
    ApprovalDecided,
    ContextCompacted,
    DelegateEvent,
    Event,
    ModelCalled,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    model_calls,
)
from proxy.messages import (
    AssistantMessage,
    ContextMode,
    DeveloperMessage,
    FinishReason,
    FunctionTool,
    Item,
    Parameters,
    SystemMessage,
    ToolChoice,
    ToolMessage,
    Usage,
)
from proxy.turns.request import BusyPolicy, DisconnectPolicy, TurnRequest
from proxy.turns.steps import StepLog, TurnStep
from proxy.turns.structured_output import ResponseFormat

logger = logging.getLogger(__name__)


RUN_UNKNOWN = (
    "error: it is not known whether this call was executed, because the server stopped while it ran. Do not claim "
    "that it was, and do not repeat it before you have checked or asked."
)
"""The result of an approved call that has begun and has no recorded result."""


CALL_UNKNOWN = (
    "error: it is not known whether this call was executed, because the turn ended while it ran. Do not claim that it "
    "was, and do not repeat it before you have checked or asked."
)
"""The result of a call with effects that was running when its turn ended."""


class ProgressLog(Protocol):
    """Stores the items of a running turn, in case its worker dies."""

    async def store(self, agent: str, items: Sequence[Item]) -> None:
        """Store the items before a tool with effects starts.

        Raises:
            StoreUnavailable: They are not stored; the tool must not start.
        """
        ...

    def note(self, agent: str, items: Sequence[Item]) -> None:
        """Store the items soon."""
        ...


class ApprovedCallLog(Protocol):
    """Records runs of approved calls over all workers and attempts, so that no call runs twice."""

    async def begin(self, approval_id: str) -> bool:
        """Record that the call is about to run; False if it may have run before.

        Raises:
            StoreUnavailable: Nothing was recorded; the call must not run.
        """
        ...

    async def end(self, approval_id: str, result: str) -> None:
        """Record the result."""
        ...


@dataclass(frozen=True, slots=True)
class ContinuationCall:
    """A call of an earlier turn that this turn repeats. If ``result`` is None, it is run now."""

    approval_id: str
    name: str
    arguments: str
    result: str | None = None


@dataclass(frozen=True, slots=True)
class ApprovalContinuation:
    """The beginning of a turn that follows a question for approval.

    ``decided`` are events to emit; the agent loop sets the new ids of repeated calls. ``note`` is the text of a user
    message if the request has no user message. ``runs`` is not None if a call has to be run.
    """

    decided: Sequence[ApprovalDecided] = ()
    note: str = ""
    calls: Sequence[ContinuationCall] = ()
    runs: ApprovedCallLog | None = None


@dataclass(slots=True)
class Turn:
    """One request to a team, and its state.

    ``context`` has all earlier messages and the input, oldest first. ``overlay`` are the system and developer messages
    of the client, added to the instructions of the active agent. The team updates ``agent`` (the active agent),
    ``items`` (its messages in order), ``draft`` (text of an incomplete model reply) and ``ran_effects`` (whether a tool
    with side effects was started), so that an interrupted turn can be stored and reported correctly.
    """

    id: str
    conversation_id: str
    caller: str
    agent: str
    context: Sequence[Item]
    overlay: Sequence[SystemMessage | DeveloperMessage] = ()
    parameters: Parameters = field(default_factory=Parameters)
    response_format: ResponseFormat | None = None
    client_tools: Sequence[FunctionTool] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    """Maximum number of calls of server tools; None for the limit of the team."""
    is_streamed: bool = True
    """The client reads the answer while it is written, so that its deltas are those of the provider."""
    is_strict: bool = False
    """A parameter that would have no effect is an error."""
    context_mode: ContextMode | None = None
    """Whether the request enables or disables the compaction of its context; None for the setting of the team."""
    compact_threshold: int | None = None
    """Tokens from which on the request wants its context shortened."""
    may_ask: bool = False
    """Whether the turn can end with a question for approval: the store has everything that its continuation needs."""
    continuation: ApprovalContinuation | None = None
    items: list[Item] = field(default_factory=list)
    draft: list[str] = field(default_factory=list)
    ran_effects: bool = False
    end_user: str = ""
    """The person behind the caller, as the request names it."""
    steps: StepLog | None = None
    """Records the steps; None for a turn that another worker cannot continue."""
    resumed: TurnStep | None = None
    """The step after which this worker continues the turn of another one."""
    running_effects: int = 0
    """Number of tool calls with effects that are running."""
    ran_tools: bool = False
    """Whether a tool has ended, one with effects has started, or an agent has handed off. Approved calls, which have
    their own log, do not count."""
    call_results: dict[str, str] = field(default_factory=dict)
    """Results of calls, by call id, that are not in ``items`` yet."""
    call_scope: str = ""
    """The start of the keys of tool calls: the id of the turn, or of an earlier attempt at the same request."""
    progress: ProgressLog | None = None
    compactions: StoredCompactions | None = None
    """The compactions of the conversation; None if it is not stored."""
    begin: asyncio.Future[None] | None = None
    """Completes when the turn is stored as running; None if it was stored before it started."""

    async def wait_for_begin(self) -> None:
        """Wait until the turn is stored as running.

        Before that, it may only call models: another turn of the conversation can be running at another worker.

        Raises:
            CancelledError: The turn could not begin, or this task was cancelled.
        """
        if self.begin is not None:
            await asyncio.shield(self.begin)
            self.begin = None

    @property
    def public_id(self) -> str:
        """The id of the turn that the client knows; the turn of a delegate has another one."""
        return self.id.partition("/")[0]

    def items_so_far(self) -> list[Item]:
        """Return the items, with the known results of open calls, and the draft as the last one if there is any."""
        items = list(self.items)
        last = items[-1] if items else None
        if last is not None and isinstance(last.message, AssistantMessage):
            items += [
                Item(ToolMessage(call.id, self.call_results[call.id]), agent=last.agent, visible=False)
                for call in last.message.tool_calls or ()
                if call.id in self.call_results
            ]
        if self.draft:
            items.append(Item(AssistantMessage(content="".join(self.draft)), agent=self.agent))
        return items


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """A call that needs approval; ``arguments`` is the JSON text of the model."""

    id: str
    call_id: str
    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TeamOutcome:
    """Result of a team that did not fail.

    ``pending`` are the ids of calls of client tools, whose results the client has to send. ``approvals`` are calls for
    which the answer requests approval.
    """

    finish_reason: FinishReason
    pending: tuple[str, ...] = ()
    approvals: tuple[ApprovalRequest, ...] = ()


class StoredCompactions(Protocol):
    """The compactions of one conversation, on all branches."""

    async def read(self) -> Sequence[Item]:
        """Return the newest items with a compaction, oldest first.

        Raises:
            StoreUnavailable: The database did not answer.
        """
        ...


class Sink(Protocol):
    """Receives the events of a team."""

    def emit(self, event: Event) -> None:
        """Append an event. Does not block."""
        ...

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Append events that arrived together; return False if ``drain`` would wait. Does not block."""
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

    async def answer(self, turn: Turn, sink: Sink) -> TeamOutcome:
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


class _NoSink:
    def emit(self, event: Event) -> None:
        pass

    def emit_batch(self, events: Sequence[Event]) -> bool:
        return True

    async def drain(self) -> None:
        pass

    async def attended(self) -> None:
        pass


class Recorder:
    """A sink between a team and the log. It sums up usage, and ends calls that the team leaves open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._open: dict[str, ToolStarted] = {}
        self._uses: dict[tuple[str, str], tuple[int, Usage]] = {}

    @property
    def usage(self) -> Usage:
        """Usage of all model calls so far, including failed ones."""
        total = Usage()
        for _, usage in self._uses.values():
            total = total + usage
        return total

    @property
    def uses(self) -> list[tuple[str, str, int, Usage]]:
        """Tuples of agent, model, number of calls and usage, in the order of first use."""
        return [(agent, model, calls, usage) for (agent, model), (calls, usage) in self._uses.items()]

    def restore(self, events: Iterable[Event]) -> None:
        """Record events that are in the log already."""
        sink, self._sink = self._sink, _NoSink()
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
        for event in events:
            if type(event) is not TextDelta:
                self._record(event)
        return self._sink.emit_batch(events)

    def _record(self, event: Event) -> None:
        match event:
            case ToolStarted():
                self._open[event.call_id] = event
            case ToolCompleted() | ToolFailed():
                self._open.pop(event.call_id, None)
            case ModelCalled() | ContextCompacted() | DelegateEvent():
                for call in model_calls(event):
                    self._add_use(call)
            case _:
                pass

    def _add_use(self, call: ModelCalled) -> None:
        calls, usage = self._uses.get((call.agent, call.model), (0, Usage()))
        self._uses[call.agent, call.model] = (calls + 1, usage + (call.usage or Usage()))

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
