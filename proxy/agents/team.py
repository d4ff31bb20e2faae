"""A team: run the active agent of a turn, and the agents it hands off to, until there is an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field

from proxy.agents.agent import Agent
from proxy.agents.agent_loop import (
    AgentAnswered,
    AgentHandedOff,
    AgentLoop,
    ApprovalPending,
    ToolResultsPending,
)
from proxy.agents.cacheable_prompt import CacheablePrompt
from proxy.agents.compaction.compactor import Compactor
from proxy.agents.compaction.history import return_target
from proxy.agents.dispatch import Dispatcher
from proxy.agents.member_loop import MemberLoop
from proxy.agents.side_team import SideTeam
from proxy.agents.spans import in_agent_span
from proxy.agents.turn_state import DelegateJob, TurnState
from proxy.errors import ModelNotFound, TurnTimeout, UpstreamFailed
from proxy.events import Handoff, ModelCalled, Started
from proxy.messages import FunctionTool
from proxy.providers.capabilities import Abilities, is_plain
from proxy.providers.model import Model
from proxy.request_errors import ToolNameTaken
from proxy.teamfiles.definitions import Limits
from proxy.tracing import is_traced
from proxy.turns.contract import NoSink, Sink, TeamOutcome
from proxy.turns.request import TurnRequest
from proxy.turns.turn import Turn


class TeamFacts(Struct, frozen=True):
    """The properties of a team apart from its agents."""

    name: str
    entry: str
    part_of: str = ""
    """The name of the whole team, if this team is a single agent of it."""
    display_name: str = ""
    description: str = ""
    limits: Limits = field(default_factory=Limits)
    on_disconnect: Literal["cancel", "detach"] | None = None
    busy: Literal["reject", "queue", "interrupt"] | None = None
    steps: tuple[str, ...] = ()
    prompt_cache: bool = False
    data_dir: Path = Path()
    max_tool_result_bytes: int = 64 * 1024
    max_client_tools: int = 32
    max_answer_bytes: int = 8 * 1024 * 1024
    """Of a member; models have their own limit."""


class AgentTeam:
    """Implements ``turns.contract.ServedTeam`` over a dispatcher that all teams share."""

    def __init__(
        self,
        facts: TeamFacts,
        agents: Sequence[Agent],
        dispatcher: Dispatcher,
        *,
        side_model: Model,
        compactor: Compactor | None = None,
        find_team: Callable[[str], AgentTeam] | None = None,
    ) -> None:
        self.facts = facts
        self._find_team = find_team or _no_team
        self._compactor = compactor or Compactor.disabled(side_model, facts.name)
        self.side = SideTeam(facts.name, side_model)
        self._loops = {agent.name: _loop_of(agent) for agent in agents}
        # Attributes and not properties: each request reads them some twenty times.
        self.name = facts.name
        """The model id of the team."""
        self.entry = facts.entry
        """The agent that answers if no rule of the conversation resolver selects another."""
        self.agents: Mapping[str, Agent] = {agent.name: agent for agent in agents}
        """The agents by name."""
        tools = [tool for agent in agents for tool in agent.tools.values()]
        self.has_tools = bool(tools) or any(agent.handoff_targets for agent in agents)
        """Whether an agent has tools that the proxy runs; handoffs are tools."""
        self.has_effects = any(tool.has_effects for tool in tools)
        """Whether one of the tools can have effects."""
        self.time_limit = facts.limits.turn_seconds
        """The time limit of a turn in seconds, if the team sets one."""
        self.steps = facts.steps
        """The agents of a typical turn in order, for progress; empty if the team does not declare them."""
        self.snapshot: str | None = None
        """The digest of the definition, see ``team_versions`` and ``custom_agents``; None for an exposed model."""
        self.on_disconnect = facts.on_disconnect
        """What happens to a turn if the client disconnects; None if the team does not set it."""
        self.busy = facts.busy
        """What a request does while a turn of its conversation is running; None if the team does not set it."""
        self._cacheable_prompt = CacheablePrompt.of(facts.entry, self.agents) if facts.prompt_cache else None
        self._dispatcher = dispatcher
        self._records_handoffs = any(
            target.history != "all" or target.returns
            for agent in agents
            for target in agent.handoff_targets.values()
        )

    @property
    def _abilities(self) -> Abilities:
        """What all agents can do; a model may find out that its provider rejects a parameter."""
        first, *others = self._loops.values()
        abilities = first.abilities
        for loop in others:
            abilities &= loop.abilities
        return abilities

    @property
    def content_parts(self) -> frozenset[str]:
        """The content parts, except text, that all models of the team accept."""
        return self._abilities.parts

    def check_client_tools(self, tools: Sequence[FunctionTool]) -> None:
        """Reject client tools that have the name of a tool of an agent that sees them.

        Raises:
            ToolNameTaken: Has the first such tool.
        """
        for loop in self._loops.values():
            taken = loop.collisions(tools, self.facts.max_client_tools)
            if taken:
                index = next(i for i, tool in enumerate(tools) if tool.name == taken[0])
                raise ToolNameTaken(index, taken[0], self.name)

    def offers(self, tools: Sequence[FunctionTool]) -> bool:
        """Whether at least one agent of the team sees at least one of the client tools."""
        return bool(tools) and any(
            loop.client_tools(tools, self.facts.max_client_tools) for loop in self._loops.values()
        )

    def check_parameters(self, request: TurnRequest) -> Sequence[str]:
        """Return the names of parameters without effect; a parameter has an effect only if all agents support it.

        Raises:
            ParameterNotSupported, ContentNotSupported: The request requires something that is not supported.
        """
        if not request.tools and is_plain(request.parameters, request.messages):
            return ()
        shows_tools = self.offers(request.tools)
        abilities = self._abilities.without("prediction") if shows_tools else self._abilities
        ignored = abilities.check_parameters(
            request.parameters, request.tool_choice if shows_tools else None, request.messages
        )
        return [*ignored, "tools"] if request.tools and not shows_tools else ignored

    def answer(self, turn: Turn, sink: Sink) -> Coroutine[Any, Any, TeamOutcome]:
        """Run agents until one of them has answered, or the client or a person has to respond.

        Raises:
            TurnFailed: The turn could not be finished.
        """
        state = self._state(turn, sink)
        if turn.resumed is not None:
            state.resume(turn.resumed)
        return self._outcome(state)

    async def _outcome(self, state: TurnState) -> TeamOutcome:
        turn = state.turn
        while True:
            work = self._dispatcher.run(self._loops[turn.agent], state)
            outcome = await (in_agent_span(work, state) if is_traced() else work)
            match outcome:
                case AgentAnswered(finish_reason):
                    if self._records_handoffs:
                        self._return_control(state)
                    return TeamOutcome(finish_reason)
                case AgentHandedOff():
                    continue
                case ToolResultsPending(pending):
                    return TeamOutcome("tool_calls", pending)
                case ApprovalPending(requests):
                    return TeamOutcome("stop", approvals=requests)

    def _return_control(self, state: TurnState) -> None:
        """Make the agent active again that handed over with ``return``, after the answer of its target."""
        turn = state.turn
        target = return_target([*turn.context, *turn.items], turn.agent)
        if target in self._loops and target != turn.agent:
            state.sink.emit(Handoff(turn.agent, target))
            turn.agent = target

    async def _run_delegate(self, job: DelegateJob) -> TeamOutcome:
        """Run a delegate of an agent of this team.

        Raises:
            TurnFailed: The delegate failed.
        """
        name = job.delegation.team
        team = self if not name else self._find_team(name)
        return await team.run_job(job)

    async def run_job(self, job: DelegateJob) -> TeamOutcome:
        """Run a delegate that is an agent of this team, or the team itself.

        Raises:
            TurnFailed: The delegate failed.
        """
        turn, parent = job.turn, job.parent
        if turn.agent not in self._loops:
            turn.agent = job.delegation.agent or self.entry
        state = self._state(turn, job.sink)
        state.parent, state.depth = parent, parent.depth + 1
        state.limits = job.delegation.limits or self.facts.limits
        job.sink.emit(Started(turn.id, turn.agent, self.steps))
        limit = state.limits.turn_seconds
        try:
            async with asyncio.timeout(limit) as timer:
                return await self._outcome(state)
        except TimeoutError:
            if limit is None or not timer.expired():
                raise
            raise TurnTimeout(limit) from None

    def input_tokens(self, turn: Turn) -> int:
        """Return the estimated size of the turn's first model call in tokens."""
        return self._loops[turn.agent].input_tokens(self._state(turn, _NO_SINK))

    async def summarise(self, turn: Turn) -> tuple[str, Sequence[ModelCalled]]:
        """Return a summary of the context of a turn, and the model calls that wrote it.

        Raises:
            UpstreamFailed: No summary could be written.
        """
        agent = self.agents[turn.agent]
        summary = await self._compactor.summarise(turn.context, agent=agent)
        if not summary.text:
            raise summary.failure or UpstreamFailed
        return summary.text, summary.calls

    def _state(self, turn: Turn, sink: Sink) -> TurnState:
        facts = self.facts
        return TurnState(
            team=facts.part_of or facts.name,
            turn=turn,
            sink=sink,
            limits=facts.limits
            if turn.max_tool_calls is None
            else _within(facts.limits, turn.max_tool_calls),
            data_dir=facts.data_dir,
            max_tool_result_bytes=facts.max_tool_result_bytes,
            max_client_tools=facts.max_client_tools,
            max_answer_bytes=facts.max_answer_bytes,
            cacheable_prompt=self._cacheable_prompt,
            compactor=self._compactor,
            records_handoffs=self._records_handoffs,
            run_delegate=self._run_delegate,
        )


def _no_team(name: str) -> AgentTeam:
    raise ModelNotFound(name)


_NO_SINK = NoSink()


def _loop_of(agent: Agent) -> AgentLoop | MemberLoop:
    return AgentLoop(agent) if agent.member is None else MemberLoop(agent, agent.member)


def _within(limits: Limits, max_tool_calls: int) -> Limits:
    """Return the limits with ``max_tool_calls`` of the request, if it is lower than that of the team."""
    if max_tool_calls >= limits.max_tool_calls:
        return limits
    return limits.model_copy(update={"max_tool_calls": max_tool_calls})
