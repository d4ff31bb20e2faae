"""Dispatch of the active agent of a turn: over a runtime of AutoGen's protocol, or as a direct call.

AutoGen only dispatches: a message contains the id of the turn, and one stateless AutoGen agent runs every
agent of every team. All dispatchers pass ``tests/contracts/test_dispatchers.py``, so one can replace the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from autogen_core import AgentId, BaseAgent, MessageContext
from msgspec import Struct

from proxy.agents.direct_runtime import DirectRuntime
from proxy.agents.turn_state import TurnState

if TYPE_CHECKING:
    from proxy.agents.agent_loop import AgentOutcome

ADDRESS = AgentId("team_agent", "shared")
"""The address of the AutoGen agent that runs all agents."""


class RunnableAgent(Protocol):
    """An agent as a dispatcher sees it; implemented by ``AgentLoop``."""

    async def run(self, state: TurnState) -> AgentOutcome:
        """Run the agent until it has an outcome."""
        ...


class Dispatcher(Protocol):
    """Runs agents. ``start`` comes before the first ``run``, ``close`` after the last has returned."""

    async def start(self) -> None:
        """Get ready to run agents."""
        ...

    async def run(self, agent: RunnableAgent, state: TurnState) -> AgentOutcome:
        """Return the outcome of ``agent.run(state)``, or raise its exception.

        A turn runs one agent at a time. When this task is cancelled, the agent is cancelled too and has ended before
        this returns.
        """
        ...

    async def close(self) -> None:
        """Stop."""
        ...


class DirectDispatcher:
    """Awaits agents directly."""

    async def start(self) -> None:
        """Do nothing: there is nothing to start."""

    async def run(self, agent: RunnableAgent, state: TurnState) -> AgentOutcome:
        """Await the agent."""
        return await agent.run(state)

    async def close(self) -> None:
        """Do nothing: there is nothing to stop."""


class RunAgent(Struct, frozen=True):
    """Message: run the active agent of the turn with this id."""

    turn_id: str


class _AgentRunner(BaseAgent):
    """The only AutoGen agent. Messages contain only an id, so it looks the arguments up in ``runs`` by turn id."""

    def __init__(self, runs: Mapping[str, tuple[RunnableAgent, TurnState]]) -> None:
        super().__init__("runs the active agent of a turn")
        self._runs = runs

    # Not a ``RoutedAgent``, which would look up the handler by the type of the message, and serialisers. A plain
    # function that returns the coroutine of the agent: each coroutine around it would be resumed with it.
    def on_message_impl(self, message: RunAgent, ctx: MessageContext) -> Coroutine[Any, Any, AgentOutcome]:
        """Run the agent."""
        agent, state = self._runs[message.turn_id]
        return agent.run(state)


class AutoGenDispatcher:
    """Sends one direct message per run through ``DirectRuntime``."""

    def __init__(self) -> None:
        self._runtime = DirectRuntime()
        self._runs: dict[str, tuple[RunnableAgent, TurnState]] = {}

    async def start(self) -> None:
        """Register the AutoGen agent."""
        runner = _AgentRunner(self._runs)
        await runner.register_instance(self._runtime, ADDRESS, skip_class_subscriptions=True)

    async def run(self, agent: RunnableAgent, state: TurnState) -> AgentOutcome:
        """Send ``RunAgent`` and wait until the agent has ended."""
        turn_id = state.turn.id
        self._runs[turn_id] = agent, state
        try:
            outcome: AgentOutcome = await self._runtime.send_message(
                RunAgent(turn_id), ADDRESS, message_id=turn_id
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise cancelled_from_inside() from None
        finally:
            del self._runs[turn_id]
        return outcome

    async def close(self) -> None:
        """Stop the runtime."""
        await self._runtime.close()


def cancelled_from_inside() -> RuntimeError:
    """Return the error for a CancelledError that a library raised by itself: the turn is not cancelled."""
    return RuntimeError("the agent was cancelled by something it called")
