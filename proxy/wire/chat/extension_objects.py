"""Objects of the handoff extension. Types and keys can be added, but not changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from proxy.events import (
    CompactionMethod,
    DecidedBy,
    Decision,
)


class ExtensionEvent(Struct, frozen=True, omit_defaults=True, rename={"source": "from", "target": "to"}):
    """The ``handoff`` object of a chunk; only fields of its type are set.

    ``agent`` is the active agent; of a tool call, the agent that made it.
    """

    type: Literal[
        "agent.speaking",
        "handoff",
        "tool.started",
        "tool.completed",
        "tool.failed",
        "approval.requested",
        "approval.decided",
        "context.compacted",
        "delegate.event",
        "member.event",
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
    method: CompactionMethod | UnsetType = UNSET
    tokens_before: int | UnsetType = UNSET
    tokens_after: int | UnsetType = UNSET
    event: ExtensionEvent | UnsetType = UNSET
    """An event of a delegate, which ``call_id`` started, or of a team inside of the active agent."""
    progress: int | UnsetType = UNSET


class ModelUsageBody(Struct, frozen=True, omit_defaults=True):
    """Usage of one model by one agent."""

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
    """The ``handoff`` object of a complete response.

    ``agents`` are the active agents in order. ``cost`` is present if every model call has a price.
    """

    type: Literal["turn.completed", "turn.cancelled"]
    agent: str
    agents: list[str]
    tool_calls: int
    usage: list[ModelUsageBody]
    cost: float | UnsetType = UNSET


class StatusData(Struct, frozen=True):
    """A status that Open WebUI shows above a message, with an animation until ``done`` is true."""

    description: str
    done: bool


class StatusEvent(Struct, frozen=True, kw_only=True):
    """The ``event`` of a chunk in the format of Open WebUI."""

    type: Literal["status"] = "status"
    data: StatusData


class Capabilities(Struct, frozen=True):
    """Capabilities of a model beyond text."""

    streaming: bool
    handoffs: bool
    server_tools: bool
    client_tools: bool
    images: bool


class TeamBody(Struct, frozen=True, omit_defaults=True):
    """The ``handoff`` object of a model that is a team or an agent of a team; ``tools`` are server tools."""

    agents: Sequence[str]
    entry: str
    tools: Sequence[str]
    capabilities: Capabilities
    description: str | UnsetType = UNSET
    examples: Sequence[str] = ()
    demo: bool = False


class ExtensionUpdate(Struct, frozen=True):
    """What the extension adds for one event; at least one field is set."""

    event: ExtensionEvent | None = None
    reasoning: str = ""
    status: StatusEvent | None = None
