"""Dispatch over AutoGen's own runtime, which runs each message in another task (``PROXY_AGENT_RUNTIME=queued``)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from autogen_core import BaseAgent, CancellationToken, MessageContext, SingleThreadedAgentRuntime
from msgspec import Struct

from proxy.agents.dispatch import ADDRESS, RunAgent, RunnableAgent, cancelled_from_inside
from proxy.agents.turn_state import TurnState

if TYPE_CHECKING:
    from proxy.agents.agent_loop import AgentOutcome


class RunEnded(Struct, frozen=True):
    """Response to ``RunAgent``. The outcome or error is in the ``_Run``, because the runtime logs messages."""


_RUN_ENDED = RunEnded()


class _Run:
    """The arguments of one dispatch, and its result."""

    __slots__ = ("agent", "context", "ended", "error", "outcome", "state")

    def __init__(self, agent: RunnableAgent, state: TurnState) -> None:
        self.agent = agent
        self.state = state
        self.context = copy_context()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.outcome: AgentOutcome | None = None
        self.error: Exception | None = None

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
    """The only AutoGen agent, as in ``dispatch``."""

    def __init__(self, runs: Mapping[str, _Run]) -> None:
        super().__init__("runs the active agent of a turn")
        self._runs = runs

    async def on_message_impl(self, message: RunAgent, ctx: MessageContext) -> RunEnded:
        """Run the agent; store its exception instead of raising it into the runtime."""
        run = self._runs[message.turn_id]
        run.link(ctx.cancellation_token)
        try:
            run.outcome = await run.agent.run(run.state)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling() or ctx.cancellation_token.is_cancelled():
                raise
            run.error = cancelled_from_inside()
        except Exception as error:  # noqa: BLE001 - raised by QueuedDispatcher.run
            run.error = error
        finally:
            if not run.ended.done():
                run.ended.set_result(None)
        return _RUN_ENDED


class _NoSpans:
    """Replaces the runtime's tracing: the proxy traces whole turns."""

    def trace_block(self, *_: object, **__: object) -> AbstractContextManager[None]:
        return _NO_SPAN


_NO_SPAN = nullcontext()


class _QueuedRuntime(SingleThreadedAgentRuntime):
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


class QueuedDispatcher:
    """Sends one direct message per run through ``SingleThreadedAgentRuntime``."""

    def __init__(self) -> None:
        self._runtime = _QueuedRuntime()
        self._runs: dict[str, _Run] = {}

    async def start(self) -> None:
        """Register the AutoGen agent and start the runtime."""
        runner = _AgentRunner(self._runs)
        await runner.register_instance(self._runtime, ADDRESS, skip_class_subscriptions=True)
        self._runtime.start()

    async def run(self, agent: RunnableAgent, state: TurnState) -> AgentOutcome:
        """Send ``RunAgent`` and wait until the agent has ended."""
        turn_id = state.turn.id
        run = self._runs[turn_id] = _Run(agent, state)
        token = CancellationToken()
        try:
            await self._runtime.send_message(
                RunAgent(turn_id), ADDRESS, cancellation_token=token, message_id=turn_id
            )
        except asyncio.CancelledError:
            token.cancel()
            # Wait for the agent, which closes its connections. The runtime delivers the message in any case.
            await asyncio.shield(run.ended)
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
