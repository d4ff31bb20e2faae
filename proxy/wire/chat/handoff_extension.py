"""What an answer tells beside the answer: who speaks, handoffs, the server's own tools, and what it took.

It stands where no client trips over it: as objects under the one key ``handoff``, at the top level of an otherwise
ordinary chunk or of a completion, and as lines in ``reasoning_content``, which frontends show as the model's thoughts.
Types and keys of the objects are those of the event feed. ``docs/extension.md`` describes them; new types and new
keys may come, known ones stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from proxy.events import (
    ApprovalDecided,
    ApprovalRequested,
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    DecidedBy,
    Decision,
    Event,
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
from proxy.messages import EventsMode
from proxy.wire.chat.answer_text import Joints
from proxy.wire.progress import Progress
from proxy.wire.uses import Use, rounded_cost

MAX_LINE = 240
"""Characters of what a model or a tool wrote, in a line for people."""


class Noted(Struct, frozen=True, omit_defaults=True, rename={"source": "from", "target": "to"}):
    """The object of a chunk: only what belongs to its type is set. ``agent`` is who had the floor."""

    type: Literal[
        "agent.speaking",
        "handoff",
        "tool.started",
        "tool.completed",
        "tool.failed",
        "approval.requested",
        "approval.decided",
    ]
    agent: str
    source: str | UnsetType = UNSET
    target: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    result: str | UnsetType = UNSET
    error: str | UnsetType = UNSET
    seconds: float | UnsetType = UNSET
    approval_id: str | UnsetType = UNSET
    decision: Decision | UnsetType = UNSET
    by: DecidedBy | UnsetType = UNSET
    progress: int | UnsetType = UNSET


class UseBody(Struct, frozen=True, omit_defaults=True):
    """What one agent asked of one model."""

    agent: str
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    """Part of ``prompt_tokens``."""
    cost: float | UnsetType = UNSET


class Summary(Struct, frozen=True, omit_defaults=True):
    """The object of a whole answer.

    ``agents`` is the way that the floor went, first to last. ``cost`` is there when every call has a price.
    """

    type: Literal["turn.completed", "turn.cancelled"]
    agent: str
    agents: list[str]
    tool_calls: int
    usage: list[UseBody]
    cost: float | UnsetType = UNSET


class StatusData(Struct, frozen=True):
    """What Open WebUI shows above an answer; it shimmers until it is ``done``."""

    description: str
    done: bool


class StatusEvent(Struct, frozen=True, kw_only=True):
    """A chunk's ``event``, as Open WebUI takes it."""

    type: Literal["status"] = "status"
    data: StatusData


class Capabilities(Struct, frozen=True):
    """What can be had of a model beyond text."""

    streaming: bool
    handoffs: bool
    server_tools: bool
    client_tools: bool
    images: bool


class TeamBody(Struct, frozen=True, omit_defaults=True):
    """The object of a model that is a team, or one agent of a team. Tools are the server's own."""

    agents: Sequence[str]
    entry: str
    tools: Sequence[str]
    capabilities: Capabilities
    description: str | UnsetType = UNSET
    examples: Sequence[str] = ()
    demo: bool = False


class Note(Struct, frozen=True):
    """What is told beside the answer of one event; at least one of the three is set."""

    noted: Noted | None = None
    reasoning: str = ""
    status: StatusEvent | None = None


