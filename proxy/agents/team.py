"""A team: lets the agent with the floor speak, and the one it hands over to, until there is an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from proxy.agents.agent_loop import AwaitsApproval, AwaitsClient, HandedOver, Outcome, Speaker, Spoke
from proxy.agents.dispatch import Dispatcher, Handler
from proxy.agents.turn_state import Agent, Floor
from proxy.errors import InvalidRequest
from proxy.messages import FunctionTool
from proxy.providers.capabilities import Abilities
from proxy.providers.model import Model
from proxy.teamfiles.definitions import Limits
from proxy.turns.contract import Answered, Sink, Turn
from proxy.turns.request import Ask
from proxy.turns.structured_output import answer_form


@dataclass(frozen=True, slots=True)
class TeamFacts:
    """What a team is besides its agents."""

    name: str
    entry: str
    part_of: str = ""
    """The whole team, when this is one agent of it that is asked alone."""
    description: str = ""
    limits: Limits = field(default_factory=Limits)
    on_disconnect: Literal["cancel", "detach"] | None = None
    steps: tuple[str, ...] = ()
    snapshot: str | None = None
    """The digest of what it is made of, when a caller made it."""
    data_dir: Path = Path()
    max_tool_result_bytes: int = 64 * 1024
    max_client_tools: int = 32


class AgentTeam:
    """Implements ``turns.Team`` over a dispatcher that is shared by all teams of a configuration."""

    def __init__(
        self,
        facts: TeamFacts,
        agents: Sequence[Agent],
        dispatcher: Dispatcher,
        *,
        side_model: Model,
    ) -> None:
        self.facts = facts
        self.side = SideTeam(facts.name, side_model)
        self._speakers = {agent.name: Speaker(agent) for agent in agents}
        self._agents = {agent.name: agent for agent in agents}
        self._abilities = Abilities()
        for speaker in self._speakers.values():
            self._abilities &= speaker.abilities
        self._dispatcher = dispatcher
        self._floors: dict[str, Floor] = {}
        # No name begins with '_', so that an agent alone has an address of its own.
        self._addresses = {
            name: f"_{facts.part_of}.{name}" if facts.part_of else f"{facts.name}.{name}"
            for name in self._speakers
        }

    @property
    def name(self) -> str:
        """The model id of the team."""
        return self.facts.name

    @property
    def entry(self) -> str:
        """The agent that answers when nothing says otherwise."""
        return self.facts.entry

    @property
    def content_parts(self) -> frozenset[str]:
        """The content parts, except text, that all models of the team accept."""
        return self._abilities.parts

    @property
    def agents(self) -> Mapping[str, Agent]:
        """The agents by name."""
        return self._agents

    @property
    def time_limit(self) -> float | None:
        """Seconds for a whole turn, when the team has a limit of its own."""
        return self.facts.limits.turn_seconds

    @property
    def steps(self) -> tuple[str, ...]:
        """The agents whose work its turns are made of, when the team says so."""
        return self.facts.steps

    @property
    def snapshot(self) -> str | None:
        """The digest of what it is made of, when a caller made it."""
        return self.facts.snapshot

    @property
    def on_disconnect(self) -> Literal["cancel", "detach"] | None:
        """What happens to a turn whose client leaves, when the team says so."""
        return self.facts.on_disconnect

    @property
    def running(self) -> int:
        """How many turns the team is answering now."""
        return len(self._floors)

    def handlers(self) -> dict[str, Handler]:
        """The team's agents for a dispatcher, by address."""
        return {self._addresses[name]: self._handler(speaker) for name, speaker in self._speakers.items()}

    def check_client_tools(self, tools: Sequence[FunctionTool]) -> None:
        """Refuse tools of the caller's that an agent could not tell from its own.

        Raises:
            InvalidRequest: Naming the first such tool.
        """
        for speaker in self._speakers.values():
            taken = speaker.collisions(tools, self.facts.max_client_tools)
            if taken:
                index = next(i for i, tool in enumerate(tools) if tool.name == taken[0])
                raise InvalidRequest(
                    f"Invalid 'tools[{index}].function.name': the team '{self.name}' has a tool named '{taken[0]}'.",
                    param=f"tools[{index}].function.name",
                    code="invalid_value",
                )

    def offers(self, tools: Sequence[FunctionTool]) -> bool:
        """Whether any agent of the team is shown any of the caller's tools."""
        return any(speaker.offered(tools, self.facts.max_client_tools) for speaker in self._speakers.values())

    def unheeded(self, ask: Ask) -> Sequence[str]:
        """Return what is asked for and has no effect on this team: any of its agents may come to answer.

        Raises:
            InvalidRequest: Something is asked for without which the answer would be another.
        """
        shows_tools = self.offers(ask.tools)
        abilities = self._abilities.without("prediction") if shows_tools else self._abilities
        ignored = abilities.unheeded(
            ask.parameters, ask.tool_choice if shows_tools else None, ask.messages, ask.list_name
        )
        return [*ignored, "tools"] if ask.tools and not shows_tools else ignored

    async def answer(self, turn: Turn, sink: Sink) -> Answered:
        """Let agents speak until one has the answer; see ``turns.Team``."""
        facts = self.facts
        floor = Floor(
            team=facts.part_of or facts.name,
            turn=turn,
            sink=sink,
            limits=_within(facts.limits, turn.max_tool_calls),
            data_dir=facts.data_dir,
            max_tool_result_bytes=facts.max_tool_result_bytes,
            max_client_tools=facts.max_client_tools,
            form=answer_form(turn.parameters.response_format),
        )
        self._floors[turn.id] = floor
        try:
            while True:
                match await self._dispatcher.dispatch(self._addresses[turn.agent], turn.id):
                    case Spoke(finish_reason):
                        return Answered(finish_reason)
                    case AwaitsClient(pending):
                        return Answered("tool_calls", pending)
                    case AwaitsApproval(requests):
                        return Answered("stop", approvals=requests)
                    case HandedOver():
                        continue
        finally:
            del self._floors[turn.id]

    def _handler(self, speaker: Speaker) -> Handler:
        async def speak(turn_id: str) -> Outcome:
            return await speaker.speak(self._floors[turn_id])

        return speak


