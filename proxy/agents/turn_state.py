"""The state of a turn that the agents which work on it share, and the runs of delegates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from proxy.agents.agent import Delegation
from proxy.agents.cacheable_prompt import CacheablePrompt
from proxy.agents.call import Call, open_call
from proxy.agents.compaction.context_view import ContextMemory
from proxy.messages import DelegateRecord
from proxy.providers.model import Model
from proxy.teamfiles.definitions import Limits
from proxy.turns.contract import Sink, TeamOutcome
from proxy.turns.steps import TurnStep
from proxy.turns.turn import ApprovalRequest, Turn

if TYPE_CHECKING:
    from proxy.agents.compaction.compactor import Compactor

EVENT_TEXT_LIMIT = 1000
"""Maximum number of characters of arguments and results in events. The model gets the complete text."""
TOO_MANY_CALLS = "error: the limit of tool calls is reached; answer with what is known"
"""The result of a call beyond the limit of tool calls."""


class DelegatePause(Struct, frozen=True):
    """A delegate that waits for approvals; ``call_id`` is the call that started it."""

    call_id: str
    requests: tuple[ApprovalRequest, ...]
    record: DelegateRecord


class TurnState(Struct):
    """The state of one turn, shared by all agents that work on it: its limits, and what was used of them.

    A delegate has a separate state, whose use also counts for its ``parent``. It leaves one model call to each agent
    that waits for it, so that excess delegates are error results and not the end of the turn.
    """

    team: str
    turn: Turn
    sink: Sink
    limits: Limits
    data_dir: Path
    max_tool_result_bytes: int = 64 * 1024
    max_client_tools: int = 32
    max_answer_bytes: int = 8 * 1024 * 1024
    handoffs: int = 0
    handed_over: tuple[str, str] = ("", "")
    """The agent that handed over last, and its reason."""
    model_calls: int = 0
    tool_calls: int = 0
    client_calls: int = 0
    completion_tokens: int = 0
    client_state_model: Model | None = None
    """The model of the first call, which is sent the provider state that the client sent."""
    cacheable_prompt: CacheablePrompt | None = None
    """How prompts are built if the team has ``prompt_cache``."""
    compactor: Compactor | None = None
    """Shortens contexts that are too long; None sends them as they are."""
    context_memory: ContextMemory = field(default_factory=ContextMemory)
    records_handoffs: bool = False
    """Whether handoffs are stored with their options, because some in the team have any."""
    run_delegate: RunDelegate | None = None
    parent: TurnState | None = None
    depth: int = 0
    """How many delegates are around this one."""
    pauses: dict[str, DelegatePause] = {}
    """Delegates that wait for approvals, by call id."""

    def add_model_call(self) -> None:
        """Count a model call."""
        self.model_calls += 1
        if self.parent is not None:
            self.parent._add_delegated_model_call()

    def _add_delegated_model_call(self) -> None:
        # Members report calls that they have made already, possibly more than were left.
        if self.model_calls < self.limits.max_model_calls - 1:
            self.model_calls += 1
        if self.parent is not None:
            self.parent._add_delegated_model_call()

    def add_tool_call(self) -> None:
        """Count a call of a server tool."""
        self.tool_calls += 1
        if self.parent is not None:
            self.parent.add_tool_call()

    def add_tokens(self, tokens: int) -> None:
        """Count completion tokens."""
        self.completion_tokens += tokens
        if self.parent is not None:
            self.parent.add_tokens(tokens)

    @property
    def can_delegate(self) -> bool:
        """Whether agents may call delegates at this depth."""
        return self.run_delegate is not None and self.depth < self.limits.max_delegate_depth

    def resume(self, step: TurnStep) -> None:
        """Continue after a step that another worker recorded."""
        self.model_calls, self.tool_calls = step.model_calls, step.tool_calls
        self.client_calls, self.handoffs = step.client_calls, step.handoffs
        self.completion_tokens, self.handed_over = step.completion_tokens, step.handed_over

    async def save_step(self, calls: Sequence[Call] = ()) -> None:
        """Record a step with its open calls, if another worker may have to continue the turn.

        Raises:
            StoreUnavailable, TurnLeaseLost: See ``StepLog.save``.
        """
        steps = self.turn.steps
        if steps is None or not steps.is_needed:
            return
        await steps.save(
            TurnStep(
                agent=self.turn.agent,
                model_calls=self.model_calls,
                tool_calls=self.tool_calls,
                client_calls=self.client_calls,
                handoffs=self.handoffs,
                completion_tokens=self.completion_tokens,
                handed_over=self.handed_over,
                ran_effects=self.turn.ran_effects,
                ran_tools=self.turn.ran_tools,
                calls=[open_call(call) for call in calls],
            )
        )

    def is_at_limit(self, reserved: int = 0) -> bool:
        """Whether a limit leaves no more than ``reserved`` model calls, or no tokens."""
        limits = self.limits
        return (
            self.model_calls + reserved >= limits.max_model_calls
            or (limits.max_messages is not None and self._messages + reserved >= limits.max_messages)
            or (limits.max_output_tokens is not None and self.completion_tokens >= limits.max_output_tokens)
            or (self.parent is not None and self.parent.is_at_limit(reserved + 1))
        )

    def can_run_tool(self, reserved: int = 0) -> bool:
        """Whether another server tool may run; ``reserved`` model calls have to be possible after it."""
        limits = self.limits
        return (
            self.tool_calls < limits.max_tool_calls
            and (limits.max_messages is None or self._messages + reserved < limits.max_messages)
            and (self.parent is None or self.parent.can_run_tool(reserved + 1))
        )

    @property
    def _messages(self) -> int:
        """The number of messages that ``max_messages`` limits."""
        return 1 + self.model_calls + self.tool_calls


class DelegateJob(Struct, frozen=True):
    """One run of a delegate: its turn, where its events go, the state of its caller, and what it runs."""

    delegation: Delegation
    turn: Turn
    sink: Sink
    parent: TurnState


RunDelegate = Callable[[DelegateJob], Awaitable[TeamOutcome]]
"""Runs a delegate."""
