"""Objects of AutoGen AgentChat: a pool of those that run, and what stands for the client and the user in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Self

from autogen_agentchat.agents import AssistantAgent, UserProxyAgent
from autogen_agentchat.base import Team
from autogen_core import CancellationToken, SingleThreadedAgentRuntime
from autogen_core.tools import TextResultContent, ToolResult, ToolSchema, Workbench
from pydantic import BaseModel

from proxy.members.adapters.common import NOT_EXECUTED, FrameworkCall, schema_of
from proxy.members.port import MemberContext

# --- tools of the client ---------------------------------------------------------------------------------------

_running: ContextVar[ClientCalls | None] = ContextVar("client calls of the running agent", default=None)


class ClientCalls:
    """The calls of the client's tools in one run. ``results`` are those of the calls of the last run, by id."""

    def __init__(self, context: MemberContext, stored: Iterable[Sequence[Any]]) -> None:
        self._tools = {tool.name: tool for tool in context.tools}
        self.open = [FrameworkCall(*one) for one in stored]
        self.results: Mapping[str, str | None] = {}

    @property
    def names(self) -> frozenset[str]:
        """The names of the tools."""
        return frozenset(self._tools)

    @property
    def stored(self) -> list[list[Any]]:
        """The open calls as they are stored."""
        return [[call.call_id, call.name, dict(call.arguments)] for call in self.open]

    @property
    def schemas(self) -> list[ToolSchema]:
        """The tools as AutoGen describes them."""
        return [
            {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": {"properties": {}, **schema_of(tool)},  # type: ignore[typeddict-item]
            }
            for tool in self._tools.values()
        ]

    def open_for(self, found: Any) -> Context:
        """Return the context of a run, in which an agent may call the tools.

        In a team, the run could not continue at the same agent.
        """
        self.open = []
        context = copy_context()
        context.run(_running.set, self if isinstance(found, AssistantAgent) else None)
        return context

    def with_results(self, state: Any) -> Any:
        """Return the state of the agent with the results in place of ``NOT_EXECUTED``."""
        if self.results:
            messages = state["llm_context"]["messages"]
            last = next(one for one in reversed(messages) if one["type"] == "FunctionExecutionResultMessage")
            for one in last["content"]:
                result = self.results.get(one["call_id"])
                one["content"] = one["content"] if result is None else result
        return state


class _NoConfig(BaseModel):
    pass


class ClientTools(Workbench):
    """The tools of the client, for ``AssistantAgent(workbench=[StaticWorkbench([…]), ClientTools()])``.

    The turn ends with a call, and the agent continues when the client has sent the result. There are no tools outside
    of a turn, and in teams.
    """

    component_config_schema = _NoConfig
    component_provider_override = "proxy.members.agentchat.ClientTools"

    async def list_tools(self) -> list[ToolSchema]:
        """Return the tools of the request."""
        running = _running.get()
        return running.schemas if running is not None else []

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        call_id: str | None = None,
    ) -> ToolResult:
        """Note the call; the member stops the run before the model sees the result."""
        running = _running.get()
        if running is None or name not in running.names:
            return ToolResult(
                name=name, result=[TextResultContent(content=f"Tool {name} not found.")], is_error=True
            )
        running.open.append(FrameworkCall(call_id or name, name, dict(arguments or {})))
        return ToolResult(name=name, result=[TextResultContent(content=NOT_EXECUTED)])

    async def start(self) -> None:
        """Nothing is held."""

    async def stop(self) -> None:
        """Nothing is held."""

    async def reset(self) -> None:
        """Nothing is held."""

    async def save_state(self) -> Mapping[str, Any]:
        """Return no state."""
        return {}

    async def load_state(self, state: Mapping[str, Any]) -> None:
        """There is no state."""

    def _to_config(self) -> _NoConfig:
        return _NoConfig()

    @classmethod
    def _from_config(cls, config: _NoConfig) -> ClientTools:
        return cls()


# --- users -----------------------------------------------------------------------------------------------------


def participants(found: Any) -> frozenset[str]:
    """Return the names of the agents of a team, and of teams inside it."""
    return frozenset(agent.name for agent in _agents(found))


