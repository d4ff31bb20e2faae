"""Summarise the event log of a turn: model usage, progress, and the working time of each agent.

Progress: each agent in ``steps`` of the team counts as one step, and so does the end of the turn. A step is done when
its agent hands over for the first time. The value therefore never decreases, and it is 100 only when the turn is
completed. A team without ``steps`` has no progress value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    innermost,
    model_calls,
)
from proxy.messages import Usage

_NO_AGENTS: frozenset[str] = frozenset()


class StepProgress:
    """Progress of one turn; ``steps`` are names of agents."""

    def __init__(self, steps: Sequence[str] = ()) -> None:
        # Each empty set takes 216 bytes, and a stream has two of these objects.
        self._steps = frozenset(steps) if steps else _NO_AGENTS
        self._done = _NO_AGENTS
        self._is_complete = False

    @property
    def percent(self) -> int | None:
        """Progress from 0 to 100; None for a team without steps."""
        if not self._steps:
            return None
        return 100 if self._is_complete else 100 * len(self._done) // (len(self._steps) + 1)

    def add_handoff(self, agent: str) -> None:
        """Record that the agent handed over."""
        self._done |= self._steps & {agent}

    def complete(self) -> None:
        """Record that the turn is completed."""
        self._is_complete = True


class ModelUsage(Struct):
    """Total of the calls of one model by one agent."""

    calls: int
    usage: Usage
    seconds: float
    cost: float | None
    """None if a call has no price."""

    def add(self, called: ModelCalled) -> None:
        """Add a call."""
        self.calls += 1
        self.usage = self.usage + (called.usage or Usage())
        self.seconds += called.seconds
        self.cost = None if self.cost is None or called.cost is None else self.cost + called.cost


ModelUses = dict[tuple[str, str], ModelUsage]
"""Totals by agent and model, in the order of their first calls."""


def add_call(uses: ModelUses, call: ModelCalled) -> None:
    """Add a call to the total of its agent and model."""
    key = call.agent, call.model
    use = uses.get(key)
    if use is None:
        uses[key] = ModelUsage(1, call.usage or Usage(), call.seconds, call.cost)
    else:
        use.add(call)


def rounded_cost(cost: float) -> float:
    """Round a cost for responses."""
    return round(cost, 9)


class _AgentWork:
    """Calls and times of one agent."""

    __slots__ = ("model_calls", "model_seconds", "seconds", "tool_calls", "tool_seconds")

    def __init__(self) -> None:
        self.seconds = self.model_seconds = self.tool_seconds = 0.0
        self.model_calls = self.tool_calls = 0


class TurnSummary:
    """Summary of the log of a turn, which can be running."""

    def __init__(self, entries: Iterable[Entry], *, now: float) -> None:
        """``now``, in seconds since the epoch, is the end of the working time of the active agent of a running turn."""
        self.agent = ""
        """The active agent, or the last one."""
        self.first_text_at: float | None = None
        self.uses: ModelUses = {}
        self.progress = StepProgress()
        self._works: dict[str, _AgentWork] = {}
        self._active_since = 0.0
        self._callers: dict[str, str] = {}
        self._is_closed = False
        for entry in entries:
            self._add(entry)
        if self.agent and not self._is_closed:
            self._deactivate(now)

    @property
    def agents(self) -> list[dict[str, Any]]:
        """Calls and times of each agent, in the order of their first activation; times are in seconds."""
        return [
            {
                "agent": agent,
                "seconds": round(work.seconds, 3),
                "model_calls": work.model_calls,
                "model_seconds": round(work.model_seconds, 3),
                "tool_calls": work.tool_calls,
                "tool_seconds": round(work.tool_seconds, 3),
            }
            for agent, work in self._works.items()
        ]

    def _add(self, entry: Entry) -> None:
        event = entry.event
        # The precision of stored logs, so that the summary is the same when it is computed from the store.
        at = round(entry.time, 3)
        match event:
            case TextDelta() | RefusalDelta():
                self.first_text_at = self.first_text_at or at
            case Started():
                self.progress = StepProgress(event.steps)
                self._activate(event.agent, at)
            case Handoff():
                self.progress.add_handoff(event.source)
                self._activate(event.target, at)
            case ParametersIgnored():
                pass
            case ModelCalled():
                self._add_call(event)
            case ContextCompacted() | DelegateEvent():
                for call in model_calls(event):
                    self._add_call(call)
            case ToolStarted():
                self._callers[event.call_id] = event.agent
                self._work(event.agent).tool_calls += 1
            case ToolCompleted() | ToolFailed():
                self._work(self._callers.get(event.call_id, self.agent)).tool_seconds += event.seconds
            case Completed():
                self.progress.complete()
                self._close(at)
            case Failed() | Cancelled():
                self._close(at)
            case MemberTeamEvent():
                self._add_inner(event)
            case (
                ReasoningDelta()
                | AgentSpeaking()
                | ClientToolCall()
                | ClientToolArguments()
                | ApprovalRequested()
                | ApprovalDecided()
            ):
                pass

    def _add_inner(self, event: MemberTeamEvent) -> None:
        """Add a tool call of a team inside of the active agent."""
        match innermost(event):
            case ToolStarted():
                self._work(self.agent).tool_calls += 1
            case ToolCompleted(seconds=seconds) | ToolFailed(seconds=seconds):
                self._work(self.agent).tool_seconds += seconds
            case _:
                pass

    def _add_call(self, call: ModelCalled) -> None:
        add_call(self.uses, call)
        work = self._work(call.agent)
        work.model_calls += 1
        work.model_seconds += call.seconds

    def _close(self, at: float) -> None:
        self._deactivate(at)
        self._is_closed = True

    def _activate(self, agent: str, at: float) -> None:
        if self.agent:
            self._deactivate(at)
        self.agent = agent
        self._active_since = at
        self._work(agent)

    def _deactivate(self, at: float) -> None:
        self._work(self.agent).seconds += max(at - self._active_since, 0.0)

    def _work(self, agent: str) -> _AgentWork:
        return self._works.setdefault(agent, _AgentWork())
