"""The handoff extension: active agent, handoffs, server tool calls and usage, next to the message.

It uses places that clients ignore: a ``handoff`` object at the top level of a chunk or completion, and lines in
``reasoning_content``, which frontends show as the model's reasoning. Types and keys of the objects are those of the
event feed. ``docs/extension.md`` documents them; types and keys can be added, but not changed.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from proxy.events import (
    AgentSpeaking,
    ApprovalDecided,
    ApprovalRequested,
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    CompactionMethod,
    Completed,
    ContextCompacted,
    DelegateEvent,
    Event,
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
from proxy.messages import EventsMode
from proxy.wire.chat.answer_text import TextJoiner
from proxy.wire.chat.extension_objects import (
    ExtensionEvent,
    ExtensionUpdate,
    ModelUsageBody,
    StatusData,
    StatusEvent,
    Summary,
)
from proxy.wire.turn_summary import ModelUses, StepProgress, add_call, rounded_cost

_WITH_OBJECTS = frozenset(("extension", "all"))
"""Modes in which the response has the objects of the extension."""
_WITH_REASONING = frozenset(("reasoning", "all"))
"""Modes in which ``reasoning_content`` has the activity of the team."""
_UNREPORTED = frozenset((Completed, Failed, Cancelled, ParametersIgnored, ClientToolArguments))
"""Events without an update."""
MAX_LINE = 240
"""Maximum length of content of a model or tool in a line of ``reasoning_content``, in characters."""


_COMPACTED: dict[CompactionMethod, str] = {
    "shortened": "Older tool results were shortened",
    "summarised": "Older messages were summarised",
    "dropped": "Older messages were left out",
}


class HandoffExtensionEncoder(Struct):
    """Encodes the extension of one turn. It needs every event in order, except text deltas behind a text delta.

    Objects of updates are for streams: if only reasoning and summary are used, it needs no text deltas at all.
    """

    mode: EventsMode
    hides_details: bool = False
    """Omit content of models and tools: reasoning, arguments, results, errors and handoff reasons."""
    has_status: bool = False
    """Add status events for Open WebUI, if the mode has reasoning."""
    _agents: list[str] = []
    _agent: str = ""
    """The last of ``_agents``."""
    _reported_agent: str = ""
    _status_agent: str = ""
    """The agent that the last status names as active; empty if that status is about something else."""
    _tool_calls: int = 0
    _uses: ModelUses = {}
    _joints: TextJoiner = field(default_factory=TextJoiner)
    _progress: StepProgress | None = None
    """None for a team without steps."""
    _delegates: dict[str, HandoffExtensionEncoder] = {}
    """By the call that started the delegate."""
    _member_team: HandoffExtensionEncoder | None = None
    _callers: dict[str, str] = {}
    """The agents that called the running tools."""

    def encode(self, event: Event) -> ExtensionUpdate | None:
        """Return the update for an event, which precedes the delta of the event; None if there is none."""
        # The most frequent events first: a pattern that does not match takes longer than a function call.
        if type(event) is TextDelta:
            return self._output()
        if type(event) is ModelCalled:
            self._joints.is_paused = True
            add_call(self._uses, event)
            return None
        if type(event) is Started:
            self._agents.append(event.agent)
            self._agent = event.agent
            if event.steps:
                self._progress = StepProgress(event.steps)
            return None
        if type(event) in _UNREPORTED:
            return None
        match event:
            case ReasoningDelta():
                return self._reasoning_delta(event.text)
            case Handoff():
                return self._handoff(event)
            case ToolStarted():
                self._tool_calls += 1
                return self._tool_started(event)
            case ToolCompleted() | ToolFailed():
                return self._tool_ended(event)
            case TextDelta() | RefusalDelta() | ClientToolCall():
                return self._output()
            case ApprovalRequested():
                return self._approval_requested(event)
            case ApprovalDecided():
                return self._approval_decided(event)
            case DelegateEvent():
                self._add_uses(event)
                return self._delegate_event(event)
            case MemberTeamEvent():
                self._tool_calls += isinstance(innermost(event), ToolStarted)
                return self._member_team_event(event)
            case AgentSpeaking():
                return ExtensionUpdate(ExtensionEvent("agent.speaking", event.agent))
            case ContextCompacted():
                self._add_uses(event)
                return self._compacted(event)
            case (
                Started()
                | ModelCalled()
                | Completed()
                | Failed()
                | Cancelled()
                | ParametersIgnored()
                | ClientToolArguments()
            ):
                pass
        return None

    def summary(self, closing: Completed | Cancelled) -> Summary | None:
        """Return the object of the complete response; None if the mode has no objects."""
        if self.mode not in _WITH_OBJECTS:
            return None
        uses: list[ModelUsageBody] = []
        cost: float | None = 0.0 if self._uses else None
        for (agent, model), use in self._uses.items():
            usage = use.usage
            uses.append(
                ModelUsageBody(
                    agent=agent,
                    model=model,
                    calls=use.calls,
                    prompt_tokens=usage.prompt,
                    completion_tokens=usage.completion,
                    total_tokens=usage.prompt + usage.completion,
                    cached_tokens=usage.cached,
                    cost=UNSET if use.cost is None else rounded_cost(use.cost),
                )
            )
            cost = None if cost is None or use.cost is None else cost + use.cost
        return Summary(
            type="turn.completed" if type(closing) is Completed else "turn.cancelled",
            agent=closing.agent,
            agents=self._agents,
            tool_calls=self._tool_calls,
            usage=uses,
            cost=UNSET if cost is None else rounded_cost(cost),
        )

    # --- events ---

    def _add_uses(self, event: Event) -> None:
        for call in model_calls(event):
            add_call(self._uses, call)

    @property
    def _percent(self) -> int | UnsetType:
        percent = None if self._progress is None else self._progress.percent
        return UNSET if percent is None else percent

    def _agent_speaking(self) -> ExtensionUpdate | None:
        if self._reported_agent == self._agent:
            return None
        self._reported_agent = self._agent
        extension_event = ExtensionEvent("agent.speaking", self._agent, progress=self._percent)
        return ExtensionUpdate(extension_event) if self.mode in _WITH_OBJECTS else None

    def _output(self) -> ExtensionUpdate | None:
        """Return the update before output of the active agent, with a status that names it, unless the last one does.

        Open WebUI keeps the last status of a turn above the message.
        """
        update = self._agent_speaking()
        if not self.has_status or self._status_agent == self._agent or self.mode not in _WITH_REASONING:
            return update
        self._status_agent = self._agent
        status = StatusEvent(data=StatusData(self._agent, done=True))
        return msgspec.structs.replace(update or ExtensionUpdate(), status=status)

    def _reasoning_delta(self, text: str) -> ExtensionUpdate | None:
        first = self._agent_speaking()
        if self.mode not in _WITH_REASONING or self.hides_details:
            return first
        return ExtensionUpdate(first.event if first else None, self._joints.join(text))

    def _handoff(self, event: Handoff) -> ExtensionUpdate | None:
        reason = "" if self.hides_details else event.reason
        if self._progress is not None:
            self._progress.add_handoff(event.source)
        extension_event = ExtensionEvent(
            "handoff",
            event.source,
            event.source,
            event.target,
            reason=reason or UNSET,
            progress=self._percent,
        )
        self._agents.append(event.target)
        self._agent = event.target
        line = f"{event.source} hands over to {event.target}" + (f": {_short(reason)}" if reason else "")
        return self._update(extension_event, line, StatusData(f"{event.target} takes over", done=True))

    def _tool_started(self, event: ToolStarted) -> ExtensionUpdate | None:
        shown = "" if self.hides_details else event.arguments
        self._callers[event.call_id] = event.agent
        extension_event = ExtensionEvent(
            "tool.started", event.agent, call_id=event.call_id, name=event.name, arguments=shown or UNSET
        )
        line = f"{event.agent} calls {event.name}" + (f" with {_short(shown)}" if shown else "")
        return self._update(extension_event, line, StatusData(f"{event.agent} uses {event.name}", done=False))

    def _tool_ended(self, event: ToolCompleted | ToolFailed) -> ExtensionUpdate | None:
        is_success = isinstance(event, ToolCompleted)
        content = event.result if isinstance(event, ToolCompleted) else event.error
        shown = "" if self.hides_details else content
        extension_event = ExtensionEvent(
            "tool.completed" if is_success else "tool.failed",
            self._callers.pop(event.call_id, self._agent),
            call_id=event.call_id,
            name=event.name,
            result=shown if is_success and not self.hides_details else UNSET,
            error=shown if not is_success and not self.hides_details else UNSET,
            seconds=round(event.seconds, 3),
        )
        line = f"{event.name} {'answered' if is_success else 'failed'} after {event.seconds:.2f} s"
        status = f"{event.name} {'answered' if is_success else 'failed'}"
        return self._update(
            extension_event, line + (f": {_short(shown)}" if shown else ""), StatusData(status, done=True)
        )

    def _approval_requested(self, event: ApprovalRequested) -> ExtensionUpdate | None:
        extension_event = ExtensionEvent(
            "approval.requested",
            self._agent,
            call_id=event.call_id,
            name=event.name,
            arguments=UNSET if self.hides_details else event.arguments,
            approval_id=event.approval_id,
        )
        line = f"{event.name} waits for approval"
        return self._update(extension_event, line, StatusData(line, done=True))

    def _approval_decided(self, event: ApprovalDecided) -> ExtensionUpdate | None:
        extension_event = ExtensionEvent(
            "approval.decided",
            self._agent,
            call_id=event.call_id,
            name=event.name,
            approval_id=event.approval_id,
            decision=event.decision,
            by=event.by,
        )
        line = f"{event.name} was {'approved' if event.decision == 'approve' else 'refused'}"
        return self._update(extension_event, line, StatusData(line, done=True))

    def _delegate_event(self, event: DelegateEvent) -> ExtensionUpdate | None:
        """Return the update of a delegate's own event, without its text: that is the result of the call."""
        if event.call_id not in self._delegates:
            self._delegates[event.call_id] = HandoffExtensionEncoder(
                self.mode, self.hides_details, self.has_status
            )
        if isinstance(event.event, ReasoningDelta):
            return None
        update = self._delegates[event.call_id].encode(event.event)
        if update is None:
            return None
        inner = update.event
        if inner is not None:
            inner = msgspec.structs.replace(inner, agent=event.agent)
        wrapped = ExtensionEvent("delegate.event", self._agent, call_id=event.call_id)
        return self._wrapped(wrapped, update, inner)

    def _member_team_event(self, event: MemberTeamEvent) -> ExtensionUpdate | None:
        """Return the update of an event of a team inside of the active agent."""
        if self._member_team is None:
            self._member_team = HandoffExtensionEncoder(self.mode, self.hides_details, self.has_status)
        update = self._member_team.encode(event.event)
        if update is None:
            return None
        inner = update.event
        if inner is not None:
            progress = UNSET if event.progress is None else event.progress
            inner = msgspec.structs.replace(inner, agent=event.agent, progress=progress)
        return self._wrapped(ExtensionEvent("member.event", self._agent), update, inner)

    def _wrapped(
        self, wrapper: ExtensionEvent, update: ExtensionUpdate, inner: ExtensionEvent | None
    ) -> ExtensionUpdate | None:
        """Return the update of an inner event as one of this turn."""
        event = None
        if inner is not None and self.mode in _WITH_OBJECTS:
            event = msgspec.structs.replace(wrapper, event=inner)
        reasoning = ""
        if update.reasoning:
            self._joints.pause()
            reasoning = self._joints.join(update.reasoning.lstrip("\n"))
            self._joints.pause()
        if event is None and not reasoning and update.status is None:
            return None
        if update.status is not None:
            self._status_agent = ""
        return ExtensionUpdate(event, reasoning, update.status)

    def _compacted(self, event: ContextCompacted) -> ExtensionUpdate | None:
        extension_event = ExtensionEvent(
            "context.compacted",
            event.agent,
            seconds=round(event.seconds, 3),
            method=event.method,
            tokens_before=event.tokens_before,
            tokens_after=event.tokens_after,
        )
        line = _COMPACTED[event.method]
        return self._update(extension_event, line, StatusData(line, done=True))

    def _update(self, event: ExtensionEvent, line: str, status: StatusData) -> ExtensionUpdate | None:
        """Return the parts that the mode includes; a line of reasoning is a separate paragraph."""
        if self.mode not in _WITH_REASONING:
            return ExtensionUpdate(event)
        self._status_agent = ""
        self._joints.pause()
        reasoning = self._joints.join(line)
        self._joints.pause()
        return ExtensionUpdate(
            event if self.mode in _WITH_OBJECTS else None,
            reasoning,
            StatusEvent(data=status) if self.has_status else None,
        )


def _short(text: str) -> str:
    """Return the text on one line, shortened."""
    line = " ".join(text[: 4 * MAX_LINE].split())
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"
