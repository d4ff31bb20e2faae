"""The parts of an agent run: the agent, the state of the turn that it shares with other agents, and tool calls."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import msgspec

from proxy.agents.compaction.context_view import ContextMemory
from proxy.members.port import Member
from proxy.messages import DelegateRecord, FunctionCall, FunctionTool, HandoffHistory, Parameters, ToolCall
from proxy.providers.context_windows import ContextWindow
from proxy.providers.model import Model
from proxy.teamfiles.definitions import ClientTools, Limits
from proxy.tools.mcp.argument_schema import ArgumentSchema
from proxy.tools.port import Tool
from proxy.turns.contract import Sink
from proxy.turns.steps import OpenCall, TurnStep
from proxy.turns.turn import ApprovalRequest, Turn

if TYPE_CHECKING:
    from proxy.agents.cacheable_prompt import CacheablePrompt
    from proxy.agents.compaction.compactor import Compactor
    from proxy.agents.delegation import RunDelegate

EVENT_TEXT_LIMIT = 1000
"""Maximum number of characters of arguments and results in events. The model gets the complete text."""
TOO_MANY_CALLS = "error: the limit of tool calls is reached; answer with what is known"
"""The result of a call beyond the limit of tool calls."""


@dataclass(frozen=True, slots=True)
class HandoffTarget:
    """A handoff target: the tool that the model sees, and the agent that becomes active."""

    spec: FunctionTool
    agent: str
    when: str = ""
    history: HandoffHistory = "all"
    returns: bool = False
    """Control returns when the target has answered."""
    input: ArgumentSchema | None = None
    """The schema of structured handover data."""


@dataclass(frozen=True, slots=True)
class Delegation:
    """An agent or team that an agent can call with a task: the tool that the model sees, and what it runs."""

    spec: FunctionTool
    agent: str = ""
    """Agent of the same team, if not a team."""
    team: str = ""
    has_conversation: bool = False
    """Whether the delegate sees the conversation before the task."""
    seconds: float = 120.0
    limits: Limits | None = None
    """Of each run; the limits of its team if None."""

    @property
    def name(self) -> str:
        """The name of the agent or team."""
        return self.agent or self.team


@dataclass(frozen=True, slots=True)
class Agent:
    """The definition of an agent with all names resolved to models and tools."""

    name: str
    instructions: str
    model: Model
    tools: Mapping[str, Tool] = field(default_factory=dict)
    handoff_targets: Mapping[str, HandoffTarget] = field(default_factory=dict)
    delegations: Mapping[str, Delegation] = field(default_factory=dict)
    client_tools: ClientTools = "auto"
    parameters: Parameters = field(default_factory=Parameters)
    max_parallel_tools: int = 8
    tool_call_timeout: float = 30.0
    approvals: Collection[str] = frozenset()
    """Names of the agent's tools whose calls a person has to approve."""
    member: Member | None = None
    """The code of an agent that does not consist of instructions and a model; its model is for side requests."""
    window: ContextWindow = field(default_factory=ContextWindow)
    """Of the model."""


@dataclass(frozen=True, slots=True)
class DelegatePause:
    """A delegate that waits for approvals; ``call_id`` is the call that started it."""

    call_id: str
    requests: tuple[ApprovalRequest, ...]
    record: DelegateRecord


@dataclass(slots=True)
class TurnState:
    """The state of one turn, shared by all agents that work on it: its limits, and what was used of them.

    A delegate has a separate state, whose use also counts for its ``parent``.
    """

    team: str
    turn: Turn
    sink: Sink
    limits: Limits
    data_dir: Path
    max_tool_result_bytes: int = 64 * 1024
    max_client_tools: int = 32
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
    pauses: dict[str, DelegatePause] = field(default_factory=dict)
    """Delegates that wait for approvals, by call id."""

    def add_model_call(self) -> None:
        """Count a model call."""
        self.model_calls += 1
        if self.parent is not None:
            self.parent.add_model_call()

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
                calls=[_open_call(call) for call in calls],
            )
        )

    @property
    def has_all_messages(self) -> bool:
        """Whether the turn has as many messages as ``max_messages`` allows."""
        limit = self.limits.max_messages
        return limit is not None and 1 + self.model_calls + self.tool_calls >= limit

    @property
    def is_at_limit(self) -> bool:
        """Whether no further model call may start."""
        limit = self.limits.max_output_tokens
        return (
            self.model_calls >= self.limits.max_model_calls
            or self.has_all_messages
            or (limit is not None and self.completion_tokens >= limit)
            or (self.parent is not None and self.parent.is_at_limit)
        )

    @property
    def can_run_tool(self) -> bool:
        """Whether another server tool may run."""
        is_within = self.tool_calls < self.limits.max_tool_calls and not self.has_all_messages
        return is_within and (self.parent is None or self.parent.can_run_tool)


CallKind = Literal["server", "approval", "handoff", "client", "surplus", "unknown"]
"""How a call is handled: run, put before a person for approval, run as a handoff, or returned to the client. Calls of
the last two kinds get an error as their result: one client call too many, or a tool that does not exist."""
_STORED_KINDS: Mapping[CallKind, str] = {"handoff": "delegate"}
"""Names of kinds in checkpoints, which workers of an earlier version can read too."""


@dataclass(slots=True)
class Call:
    """A tool call that a model made. ``id`` is generated by the proxy.

    ``is_resumed``: another worker was about to run it, or was running it, when it died.
    """

    id: str
    name: str
    kind: CallKind
    client_index: int = -1
    arguments: list[str] = field(default_factory=list)
    is_resumed: bool = False


def _open_call(call: Call) -> OpenCall:
    kind = _STORED_KINDS.get(call.kind, call.kind)
    return OpenCall(call.id, call.name, kind, call.client_index, "".join(call.arguments))


def resumed_call(call: OpenCall) -> Call:
    """Return a call of a checkpoint."""
    kind = next((kind for kind, stored in _STORED_KINDS.items() if stored == call.kind), call.kind)
    return Call(
        call.id, call.name, cast(CallKind, kind), call.client_index, [call.arguments], is_resumed=True
    )


def wire_call(call: Call) -> ToolCall:
    """Return the call as it is stored, with a valid name, and with arguments that are JSON.

    Some providers reject later requests that contain an invalid call. Its result describes what was wrong with it.
    """
    arguments = "".join(call.arguments) or "{}"
    if call.kind != "client":
        try:
            msgspec.json.decode(arguments)
        except (msgspec.DecodeError, ValueError, RecursionError):
            arguments = "{}"
    return ToolCall(call.id, FunctionCall(clean_name(call.name), arguments))


def clean_name(name: str) -> str:
    """Return the name with invalid characters replaced.

    OpenAI accepts letters, digits, ``_`` and ``-``, at most 64 of them (API reference, function tools, ``name``).
    """
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "unnamed"


def new_call_id() -> str:
    """Generate the id of a tool call. Providers repeat ids or send none."""
    return f"call_{secrets.token_hex(12)}"
