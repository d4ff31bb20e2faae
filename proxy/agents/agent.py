"""The definition of an agent, with all names resolved."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct, field

from proxy.members.port import Member
from proxy.messages import FunctionTool, HandoffHistory, Parameters
from proxy.providers.context_windows import ContextWindow
from proxy.providers.model import Model
from proxy.teamfiles.definitions import ClientTools, Limits
from proxy.tools.mcp.argument_schema import ArgumentSchema
from proxy.tools.port import Tool


class HandoffTarget(Struct, frozen=True):
    """A handoff target: the tool that the model sees, and the agent that becomes active."""

    spec: FunctionTool
    agent: str
    when: str = ""
    history: HandoffHistory = "all"
    returns: bool = False
    """Control returns when the target has answered."""
    input: ArgumentSchema | None = None
    """The schema of structured handover data."""


class Delegation(Struct, frozen=True):
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


class Agent(Struct, frozen=True):
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
