"""Runs a team for one turn and keeps the order of events, closed tool calls and the time limit.

A turn is answered by a ``Team``, which writes events to a ``Sink`` as they happen and leaves the messages it made on
the ``Turn``. Whatever the team does, readers of the sink may rely on the order that ``proxy.events`` describes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from proxy.errors import InternalTurnError, ProxyError, TurnTimeout
from proxy.events import (
    ApprovalDecided,
    Event,
    ModelCalled,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    FinishReason,
    FunctionTool,
    Item,
    Parameters,
    SystemMessage,
    ToolChoice,
    Usage,
)
from proxy.turns.request import DisconnectPolicy, TurnRequest
from proxy.turns.structured_output import ResponseFormat

logger = logging.getLogger(__name__)


RUN_UNKNOWN = (
    "error: it is not known whether this call was executed, because the server stopped while it ran. Do not tell the "
    "user that it was, and do not repeat it before you have checked or asked."
)
"""The result of an approved call that has begun and has no recorded result."""


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
    """One request to a team, and what became of it so far.

    ``context`` is everything said before the team's own work of this turn, the input included, oldest first;
    ``overlay`` are the client's system and developer messages, laid over the instructions of whichever agent is
    active. The team keeps ``agent`` (who has the floor), ``items`` (what was made, in order), ``draft`` (text of a
    reply that is still coming) and ``ran_effects`` (a tool that changes the world was started) up to date, so that a
    turn that stops half-way can still be told truthfully.
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
    """Calls of the server's own tools that the caller allows; None leaves it to the team."""
    is_strict: bool = False
    """A parameter that would have no effect is an error."""
    may_ask: bool = False
    """The turn may end with a question for approval: all that is needed to go on behind it is kept."""
    continuation: ApprovalContinuation | None = None
    items: list[Item] = field(default_factory=list)
    draft: list[str] = field(default_factory=list)
    ran_effects: bool = False

    def said_so_far(self) -> list[Item]:
        """The items, and the draft as one more if there is any."""
        if not self.draft:
            return list(self.items)
        return [*self.items, Item(AssistantMessage(content="".join(self.draft)), agent=self.agent)]


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """A call that is run only when a person approves it; ``arguments`` is the JSON text as the model wrote it."""

    id: str
    call_id: str
    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TeamOutcome:
    """A team came to an end of the turn.

    ``pending`` are ids of the caller's own tools, to be answered next; ``approvals`` are calls that the answer asks a
    person about.
    """

    finish_reason: FinishReason
    pending: tuple[str, ...] = ()
    approvals: tuple[ApprovalRequest, ...] = ()


class Sink(Protocol):
    """Where a team writes what happens."""

    def emit(self, event: Event) -> None:
        """Take the event; never waits."""
        ...

    def drain(self) -> Awaitable[None]:
        """Return as soon as the slowest reader is near enough to take more."""
        ...


class Team(Protocol):
    """Agents that answer together."""

    @property
    def name(self) -> str:
        """The model id of the team."""
        ...

    @property
    def entry(self) -> str:
        """The agent that answers when nothing says otherwise."""
        ...

    @property
    def agents(self) -> Collection[str]:
        """The names of its agents."""
        ...

    @property
    def steps(self) -> tuple[str, ...]:
        """The agents whose work its turns are made of, one after the other; empty when that is not known."""
        ...

    @property
    def time_limit(self) -> float | None:
        """Seconds for a whole turn, when the team has a limit of its own."""
        ...

    async def answer(self, turn: Turn, sink: Sink) -> TeamOutcome:
        """Work until the turn has an answer.

        Emits neither ``Started`` nor a closing event. When the task is cancelled, every connection that serves the
        turn is closed before this returns.

        Raises:
            TurnFailed: The turn could not be finished.
        """
        ...


class AnsweringTeam(Team, Protocol):
    """A team that knows what it can be asked."""

    def check_parameters(self, request: TurnRequest) -> Sequence[str]:
        """Return what is asked for and has no effect on this team.

        Raises:
            RejectedRequest: The request requires something that the team does not support.
        """
        ...


class ServedTeam(AnsweringTeam, Protocol):
    """A team as the exchange needs it."""

    @property
    def on_disconnect(self) -> DisconnectPolicy | None:
        """What happens to a turn whose client leaves, when the team says so."""
        ...

    @property
    def snapshot(self) -> str | None:
        """The digest of what it is made of, when a caller made it and may change it."""
        ...

    @property
    def side(self) -> AnsweringTeam:
        """Answers side requests (titles, tags): one model, no tools of its own, no state."""
        ...

    def check_client_tools(self, tools: tuple[FunctionTool, ...]) -> None:
        """Raise ``ToolNameTaken`` if a client tool has the name of a tool of the team."""
        ...


class Recorder:
    """Between a team and the sink: folds what it sees, and closes what the team leaves open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._open: dict[str, ToolStarted] = {}
        self._uses: dict[tuple[str, str], tuple[int, Usage]] = {}

    @property
    def usage(self) -> Usage:
        """The sum over every model call so far, failed ones included."""
        total = Usage()
        for _, usage in self._uses.values():
            total = total + usage
        return total

    @property
    def uses(self) -> list[tuple[str, str, int, Usage]]:
        """(agent, model, calls, usage) in the order of first use."""
        return [(agent, model, calls, usage) for (agent, model), (calls, usage) in self._uses.items()]

    def emit(self, event: Event) -> None:
        """Fold and pass on."""
        match event:
            case TextDelta():
                # Nearly every event; the rest is looked at for the few others.
                pass
            case ToolStarted():
                self._open[event.call_id] = event
            case ToolCompleted() | ToolFailed():
                self._open.pop(event.call_id, None)
            case ModelCalled():
                calls, usage = self._uses.get((event.agent, event.model), (0, Usage()))
                self._uses[event.agent, event.model] = (calls + 1, usage + (event.usage or Usage()))
            case _:
                pass
        self._sink.emit(event)

    def drain(self) -> Awaitable[None]:
        """As the sink's."""
        return self._sink.drain()

    def close_open_calls(self) -> None:
        """Let every call that is still open end as failed."""
        for call in list(self._open.values()):
            self.emit(ToolFailed(call.call_id, call.name, "the turn ended before the tool did", 0.0))


async def run(team: Team, turn: Turn, recorder: Recorder, *, time_limit: float) -> TeamOutcome:
    """Let the team answer within ``time_limit`` seconds; afterwards no call is open.

    Raises:
        TurnFailed: Whatever went wrong, as something a caller may be told.
        CancelledError: The task was cancelled; the team has stopped.
    """
    recorder.emit(Started(turn.id, turn.agent, team.steps))
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
