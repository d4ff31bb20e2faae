"""Dispatch of the active agent of a turn: over a runtime of AutoGen's protocol, or as a direct call.

AutoGen only dispatches: a message contains the id of the turn, and one stateless AutoGen agent runs every
agent of every team. All dispatchers pass ``tests/contracts/test_dispatchers.py``, so one can replace the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from autogen_core import (
    AgentId,
    BaseAgent,
    CancellationToken,
    MessageContext,
    SingleThreadedAgentRuntime,
)

from proxy.agents.direct_runtime import DirectRuntime
from proxy.agents.turn_state import TurnState

if TYPE_CHECKING:
    from proxy.agents.agent_loop import AgentOutcome


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


@dataclass(frozen=True)
class RunAgent:
    """Message: run the active agent of the turn with this id."""

    turn_id: str


@dataclass(frozen=True)
class RunEnded:
    """Response to ``RunAgent``. The outcome or error is in the ``_Run``, because the runtime logs messages."""


_RUN_ENDED = RunEnded()


class _Run:
    """The arguments of one dispatch, and its result."""

    __slots__ = ("agent", "error", "outcome", "queued", "state")

    def __init__(self, agent: RunnableAgent, state: TurnState, queued: _QueuedRun | None) -> None:
        self.agent = agent
        self.state = state
        self.queued = queued
        self.outcome: AgentOutcome | None = None
        self.error: Exception | None = None


class _QueuedRun:
    """What a runtime needs that runs the agent in another task."""

    __slots__ = ("context", "ended")

    def __init__(self) -> None:
        self.context = copy_context()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def link(self, token: CancellationToken) -> None:
        """Make the current task part of the turn.

        AutoGen's runtime does not cancel its task when the sender is cancelled: the token does, once the task is
        linked. And that task has the context of the runtime's start; the agent needs that of the turn (the request id
        in the log).
        """
        task = asyncio.current_task()
        assert task is not None
        token.link_future(task)
        for variable, value in self.context.items():
            variable.set(value)


class _AgentRunner(BaseAgent):
    """The only AutoGen agent. Messages contain only an id, so it looks the arguments up in ``runs`` by turn id."""

    def __init__(self, runs: Mapping[str, _Run]) -> None:
        super().__init__("runs the active agent of a turn")
        self._runs = runs

    # Not a ``RoutedAgent``, which would look up the handler by the type of the message, and serialisers.
    async def on_message_impl(self, message: RunAgent, ctx: MessageContext) -> RunEnded:
        """Run the agent; store its exception instead of raising it into the runtime."""
        run = self._runs[message.turn_id]
        if run.queued is not None:
            run.queued.link(ctx.cancellation_token)
        try:
            run.outcome = await run.agent.run(run.state)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling() or ctx.cancellation_token.is_cancelled():
                raise
            # A CancelledError that a library raised by itself must not look like a cancelled turn.
            run.error = RuntimeError("the agent was cancelled by something it called")
        except Exception as error:  # noqa: BLE001 - raised by AutoGenDispatcher.run
            run.error = error
        finally:
            if run.queued is not None and not run.queued.ended.done():
                run.queued.ended.set_result(None)
        return _RUN_ENDED


class _NoSpans:
    """Replaces the runtime's tracing: the proxy traces whole turns."""

    def trace_block(self, *_: object, **__: object) -> AbstractContextManager[None]:
        return _NO_SPAN


_NO_SPAN = nullcontext()


class QueuedRuntime(SingleThreadedAgentRuntime):
    """AutoGen's own runtime without serialisation of every message for logs and spans.

    autogen-core 0.7.5 serialises each message six times before it checks whether logging and tracing are enabled, which
    is two thirds of the runtime's CPU time per turn. There is no setting for it, so three private names are replaced.
    In a version without these names this class has no effect and the runtime is slower.
    """

    def __init__(self) -> None:
        super().__init__(ignore_unhandled_exceptions=True)
        self._tracer_helper = _NoSpans()  # type: ignore[assignment]

    def _try_serialize(self, message: object) -> str:
        return type(message).__name__

    async def _create_otel_attributes(self, *_: object, **__: object) -> dict[str, Any]:
        return {}


class AutoGenDispatcher:
    """Sends one direct message per run through a runtime of AutoGen's protocol, by default ``DirectRuntime``."""

    ADDRESS = AgentId("team_agent", "shared")

    def __init__(self, runtime: DirectRuntime | QueuedRuntime | None = None) -> None:
        self._runtime = runtime or DirectRuntime()
        self._is_queued = isinstance(self._runtime, QueuedRuntime)
        self._runs: dict[str, _Run] = {}

    async def start(self) -> None:
        """Register the AutoGen agent and start the runtime."""
        await _AgentRunner(self._runs).register_instance(
            self._runtime, self.ADDRESS, skip_class_subscriptions=True
        )
        if isinstance(self._runtime, QueuedRuntime):
            self._runtime.start()

    async def run(self, agent: RunnableAgent, state: TurnState) -> AgentOutcome:
        """Send ``RunAgent`` and wait until the agent has ended."""
        turn_id = state.turn.id
        queued = _QueuedRun() if self._is_queued else None
        run = self._runs[turn_id] = _Run(agent, state, queued)
        # The direct runtime cancels the agent with this task.
        token = CancellationToken() if queued is not None else None
        try:
            await self._runtime.send_message(
                RunAgent(turn_id), self.ADDRESS, cancellation_token=token, message_id=turn_id
            )
        except asyncio.CancelledError:
            if token is not None and queued is not None:
                token.cancel()
                # Wait for the agent, which closes its connections. The runtime delivers the message in any case.
                await asyncio.shield(queued.ended)
            raise
        finally:
            del self._runs[turn_id]
        if run.error is not None:
            raise run.error
        assert run.outcome is not None
        return run.outcome

    async def close(self) -> None:
        """Stop the runtime."""
        await self._runtime.close()
