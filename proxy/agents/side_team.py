"""The team of side requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxy.agents.agent import Agent
from proxy.agents.agent_loop import (
    AgentAnswered,
    AgentHandedOff,
    AgentLoop,
    ApprovalPending,
    ToolResultsPending,
)
from proxy.agents.turn_state import TurnState
from proxy.providers.model import Model
from proxy.teamfiles.definitions import Limits
from proxy.turns.contract import Sink, TeamOutcome
from proxy.turns.request import TurnRequest
from proxy.turns.turn import Turn


class SideTeam:
    """Answers side requests (titles, tags, summaries) with one model call, without instructions or stored state.

    The model sees client tools only: some frontends request a title as the arguments of a call.
    """

    time_limit: float | None = None
    steps: tuple[str, ...] = ()
    has_tools = has_effects = False

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.entry = "side"
        self.agents = ("side",)
        self._loop = AgentLoop(Agent(name="side", instructions="", model=model, client_tools="pass"))

    def check_parameters(self, request: TurnRequest) -> Sequence[str]:
        """Return the names of parameters without effect.

        Raises:
            ParameterNotSupported, ContentNotSupported: The request requires something that is not supported.
        """
        abilities = self._loop.abilities.without(*(("prediction",) if request.tools else ()))
        return abilities.check_parameters(request.parameters, request.tool_choice, request.messages)

    async def answer(self, turn: Turn, sink: Sink) -> TeamOutcome:
        """Call the model once.

        Raises:
            TurnFailed: The turn could not be finished.
        """
        limits = Limits(max_model_calls=1, max_handoffs=0, max_tool_calls=0)
        state = TurnState(team=self.name, turn=turn, sink=sink, limits=limits, data_dir=Path())
        match await self._loop.run(state):
            case AgentAnswered(finish_reason):
                return TeamOutcome(finish_reason)
            case ToolResultsPending(pending):
                return TeamOutcome("tool_calls", pending)
            case AgentHandedOff() | ApprovalPending():
                raise AssertionError("a side request has neither handoffs nor server tools")
