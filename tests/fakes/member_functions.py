"""Members as an operator writes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from proxy.members.port import (
    HandOver,
    Incomplete,
    MemberContext,
    MemberEvent,
    ModelUsed,
    NotApproved,
    Reasoning,
    ToolBegan,
    ToolEnded,
    Unused,
)
from proxy.messages import Message, Usage, text_of
from proxy.tools import tool

seen: list[MemberContext] = []
"""The contexts of all runs."""
payments: list[str] = []
stopped = asyncio.Event()
hanging = asyncio.Event()


async def lost(messages: Sequence[Message], context: MemberContext) -> HandOver:
    """Hand over to an agent that is not one of its handoffs."""
    return HandOver("trige", context.text)


async def researcher(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Answer with one of its own tools, or hand over."""
    seen.append(context)
    if "shop" in context.text:
        yield HandOver("triage", "wants to buy")
        return
    context.report("looking it up")
    yield Reasoning("It is about stars.")
    yield ToolBegan("1", "look_up", '{"word": "star"}')
    yield ToolEnded("1", "a sun")
    yield "A star "
    yield f"is a sun, {context.end_user or 'friend'}."
    yield ModelUsed("own-model", Usage(prompt=7, completion=3))
    context.state = {"runs": (context.state or {"runs": 0})["runs"] + 1, "messages": len(messages)}


@tool(has_effects=False)
def counter(messages: Sequence[Message], context: MemberContext) -> str:
    """Count its own runs, in a thread."""
    context.report("counting")
    context.state = (context.state or 0) + 1
    return f"run {context.state}"


def lines(messages: Sequence[Message], context: MemberContext) -> Iterator[str]:
    """Stream from a thread."""
    yield "one, "
    yield "two"


async def echo(messages: Sequence[Message], context: MemberContext) -> str | MemberEvent:
    """Say what the request has."""
    parts = [type(part).__name__ for m in messages if isinstance(m.content, list) for part in m.content]
    if context.parameters.response_format:
        return '{"answer": "yes"}' if "good" in context.text else "no JSON"
    return " | ".join([context.instructions, f"temperature {context.parameters.temperature}", *parts])


async def plain(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Use no parameters."""
    yield Unused(("temperature", "response_format"))
    yield "plain"


async def reader(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Call two tools of the client in turn, the second one twice in parallel."""
    yield "Reading. "
    first = await context.call_tool("open_page", {"url": "a"})
    yield f"TurnHandle {first}. "
    both = await asyncio.gather(
        context.call_tool("read_page", {"page": 1}), context.call_tool("read_page", {"page": 2})
    )
    yield f"Read {' and '.join(both)}."


async def payer(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Pay after an approval, then call a tool of the client."""
    amount = context.text.split()[-1]

    async def pay() -> str:
        payments.append(amount)
        return f"paid {amount}"

    try:
        receipt = await context.run_approved("pay", {"amount": amount}, pay)
    except NotApproved:
        yield "Then not."
        return
    if context.tools:
        yield f"Printed: {await context.call_tool('print', {'text': receipt})}. "
    yield f"Done: {receipt}."


async def hanger(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Hang until it is cancelled."""
    yield "Wait"
    hanging.set()
    try:
        await asyncio.Event().wait()
    finally:
        stopped.set()


async def busy(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Yield without ever waiting, for 10 seconds or until it is cancelled."""
    yield "Wait"
    end = time.monotonic() + 10
    try:
        while time.monotonic() < end:
            yield ""
    except (asyncio.CancelledError, GeneratorExit):
        stopped.set()
        raise


async def endless(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Answer without an end."""
    while True:
        yield "lorem ipsum " * 1000


async def asker(messages: Sequence[Message], context: MemberContext) -> str:
    """Make equal calls of a tool of the client."""
    return " ".join(await asyncio.gather(*(context.call_tool("look_up", {"word": "a"}) for _ in range(3))))


async def shortened(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Answer with the beginning of a text that a filter or a limit ended, or hand over."""
    yield Incomplete("content_filter" if "filter" in context.text else "length")
    yield "Once upon"


async def broken(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Fail."""
    if "early" not in context.text:
        yield "So far"
    raise ValueError("the secret of the module")


@tool(has_effects=False)
async def reading(messages: Sequence[Message], context: MemberContext) -> str:
    """Fail without effects."""
    raise ValueError("the secret of the module")


class Parrot:
    """An object with a method ``run``."""

    has_effects = False

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def run(self, messages: Sequence[Message], context: MemberContext) -> AsyncIterator[Any]:
        """Repeat."""
        yield text_of(messages[-1])

    def close(self) -> None:
        """Note that it was closed."""
        self.closed.set()


parrot = Parrot()


def no_agent(one: str) -> str:
    """A function that does not take a turn."""
    return one


class Runner:
    """Its method is not for turns."""

    def run(self, text: str) -> str:
        """Return the text."""
        return text


runner = Runner()


def uncompiled() -> object:
    """Return a graph of LangGraph that is not compiled."""
    from langgraph.graph import MessagesState, StateGraph

    return StateGraph(MessagesState)


def without_a_key() -> object:
    """A function that makes an agent, whose environment lacks a variable."""
    raise RuntimeError("DESK_KEY is not set\nand more")


number = 7


async def clerk(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Say what it sees, or hand over with data."""
    seen.append(context)
    if "wrong" in context.text:
        yield HandOver("triage", input={"ticket": context.text})
        return
    if "back" in context.text:
        yield HandOver("triage", input={"ticket": 7})
        return
    said = " / ".join(text_of(message) for message in messages if text_of(message))
    yield f"{context.handoff_input} {said}"


class _Keeper:
    """Stores the conversation itself."""

    sees = "own"

    async def run(self, messages: Sequence[Message], context: MemberContext) -> str:
        return "Hello."


keeper = _Keeper()