def _within(limits: Limits, max_tool_calls: int | None) -> Limits:
    """Return the limits of a turn whose caller allows only so many calls of the server's tools."""
    if max_tool_calls is None or max_tool_calls >= limits.max_tool_calls:
        return limits
    return limits.model_copy(update={"max_tool_calls": max_tool_calls})


class SideTeam:
    """Answers side requests (titles, tags, summaries): one model, without instructions or state.

    It is shown the caller's tools and nobody else's: some frontends want a title as the arguments of a call.
    """

    time_limit: float | None = None
    steps: tuple[str, ...] = ()

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.entry = "side"
        self.agents = ("side",)
        self._speaker = Speaker(Agent(name="side", instructions="", model=model, client_tools="pass"))

    def unheeded(self, ask: Ask) -> Sequence[str]:
        """Return what is asked for and has no effect; see ``AgentTeam.unheeded``."""
        abilities = self._speaker.abilities.without(*(("prediction",) if ask.tools else ()))
        return abilities.unheeded(ask.parameters, ask.tool_choice, ask.messages, ask.list_name)

    async def answer(self, turn: Turn, sink: Sink) -> Answered:
        """Ask the model once."""
        limits = Limits(max_model_calls=1, max_handoffs=0, max_tool_calls=0)
        form = answer_form(turn.parameters.response_format)
        floor = Floor(team=self.name, turn=turn, sink=sink, limits=limits, data_dir=Path(), form=form)
        match await self._speaker.speak(floor):
            case Spoke(finish_reason):
                return Answered(finish_reason)
            case AwaitsClient(pending):
                return Answered("tool_calls", pending)
            case HandedOver() | AwaitsApproval():
                raise AssertionError("a side request has neither delegates nor tools of the server")
