"""Python functions and objects as members."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from proxy.errors import ConfigurationError
from proxy.members.port import Member, MemberContext, MemberEvent, Sees, sees_of
from proxy.messages import Message
from proxy.tools.functions import options_of
from proxy.tools.threads import ToolThreads

_END = object()


class FunctionMember:
    """A member that runs a function of ``messages`` and ``context``: a generator, or one that returns its answer.

    A function that is not ``async`` runs in a thread, which cannot be stopped: after cancellation it continues up to
    its next ``yield`` or its end, and ``context.is_cancelled`` is true.
    """

    def __init__(self, function: Callable[..., Any], threads: ToolThreads) -> None:
        self._function = function
        self._threads = threads

    @property
    def has_effects(self) -> bool:
        """Whether the function is not marked by ``tool(has_effects=False)``."""
        return options_of(self._function).has_effects

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Run the function."""
        if inspect.isasyncgenfunction(self._function) or inspect.iscoroutinefunction(self._function):
            found = self._function(messages, context)
        else:
            found = await self._threads.run(functools.partial(self._function, messages, context))
        if inspect.isawaitable(found):
            found = await found
        if isinstance(found, AsyncIterator):
            async with _closing(found):
                async for event in found:
                    yield event
        elif isinstance(found, Iterator):
            try:
                while (event := await self._threads.run(functools.partial(next, found, _END))) is not _END:
                    yield event
            finally:
                await self._close(found)
        elif found is not None:
            yield found

    async def _close(self, found: Iterator[Any]) -> None:
        """Close a generator in a thread, where its code runs. If it is still running, it ends by itself."""
        close = getattr(found, "close", None)
        if close is not None and not getattr(found, "gi_running", False):
            await self._threads.run(close)

    async def close(self) -> None:
        """Nothing is held."""


@asynccontextmanager
async def _closing(found: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close an iterator at the end, if it is a generator."""
    try:
        yield
    finally:
        close = getattr(found, "aclose", None)
        if close is not None:
            await close()


class ObjectMember:
    """An object of the operator with a method ``run``, and possibly ``has_effects`` and ``close``."""

    def __init__(self, member: Any, threads: ToolThreads) -> None:
        self._member = member
        self._run = FunctionMember(member.run, threads)

    @property
    def has_effects(self) -> bool:
        """What the object says, or the mark of its method; true if there is none."""
        return bool(getattr(self._member, "has_effects", self._run.has_effects))

    @property
    def sees(self) -> Sees:
        """What the object says; all messages if it does not."""
        return sees_of(self._member)

    def run(self, messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
        """Run its method."""
        return self._run.run(messages, context)

    async def close(self) -> None:
        """Close the object, if it can be closed."""
        close = getattr(self._member, "close", None)
        if callable(close):
            found = close()
            if inspect.isawaitable(found):
                await found


def python_member(found: Any, threads: ToolThreads) -> Member:
    """Return a function, or an object with a method ``run``, as a member.

    Raises:
        ConfigurationError: It is neither.
    """
    if inspect.isclass(found):
        raise ConfigurationError(
            f"{found.__name__!r} is a class; name an object, or a function without parameters that returns one"
        )
    run = getattr(found, "run", None)
    if callable(run) and _takes_turn(run):
        return ObjectMember(found, threads)
    if callable(found) and _takes_turn(found):
        return FunctionMember(found, threads)
    if callable(found) or callable(run):
        what = "it must be a function" if callable(found) else "its method 'run' must be one"
        raise ConfigurationError(f"{what} with the parameters 'messages' and 'context'")
    raise ConfigurationError(
        f"an object of type {type(found).__name__!r} is neither a function, nor an object with a method 'run', "
        "nor an agent of a supported framework"
    )


def _takes_turn(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True
