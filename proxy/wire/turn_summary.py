"""What the log of a turn tells about it: what its agents used, and when and for how long they worked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
from proxy.wire.progress import Progress
from proxy.wire.uses import Use


class _Work:
    """What one agent did."""

    __slots__ = ("model_calls", "model_seconds", "seconds", "tool_calls", "tool_seconds")

    def __init__(self) -> None:
        self.seconds = self.model_seconds = self.tool_seconds = 0.0
        self.model_calls = self.tool_calls = 0


class Course:
    """What a log tells, as far as it goes."""

    def __init__(self, entries: Iterable[Entry], *, now: float) -> None:
        """``now`` is the time up to which an agent that still has the floor has worked, in seconds since the epoch."""
        self.agent = ""
        """Who has the floor, or had it last."""
        self.first_text_at: float | None = None
        self.uses: dict[tuple[str, str], Use] = {}
        self.progress = Progress()
        self._works: dict[str, _Work] = {}
        self._has_floor_since = 0.0
        self._callers: dict[str, str] = {}
        self._is_closed = False
        for entry in entries:
            self._take(entry)
        if self.agent and not self._is_closed:
            self._gives_floor(now)

    @property
    def agents(self) -> list[dict[str, Any]]:
        """What each agent did, in the order in which they first got the floor; times in seconds."""
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

    def _take(self, entry: Entry) -> None:
        event = entry.event
        # As the log is kept, so that a turn tells the same later.
        at = round(entry.time, 3)
        match event:
            case TextDelta() | RefusalDelta():
                self.first_text_at = self.first_text_at or at
            case Started():
                self.progress = Progress(event.steps)
                self._gets_floor(event.agent, at)
            case Handoff():
                self.progress.handed_over(event.source)
                self._gets_floor(event.target, at)
            case ParametersIgnored():
                pass
            case ModelCalled():
                self.uses.setdefault((event.agent, event.model), Use()).add(event)
                work = self._work(event.agent)
                work.model_calls += 1
                work.model_seconds += event.seconds
            case ToolStarted():
                self._callers[event.call_id] = event.agent
                self._work(event.agent).tool_calls += 1
            case ToolCompleted() | ToolFailed():
                self._work(self._callers.get(event.call_id, self.agent)).tool_seconds += event.seconds
            case Completed():
                self.progress.completed()
                self._ends(at)
            case Failed() | Cancelled():
                self._ends(at)
            case (
                ReasoningDelta()
                | ClientToolCall()
                | ClientToolArguments()
                | ApprovalRequested()
                | ApprovalDecided()
            ):
                pass

    def _ends(self, at: float) -> None:
        self._gives_floor(at)
        self._is_closed = True

    def _gets_floor(self, agent: str, at: float) -> None:
        if self.agent:
            self._gives_floor(at)
        self.agent = agent
        self._has_floor_since = at
        self._work(agent)

    def _gives_floor(self, at: float) -> None:
        self._work(self.agent).seconds += max(at - self._has_floor_since, 0.0)

    def _work(self, agent: str) -> _Work:
        return self._works.setdefault(agent, _Work())