def waiting_users(found: Any) -> frozenset[str]:
    """Let the user proxies that would read from the terminal wait, and return their names."""
    users = [one for one in _agents(found) if isinstance(one, UserProxyAgent)]
    for user in users:
        if getattr(user.input_func, "__name__", "") == "cancellable_input":
            user.input_func = _wait
    return frozenset(user.name for user in users if user.input_func is _wait)


def _agents(found: Any) -> Iterator[Any]:
    # AgentChat has no public way to them; ``tests/units/test_limited_dependencies.py`` checks the private attributes.
    for inner in getattr(found, "_participants", ()):
        yield inner
        yield from _agents(inner)
    if (team := getattr(found, "_team", None)) is not None:
        yield from _agents(team)


async def _wait(prompt: str, cancellation_token: CancellationToken | None = None) -> str:
    waiting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    if cancellation_token is not None:
        cancellation_token.link_future(waiting)
    return await waiting


# --- runs ------------------------------------------------------------------------------------------------------

STOP_TIMEOUT = 0.8
"""Seconds for a stopped run to end."""


class Run:
    """The events of one run. A run that is left early is stopped.

    The stream of a team does not end before its agents have, and they end by the cancellation token only. So each step
    is a separate task: the token is cancelled first.
    """

    def __init__(self, found: Any, task: Any, calls: ClientCalls) -> None:
        self._token = CancellationToken()
        # Spans of AutoGen begin and end in the same context.
        self._context = calls.open_for(found)
        self._events = found.run_stream(task=task, cancellation_token=self._token, output_task_messages=False)
        self._step: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        self._token.cancel()
        await self._stop(self._step)
        # Its errors are those of the cancellation.
        await self._stop(self._begin(self._events.aclose()))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self._step = self._begin(_next(self._events))
        await asyncio.wait((self._step,))
        event = self._step.result()
        if event is None:
            raise StopAsyncIteration
        return event

    def _begin(self, step: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(step, context=self._context, name="step of AgentChat")

    async def _stop(self, step: asyncio.Task[Any] | None) -> None:
        if step is None:
            return
        try:
            await asyncio.wait((step,), timeout=STOP_TIMEOUT)
        finally:
            step.cancel()
        if step.done() and not step.cancelled():
            step.exception()


async def _next(events: Any) -> Any:
    return await anext(events, None)


# --- pool ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Taken:
    """An object in use, with the state that it had when it was new."""

    found: Any
    first_state: Any
    is_usable: bool = False
    """Whether its run has ended by itself."""


class Pool:
    """Objects that run one turn at a time."""

    def __init__(self, found: Any, make: Callable[[], Any] | None) -> None:
        self._make = make
        self._idle: list[Taken] = []
        self._new = [found]
        self._single = asyncio.Lock() if make is None else None

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Taken]:
        """Yield an object. If its run was stopped or failed, it is closed; the only one is renewed."""
        if self._single is None:
            taken = await self._next()
            try:
                yield taken
            except BaseException:
                taken.is_usable = False
                raise
            finally:
                if taken.is_usable:
                    self._idle.append(taken)
                else:
                    await _close(taken.found)
            return
        async with self._single:
            taken = await self._next()
            try:
                yield taken
            finally:
                if not taken.is_usable:
                    await _renew(taken.found)
                self._idle.append(taken)

    async def _next(self) -> Taken:
        if self._idle:
            taken = self._idle.pop()
            taken.is_usable = False
            return taken
        if self._new:
            found = self._new.pop()
        else:
            assert self._make is not None
            found = self._make()
        return Taken(found, await found.save_state())

    async def close(self) -> None:
        """Close the objects that are not in use."""
        for taken in self._idle:
            await _close(taken.found)


async def _close(found: Any) -> None:
    """Close an agent; teams have no ``close``."""
    close = getattr(found, "close", None)
    if close is not None:
        # It is the code of the agent's author, and no caller is left that could handle the error.
        with suppress(Exception):
            await close()


async def _renew(found: Any) -> None:
    """Give a team a new runtime: after a stopped run its manager waits for the agent that was running.

    ``reset`` does not change that.
    """
    if isinstance(found, Team) and getattr(found, "_embedded_runtime", False):
        found._runtime = SingleThreadedAgentRuntime(ignore_unhandled_exceptions=False)
        found._initialized = False
        condition = getattr(found, "_termination_condition", None)
        if condition is not None:
            await condition.reset()
