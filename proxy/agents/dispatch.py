"""How a turn reaches the agent that has the floor: AutoGen's runtime, or a direct call.

AutoGen is the dispatcher and nothing more: messages carry the turn's id alone, there is one stateless instance of one
agent class per address, and nothing is published. Both dispatchers pass ``tests/contracts/test_dispatchers.py``, so
that the one can be put in the place of the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from autogen_core import (
    AgentId,
    CancellationToken,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    message_handler,
)

if TYPE_CHECKING:
    from proxy.agents.agent_loop import Outcome

Handler = Callable[[str], Awaitable["Outcome"]]
"""Lets one agent speak in the turn with this id."""


class Dispatcher(Protocol):
    """Calls the handler at an address and gives its outcome back."""

    async def start(self, handlers: Mapping[str, Handler]) -> None:
        """Take the handlers by address; addresses are letters, digits, ``_``, ``-`` and ``.``."""
        ...

    async def dispatch(self, address: str, turn_id: str) -> Outcome:
        """Run the handler for the turn.

        An exception of the handler is raised here. When this task is cancelled, the handler is cancelled too and has
        ended before this returns.
        """
        ...

    async def close(self) -> None:
        """Stop; running handlers have to be cancelled by their turns before."""
        ...


class DirectDispatcher:
    """Calls handlers directly."""

    def __init__(self) -> None:
        self._handlers: Mapping[str, Handler] = {}

    async def start(self, handlers: Mapping[str, Handler]) -> None:
        """Take the handlers."""
        self._handlers = handlers

    async def dispatch(self, address: str, turn_id: str) -> Outcome:
        """Await the handler."""
        return await self._handlers[address](turn_id)

    async def close(self) -> None:
        """Nothing to stop."""


@dataclass(frozen=True)
class RunAgent:
    """Asks an agent to speak in a turn."""

    turn_id: str


@dataclass(frozen=True)
class Ran:
    """The agent ended, well or not; how is kept with the call, not in the message."""


class _Call:
    """One dispatch under way. Outcome and errors go this way, because the runtime logs what travels in messages."""

    __slots__ = ("error", "handled", "outcome")

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.handled: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _TeamAgent(RoutedAgent):
    """The one agent class; an instance is an address and its handler."""

    def __init__(self, handler: Handler, calls: Mapping[str, _Call]) -> None:
        super().__init__("an agent of a team")
        self._handler = handler
        self._calls = calls

    @message_handler
    async def run_agent(self, message: RunAgent, ctx: MessageContext) -> Ran:
        """Run the handler; its error is kept, so that none is raised into the runtime."""
        task = asyncio.current_task()
        assert task is not None
        # Without this link nothing that the asker does stops the handler.
        ctx.cancellation_token.link_future(task)
        call = self._calls[message.turn_id]
        try:
            call.outcome = await self._handler(message.turn_id)
        except asyncio.CancelledError:
            if ctx.cancellation_token.is_cancelled():
                raise
            # A library's own CancelledError must not look as if the asker had gone.
            call.error = RuntimeError("the handler was cancelled by something it called")
        except Exception as error:  # noqa: BLE001 - handed to the asker, who raises it
            call.error = error
        finally:
            if not call.handled.done():
                call.handled.set_result(None)
        return Ran()


class _NoSpans:
    """In the place of the runtime's tracing, which nobody listens to: turns are traced as a whole."""

    def trace_block(self, *_: object, **__: object) -> AbstractContextManager[None]:
        return _NO_SPAN


_NO_SPAN = nullcontext()


class _QuietRuntime(SingleThreadedAgentRuntime):
    """The runtime without its telling of every message.

    It writes each message out six times for loggers and spans before it looks whether they are on: two thirds of what
    a turn costs it. There is no setting for that, so three private names are replaced. In a version that has them no
    longer, this does nothing and the runtime is slower.
    """

    def __init__(self) -> None:
        super().__init__(ignore_unhandled_exceptions=True)
        self._tracer_helper = _NoSpans()  # type: ignore[assignment]

    def _try_serialize(self, message: object) -> str:
        return type(message).__name__

    async def _create_otel_attributes(self, *_: object, **__: object) -> dict[str, Any]:
        return {}


class AutoGenDispatcher:
    """Sends direct messages through one ``SingleThreadedAgentRuntime``."""

    def __init__(self) -> None:
        self._runtime = _QuietRuntime()
        self._calls: dict[str, _Call] = {}

    async def start(self, handlers: Mapping[str, Handler]) -> None:
        """Register one agent per address and start the runtime."""
        for address, handler in handlers.items():
            await _TeamAgent(handler, self._calls).register_instance(
                self._runtime, AgentId(address, "shared"), skip_class_subscriptions=True
            )
        self._runtime.start()

    async def dispatch(self, address: str, turn_id: str) -> Outcome:
        """Send ``RunAgent`` and wait for the handler's end."""
        call = self._calls[turn_id] = _Call()
        token = CancellationToken()
        sent = False
        try:
            sending = self._runtime.send_message(
                RunAgent(turn_id), AgentId(address, "shared"), cancellation_token=token
            )
            sent = True
            await sending
        except asyncio.CancelledError:
            token.cancel()
            raise
        finally:
            if sent and token.is_cancelled():
                await _settled(call.handled)
            self._calls.pop(turn_id, None)
        if call.error is not None:
            raise call.error
        assert call.outcome is not None
        return call.outcome

    async def close(self) -> None:
        """Stop the runtime."""
        await self._runtime.stop()


async def _settled(handled: asyncio.Future[None]) -> None:
    """Wait for a cancelled handler's end, which closes its connections."""
    await asyncio.shield(handled)


class OneAddress:
    """Reaches the agents of any number of teams at one address.

    A dispatcher keeps what it was started with. Teams that come and go while the server runs are called through this,
    so that nothing is left of them.
    """

    ADDRESS = "_made"

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._called: dict[str, Handler] = {}

    async def speak(self, turn_id: str) -> Outcome:
        """The handler at the address."""
        return await self._called[turn_id](turn_id)

    async def call(self, handler: Handler, turn_id: str) -> Outcome:
        """Let the handler be called by the dispatcher; a turn calls one at a time."""
        self._called[turn_id] = handler
        try:
            return await self._dispatcher.dispatch(self.ADDRESS, turn_id)
        finally:
            del self._called[turn_id]


class OneTeam:
    """A dispatcher for one team behind the one address."""

    def __init__(self, address: OneAddress) -> None:
        self._address = address
        self._handlers: Mapping[str, Handler] = {}

    async def start(self, handlers: Mapping[str, Handler]) -> None:
        """Take the handlers."""
        self._handlers = handlers

    async def dispatch(self, address: str, turn_id: str) -> Outcome:
        """Call the handler at the team's own address."""
        return await self._address.call(self._handlers[address], turn_id)

    async def close(self) -> None:
        """Nothing to stop."""