class Narrator:
    """Follows one turn; it has to be given every event in order, except that further text of an agent may be left out.

    ``hides_details`` keeps what models and tools wrote (thoughts, arguments, results, errors, reasons) out of it.
    """

    def __init__(self, mode: EventsMode, *, hides_details: bool = False, has_status: bool = False) -> None:
        self._has_objects = mode in ("extension", "all")
        self._has_reasoning = mode in ("reasoning", "all")
        self._has_status = has_status and self._has_reasoning
        self._hides_details = hides_details
        self._agents: list[str] = []
        self._speaking = ""
        self._tool_calls = 0
        self._uses: dict[tuple[str, str], Use] = {}
        self._joints = Joints()
        self._progress = Progress()

    def tell(self, event: Event) -> Note | None:
        """Return what is told of the event, before what the event adds to the answer."""
        match event:
            case TextDelta() | RefusalDelta() | ClientToolCall():
                return self._speaks()
            case ReasoningDelta():
                return self._thinks(event.text)
            case Started():
                self._agents.append(event.agent)
                self._progress = Progress(event.steps)
            case Handoff():
                return self._hands_over(event)
            case ToolStarted():
                self._tool_calls += 1
                return self._tool_starts(event)
            case ToolCompleted() | ToolFailed():
                return self._tool_ends(event)
            case ApprovalRequested():
                return self._asks_for_approval(event)
            case ApprovalDecided():
                return self._approval_is_decided(event)
            case ModelCalled():
                self._joints.pause()
                self._uses.setdefault((event.agent, event.model), Use()).add(event)
            case ParametersIgnored() | ClientToolArguments() | Completed() | Failed() | Cancelled():
                pass
        return None

    def summary(self, closing: Completed | Cancelled) -> Summary | None:
        """Return the object of the whole answer, if there are objects."""
        if not self._has_objects:
            return None
        costs = [use.cost for use in self._uses.values()]
        return Summary(
            type="turn.completed" if isinstance(closing, Completed) else "turn.cancelled",
            agent=closing.agent,
            agents=list(self._agents),
            tool_calls=self._tool_calls,
            usage=[_use_body(agent, model, use) for (agent, model), use in self._uses.items()],
            cost=UNSET if not costs or None in costs else rounded_cost(sum(cost or 0 for cost in costs)),
        )

    # --- what is told ---

    @property
    def _agent(self) -> str:
        return self._agents[-1] if self._agents else ""

    @property
    def _percent(self) -> int | UnsetType:
        percent = self._progress.percent
        return UNSET if percent is None else percent

    def _speaks(self) -> Note | None:
        if self._speaking == self._agent:
            return None
        self._speaking = self._agent
        noted = Noted("agent.speaking", self._agent, progress=self._percent)
        return Note(noted) if self._has_objects else None

    def _thinks(self, text: str) -> Note | None:
        speaks = self._speaks()
        if not self._has_reasoning or self._hides_details:
            return speaks
        return Note(speaks.noted if speaks else None, self._joints.join(text))

    def _hands_over(self, event: Handoff) -> Note | None:
        reason = "" if self._hides_details else event.reason
        self._progress.handed_over(event.source)
        noted = Noted(
            "handoff",
            event.source,
            event.source,
            event.target,
            reason=reason or UNSET,
            progress=self._percent,
        )
        self._agents.append(event.target)
        line = f"{event.source} hands over to {event.target}" + (f": {_short(reason)}" if reason else "")
        return self._note(noted, line, StatusData(f"{event.target} takes over", done=True))

    def _tool_starts(self, event: ToolStarted) -> Note | None:
        shown = "" if self._hides_details else event.arguments
        noted = Noted(
            "tool.started", event.agent, call_id=event.call_id, name=event.name, arguments=shown or UNSET
        )
        line = f"{event.agent} calls {event.name}" + (f" with {_short(shown)}" if shown else "")
        return self._note(noted, line, StatusData(f"{event.agent} uses {event.name}", done=False))

    def _tool_ends(self, event: ToolCompleted | ToolFailed) -> Note | None:
        is_well = isinstance(event, ToolCompleted)
        told = event.result if isinstance(event, ToolCompleted) else event.error
        shown = "" if self._hides_details else told
        noted = Noted(
            "tool.completed" if is_well else "tool.failed",
            self._agent,
            call_id=event.call_id,
            name=event.name,
            result=shown if is_well and not self._hides_details else UNSET,
            error=shown if not is_well and not self._hides_details else UNSET,
            seconds=round(event.seconds, 3),
        )
        line = f"{event.name} {'answered' if is_well else 'failed'} after {event.seconds:.2f} s"
        status = f"{event.name} {'answered' if is_well else 'failed'}"
        return self._note(
            noted, line + (f": {_short(shown)}" if shown else ""), StatusData(status, done=True)
        )

    def _asks_for_approval(self, event: ApprovalRequested) -> Note | None:
        noted = Noted(
            "approval.requested",
            self._agent,
            call_id=event.call_id,
            name=event.name,
            arguments=UNSET if self._hides_details else event.arguments,
            approval_id=event.approval_id,
        )
        line = f"{event.name} waits for approval"
        return self._note(noted, line, StatusData(line, done=True))

    def _approval_is_decided(self, event: ApprovalDecided) -> Note | None:
        noted = Noted(
            "approval.decided",
            self._agent,
            call_id=event.call_id,
            name=event.name,
            approval_id=event.approval_id,
            decision=event.decision,
            by=event.by,
        )
        line = f"{event.name} was {'approved' if event.decision == 'approve' else 'refused'}"
        return self._note(noted, line, StatusData(line, done=True))

    def _note(self, noted: Noted, line: str, status: StatusData) -> Note | None:
        """Tell all of it that is wanted; a line is a paragraph of its own."""
        if not self._has_reasoning:
            return Note(noted)
        self._joints.pause()
        reasoning = self._joints.join(line)
        self._joints.pause()
        return Note(
            noted if self._has_objects else None,
            reasoning,
            StatusEvent(data=status) if self._has_status else None,
        )


def _short(text: str) -> str:
    """Return the text as part of one line."""
    line = " ".join(text[: 4 * MAX_LINE].split())
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"


def _use_body(agent: str, model: str, use: Use) -> UseBody:
    return UseBody(
        agent=agent,
        model=model,
        calls=use.calls,
        prompt_tokens=use.usage.prompt,
        completion_tokens=use.usage.completion,
        total_tokens=use.usage.total,
        cached_tokens=use.usage.cached,
        cost=UNSET if use.cost is None else rounded_cost(use.cost),
    )
