"""Prompts whose beginning stays the same over a handoff, for the prompt caches of providers (``prompt_cache``).

A provider caches the longest beginning of a request that it has seen before: tools, then messages. Therefore

- the first message has the instructions of all agents, and the tools are those of all agents, in a fixed order;
- the result of the handoff in the history says which agent is active; where no handoff does, a message is added;
- the client's system messages, which may contain the time, are directly before the newest user message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from proxy.agents.agent import Agent
from proxy.agents.compaction.context_view import ContextView
from proxy.agents.prompt import closed
from proxy.messages import (
    DeveloperMessage,
    FunctionTool,
    Item,
    Message,
    SystemMessage,
    ToolMessage,
    UserMessage,
    is_instruction,
    text_of,
)
from proxy.providers.model import CacheableLayout
from proxy.tools.handoff_tools import handoff_result, handoff_tool_spec
from proxy.tools.port import is_offered
from proxy.turns.turn import Turn

_PREAMBLE = """\
Several agents share this conversation, and you are one of them at a time. At the beginning you are {entry}. After a
transfer you are the agent that its result names. Follow only the instructions of the agent that you are, and call only
its tools."""
_SECTION = """\
# {name}

{instructions}

Tools of {name}: {tools}"""
_CHANGED = "From here on you are {agent}."


class CacheablePrompt(Struct, frozen=True):
    """What the prompts of all agents of a team have in common."""

    entry: str
    agents: Mapping[str, Agent]
    instructions: str
    handoffs: Sequence[FunctionTool]
    """Handoffs of all agents, each name once."""

    @classmethod
    def of(cls, entry: str, agents: Mapping[str, Agent]) -> CacheablePrompt | None:
        """Return the prompt for a team, None if one name stands for handoffs to different agents.

        If agents differ in when to hand off to a target, the tool's description leaves it to their instructions.
        """
        specs: dict[str, FunctionTool] = {}
        targets: dict[str, str] = {}
        differing: set[str] = set()
        for agent in agents.values():
            for name, target in agent.handoff_targets.items():
                if targets.setdefault(name, target.agent) != target.agent:
                    return None
                if specs.setdefault(name, target.spec) != target.spec:
                    differing.add(name)
        specs |= {name: handoff_tool_spec(name, targets[name]) for name in differing}
        if len(agents) == 1:
            return cls(entry, agents, agents[entry].instructions, list(specs.values()))
        sections = [_section(agent, differing) for agent in agents.values()]
        instructions = "\n\n".join([_PREAMBLE.format(entry=entry), *sections])
        return cls(entry, agents, instructions, list(specs.values()))

    def layout(
        self, active: Agent, turn: Turn, view: ContextView, client_tools: Sequence[FunctionTool]
    ) -> CacheableLayout:
        """Return messages and tools for a call of the active agent's model.

        ``view`` are the items that the model sees, ``client_tools`` those that any agent sees.
        """
        of_server = {
            name: tool.spec
            for agent in self.agents.values()
            for name, tool in agent.tools.items()
            if is_offered(tool)
        }
        of_server |= {
            name: one.spec for agent in self.agents.values() for name, one in agent.delegations.items()
        }
        tools = (*of_server.values(), *self.handoffs, *client_tools)
        return CacheableLayout(self._messages(active.name, turn, view), tools)

    def _messages(self, active: str, turn: Turn, view: ContextView) -> list[Message]:
        newest = max((at for at, i in enumerate(view.earlier) if type(i.message) is UserMessage), default=0)
        chain: list[Message] = [SystemMessage(content=self.instructions)]
        agent = self.entry
        before: Message | None = None
        for place, item in enumerate(view.items):
            if place == newest:
                chain.extend(_of_client(turn.overlay, turn.context))
            if item.agent is not None and item.agent != agent and item.agent in self.agents:
                agent = item.agent
                chain.extend(_change(before, agent))
            before = item.message
            chain.append(SystemMessage(content=text_of(before)) if is_instruction(before) else before)
        if agent != active:
            chain.extend(_change(before, active))
        return closed(chain)


def _section(agent: Agent, differing: set[str]) -> str:
    names = ", ".join((*agent.tools, *agent.delegations, *agent.handoff_targets)) or "none"
    section = _SECTION.format(name=agent.name, instructions=agent.instructions.strip(), tools=names)
    when = [f"{name}: {d.spec.description}" for name, d in agent.handoff_targets.items() if name in differing]
    return "\n".join([section, *when])


def _of_client(
    overlay: Sequence[SystemMessage | DeveloperMessage], context: Sequence[Item]
) -> list[SystemMessage]:
    """Return the client's system messages, without those that are part of the conversation."""
    stored = {text_of(item.message) for item in context if is_instruction(item.message)}
    texts = map(text_of, overlay)
    return [SystemMessage(content=text) for text in texts if text and text not in stored]


def _change(before: Message | None, agent: str) -> list[SystemMessage]:
    """Return what says that the agent is active now, unless the message before does."""
    if isinstance(before, ToolMessage) and text_of(before).startswith(handoff_result(agent)):
        return []
    return [SystemMessage(content=_CHANGED.format(agent=agent))]
