"""Teams made for a test, and a sink that remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy.agents.agent import Agent, HandoffTarget
from proxy.agents.dispatch import DirectDispatcher, Dispatcher
from proxy.agents.team import AgentTeam, TeamFacts
from proxy.errors import ToolError
from proxy.events import Event
from proxy.messages import FunctionTool, Item, Message
from proxy.providers.model import Model
from proxy.teamfiles.definitions import ClientTools, Limits
from proxy.tools.handoff_tools import handoff_tool_spec
from proxy.tools.port import Tool, ToolContext
from proxy.turns.turn import Turn


class RememberingSink:
    """Keeps every event; there is always room."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def emit_batch(self, events: Sequence[Event]) -> bool:
        self.events.extend(events)
        return True

    def open_relay(self) -> None:
        return None

    async def attended(self) -> None:
        pass

    async def drain(self) -> None:
        return None


class FixedTool:
    """A tool that gives the same result, or raises the same error, and remembers its calls."""

    def __init__(self, name: str, result: str | Exception = "done", *, has_effects: bool = False) -> None:
        self.spec = FunctionTool(name, f"the tool {name}", {"type": "object", "properties": {}})
        self.has_effects = has_effects
        self.calls: list[dict[str, object]] = []
        self.keys: list[str] = []
        self._result = result

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        self.calls.append(arguments)
        self.keys.append(context.call_key)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def agent(
    name: str,
    model: Model,
    *,
    tools: Sequence[Tool] = (),
    hands_to: Sequence[str] = (),
    client_tools: ClientTools = "auto",
    approvals: Sequence[str] = (),
    max_parallel_tools: int = 8,
) -> Agent:
    targets: Mapping[str, HandoffTarget] = {
        f"transfer_to_{target}": HandoffTarget(
            handoff_tool_spec(f"transfer_to_{target}", target, "when asked"), target
        )
        for target in hands_to
    }
    return Agent(
        name=name,
        instructions=f"You are {name}.",
        model=model,
        tools={tool.spec.name: tool for tool in tools},
        handoff_targets=targets,
        client_tools=client_tools,
        approvals=frozenset(approvals),
        max_parallel_tools=max_parallel_tools,
    )


async def team_of(
    *agents: Agent, limits: Limits | None = None, dispatcher: Dispatcher | None = None, name: str = "shop"
) -> AgentTeam:
    """A started team; the first agent is the entry."""
    dispatcher = dispatcher or DirectDispatcher()
    facts = TeamFacts(name=name, entry=agents[0].name, limits=limits or Limits(), data_dir=Path())
    team = AgentTeam(facts, agents, dispatcher, side_model=agents[0].model)
    await dispatcher.start()
    return team


def turn_of(*said: Message, agent: str, turn_id: str = "chatcmpl-1") -> Turn:
    return Turn(
        id=turn_id,
        conversation_id="conv_1",
        caller="c",
        agent=agent,
        context=[Item(message) for message in said],
    )


SORRY = ToolError("the shelf is empty")
