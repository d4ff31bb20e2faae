"""Members with errors that operators make. The text of the message names the case."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from enum import Enum
from typing import Any

from proxy.events import AgentSpeaking, TextDelta
from proxy.members import (
    HandOver,
    Incomplete,
    MemberContext,
    MemberTeamEvent,
    Message,
    ModelUsed,
    Reasoning,
    TeamEvent,
    Text,
    ToolBegan,
    ToolEnded,
    Unused,
    Usage,
)


class Word(str, Enum):  # noqa: UP042  of a library that supports older versions of Python
    """Members are strings, and ``str()`` of one is another."""

    YES = "yes"


ANY: Any = object()
INVALID: dict[str, Any] = {
    "number": 5,
    "none": None,
    "bytes": b"text",
    "object": {"text": "a"},
    "class": HandOver,
    "text of a number": Text(ANY),
    "reasoning of a number": Reasoning(ANY),
    "target of a handover": HandOver(ANY),
    "reason of a handover": HandOver("desk", ANY),
    "data of a handover": HandOver("desk", "", ANY),
    "name of a tool": ToolBegan("1", ANY),
    "arguments as an object": ToolBegan("1", "look_up", {"word": "star"}),  # type: ignore[arg-type]
    "result of a tool": ToolEnded("1", ANY),
    "no usage": ModelUsed("m", ANY),
    "negative usage": ModelUsed("m", Usage(prompt=-1)),
    "fraction of a token": ModelUsed("m", Usage(prompt=1.5)),  # type: ignore[arg-type]
    "huge usage": ModelUsed("m", Usage(completion=10**30)),
    "cost as text": ModelUsed("m", Usage(), "1"),  # type: ignore[arg-type]
    "cost without a value": ModelUsed("m", Usage(), float("nan")),
    "one name": Unused("temperature"),  # type: ignore[arg-type]
    "unknown reason": Incomplete("stop"),  # type: ignore[arg-type]
    "text as a team event": TeamEvent("handoff"),  # type: ignore[arg-type]
    "answer of an inner team": TeamEvent(MemberTeamEvent("a", TextDelta("text"))),
    "name of an inner agent": TeamEvent(MemberTeamEvent("a", AgentSpeaking(ANY))),
}
ODD: dict[str, tuple[Any, str]] = {
    "half of a pair": ("a\ud800b", "a\ufffdb"),
    "pair": ("a\ud83d\ude00", "a\U0001f600"),
    "nul": ("a\x00b", "a\ufffdb"),
    "member of an enum": (Word.YES, "yes"),
    "no text": (Text(None), ""),  # type: ignore[arg-type]
}
"""Text that cannot be stored as it is, and what the client gets."""
FAILURES: dict[str, Callable[[], BaseException]] = {
    "exit": lambda: SystemExit(3),
    "base exception": lambda: BaseException("secret"),
    "generator exit": GeneratorExit,
    "end of iteration": StopAsyncIteration,
    "own cancellation": asyncio.CancelledError,
    "group": lambda: ExceptionGroup("secret", [ValueError()]),
}
closed_in: list[int] = []
"""Threads in which generators were closed."""
tasks: list[asyncio.Task[None]] = []
later: list[str] = []


async def yields(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Yield a value that is not an event, or text that is not clean."""
    yield "ok "
    yield ODD[context.text][0] if context.text in ODD else INVALID[context.text]


async def reports(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Yield, report and call with text that has no form in UTF-8."""
    context.report("half \ud800")
    yield Reasoning("half \ud800")
    yield ToolBegan("1", "look\ud800", '{"word": "\ud800"}')
    yield ToolEnded("1", "\ud800")
    yield await context.run_approved("write", {}, lambda: "written \ud800")


async def raises(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Raise what is not an ``Exception``."""
    yield "So far"
    raise FAILURES[context.text]()


def raises_in_thread(messages: Sequence[Message], context: MemberContext) -> Iterator[Any]:
    """Raise it in a thread."""
    yield "So far"
    raise FAILURES[context.text]()


async def exits_approved(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Run an approved function that ends the process."""

    def leave() -> None:
        raise SystemExit(1)

    yield await context.run_approved("leave", {}, leave)


async def fails_at_the_end(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Hand over, and fail behind it."""
    try:
        yield HandOver("desk")
    finally:
        raise ValueError("secret")


async def continues(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Catch the cancellation of a call, and continue."""
    for number in range(2):
        try:
            yield await context.call_tool("weather", {"city": "Bonn"})
        except BaseException:
            yield f"caught {number}"
    yield " end"


async def calls_later(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Leave a task behind that reports and calls a tool after the answer."""

    async def call() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        while not context.is_cancelled:
            await asyncio.sleep(0.01)
        context.report("too late")
        try:
            await context.call_tool("weather", {"city": "Bonn"})
        except asyncio.CancelledError:
            later.append("cancelled")
            raise

    tasks.append(asyncio.create_task(call(), name="call behind the end"))
    yield "done"


def closes(messages: Sequence[Message], context: MemberContext) -> Iterator[str]:
    """Wait for more, in a thread."""
    try:
        while True:
            yield "tick "
            threading.Event().wait(0.01)
    finally:
        closed_in.append(threading.get_ident())


async def invalid_data(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Hand over with data that is not JSON."""
    yield HandOver("desk", input={"order": object()})


async def never_ends(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
    """Report, or yield events without text, for ever."""
    event: Any = {
        "uses": ModelUsed("m", Usage()),
        "inner agents": TeamEvent(MemberTeamEvent("a", AgentSpeaking("a"))),
    }.get(context.text)
    while True:
        if event is None:
            context.report("looking " * 100)
            await asyncio.sleep(0)
        else:
            yield event
