"""A language model that plays a script, for tests of everything above the model port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from proxy.events import TextDelta
from proxy.messages import FinishReason, Usage
from proxy.providers.capabilities import Abilities
from proxy.providers.model import Finished, ModelDelta, ModelRequest, ToolCallPiece

Reply = Sequence[ModelDelta | BaseException | asyncio.Event]
"""Deltas in order; an exception is raised at its place, an event is waited for."""

USAGE = Usage(prompt=10, completion=5)


def says(text: str, *, reason: FinishReason = "stop", usage: Usage | None = USAGE) -> Reply:
    """A reply of words."""
    return [*(TextDelta(piece) for piece in _pieces(text)), Finished(reason, usage)]


def calls(*named: tuple[str, str], text: str = "", usage: Usage | None = USAGE) -> Reply:
    """A reply of tool calls, each (name, arguments), optionally after text."""
    pieces: list[ModelDelta] = [TextDelta(piece) for piece in _pieces(text)]
    for index, (name, arguments) in enumerate(named):
        pieces.append(ToolCallPiece(index, name=name, call_id=f"upstream-{index}"))
        pieces.append(ToolCallPiece(index, arguments=arguments))
    return [*pieces, Finished("tool_calls", usage)]


def _pieces(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]] if text else []


class ScriptedModel:
    """Gives its replies in order, or those that a function of the request chooses."""

    def __init__(
        self,
        *script: Reply,
        choose: Callable[[ModelRequest], Reply] | None = None,
        abilities: Abilities | None = None,
    ) -> None:
        self.name = "scripted"
        self.abilities = abilities or Abilities()
        self.requests: list[ModelRequest] = []
        self.open = 0
        self._script = list(script)
        self._choose = choose

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncIterator[AsyncIterator[Sequence[ModelDelta]]]:
        self.requests.append(request)
        reply = self._choose(request) if self._choose else self._script.pop(0)
        self.open += 1
        try:
            yield self._batches(reply)
        finally:
            self.open -= 1

    async def _batches(self, reply: Reply) -> AsyncIterator[Sequence[ModelDelta]]:
        for step in reply:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield [step]

    async def close(self) -> None:
        return None
