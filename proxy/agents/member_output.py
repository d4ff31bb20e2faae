"""What a member yields, as events of its turn: within the limits of the team and the size of an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.call import clean_name, new_call_id
from proxy.agents.member_values import InvalidMemberValue, checked_event
from proxy.agents.turn_state import EVENT_TEXT_LIMIT, TurnState
from proxy.errors import AgentFailed, UpstreamBadRequest
from proxy.events import (
    Event,
    MemberTeamEvent,
    ModelCalled,
    ParametersIgnored,
    ReasoningDelta,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    innermost,
    with_innermost,
)
from proxy.members.port import (
    HandOver,
    Incomplete,
    MemberEvent,
    ModelUsed,
    Reasoning,
    TeamEvent,
    Text,
    ToolBegan,
    ToolEnded,
    Unused,
)
from proxy.messages import FinishReason

logger = logging.getLogger(__name__)

_NOT_ENDED = "the turn ended before the tool did"
_EVENT_BYTES = 256
"""What an event counts for the maximum size of an answer, besides its text."""


class MemberOutput:
    """The events of one run; ``emit`` emits those that an earlier turn has not emitted already."""

    def __init__(self, agent: Agent, state: TurnState, emit: Callable[[Event], None]) -> None:
        self._agent = agent
        self._state = state
        self._emit = emit
        self._began: dict[str, tuple[str, str, float]] = {}
        """Id, name and time of running tools of the member, by the member's id of the call."""
        self._began_inside: dict[str, tuple[MemberTeamEvent, float]] = {}
        """The starts of running tools of a team inside of the member, by the id of the call, and their times."""
        self._model_began = time.monotonic()
        self._answer_bytes = 0
        self._is_at_limit = False
        self.is_stopped = False
        """Whether a limit of the team has ended the answer."""
        self._incomplete: FinishReason | None = None
        """Why the answer is incomplete, as the member reported."""

    @property
    def finish_reason(self) -> FinishReason:
        """The finish reason of the answer."""
        return "length" if self.is_stopped else self._incomplete or "stop"

    def checked(self, event: object) -> MemberEvent:
        """Return what the member yielded, a string as ``Text``.

        Raises:
            AgentFailed: It is not an event.
        """
        try:
            return checked_event(event)
        except InvalidMemberValue as invalid:
            facts = {"agent": self._agent.name, "value": str(invalid)}
            logger.warning("member yielded a value that is not an event", extra=facts)
        raise AgentFailed(f"The agent '{self._agent.name}' yielded a value that is not an event.")

    def handle(self, event: MemberEvent) -> None:
        """Emit an event of the member.

        Raises:
            AgentFailed: It yielded too much.
            UpstreamBadRequest: It cannot answer in the form that the request requires.
        """
        if self._is_at_limit and isinstance(event, Text | ToolBegan | TeamEvent):
            # The answer continues behind the last model call that the limits allow.
            self.is_stopped = True
            return
        match event:
            case Text():
                if event.text:
                    self.count(event.text, is_event=False)
                    self._emit(TextDelta(event.text))
            case Reasoning():
                if event.text:
                    self.count(event.text, is_event=False)
                    self._emit(ReasoningDelta(event.text))
            case ToolBegan():
                self._tool_began(event)
            case ToolEnded():
                self._tool_ended(event)
            case TeamEvent():
                self.count()
                self._team_event(event.event)
            case ModelUsed():
                self.count()
                self._model_used(event)
            case Unused():
                self._unused(event.names)
            case Incomplete():
                self._incomplete = event.reason
            case HandOver():
                raise AssertionError("a handover ends the run")

    def count(self, text: str = "", *, is_event: bool = True) -> None:
        """Count an event, or a piece of text, for the maximum size of an answer.

        Raises:
            AgentFailed: The answer is too large.
        """
        self._answer_bytes += len(text.encode(errors="replace")) + (_EVENT_BYTES if is_event else 0)
        if self._answer_bytes > self._state.max_answer_bytes:
            raise AgentFailed(f"The answer of the agent '{self._agent.name}' exceeds the size limit.")

    def close_inner_tools(self) -> None:
        """Emit the ends of tools of a team inside of the member that have none."""
        for began, since in self._began_inside.values():
            tool = innermost(began)
            assert isinstance(tool, ToolStarted)
            ended = ToolFailed(tool.call_id, tool.name, _NOT_ENDED, time.monotonic() - since)
            self._emit(with_innermost(began, ended))
        self._began_inside.clear()

    def _count_tool_call(self) -> None:
        state = self._state
        state.add_tool_call()
        if state.tool_calls > state.limits.max_tool_calls:
            # The call has begun already, so that it cannot be answered with an error.
            self.is_stopped = True

    def _team_event(self, event: MemberTeamEvent) -> None:
        match innermost(event):
            case ToolStarted() as tool:
                self._count_tool_call()
                self._began_inside[tool.call_id] = event, time.monotonic()
            case ToolCompleted() | ToolFailed() as tool if self._began_inside.pop(tool.call_id, None) is None:
                return
            case _:
                pass
        self._emit(event)

    def _tool_began(self, event: ToolBegan) -> None:
        self._count_tool_call()
        call_id, name = new_call_id(), clean_name(event.name)
        self._began[event.call_id] = call_id, name, time.monotonic()
        agent = f"{self._agent.name}/{event.agent}" if event.agent else self._agent.name
        self._emit(ToolStarted(call_id, name, event.arguments[:EVENT_TEXT_LIMIT], agent))

    def _tool_ended(self, event: ToolEnded) -> None:
        began = self._began.pop(event.call_id, None)
        if began is not None:
            call_id, name, since = began
            ended = ToolFailed if event.is_error else ToolCompleted
            self._emit(ended(call_id, name, event.result[:EVENT_TEXT_LIMIT], time.monotonic() - since))

    def _model_used(self, event: ModelUsed) -> None:
        state, now = self._state, time.monotonic()
        state.add_model_call()
        state.add_tokens(event.usage.completion)
        # Never held: an earlier turn has reported its own calls only.
        state.sink.emit(
            ModelCalled(self._agent.name, event.model, event.usage, now - self._model_began, event.cost)
        )
        self._model_began = now
        self._is_at_limit = state.is_at_limit()

    def _unused(self, names: Sequence[str]) -> None:
        turn = self._state.turn
        requested = set(msgspec.to_builtins(turn.parameters))
        unused = sorted(requested.intersection(names))
        for name in ("response_format", "logprobs", *(unused if turn.is_strict else ())):
            if name in unused:
                raise UpstreamBadRequest(param=name)
        if unused:
            self._state.sink.emit(ParametersIgnored(tuple(unused)))
