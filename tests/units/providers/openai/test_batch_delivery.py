"""Batches that are processed in the call of the event loop which receives them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, cast

import pytest

from proxy.errors import UpstreamFailed, UpstreamTimeout
from proxy.events import TextDelta
from proxy.providers.http.connection import HIGH_WATER, Connection, Owner
from proxy.providers.model import Finished, Forward, ModelDelta, ModelRequest, forward_of
from proxy.providers.openai.answer import Accepted, ProviderAnswer
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.timeouts import ModelLimits
from tests.fakes.answering_model import FakeAnsweringModel

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NAME: ContextVar[str] = ContextVar("name")


class FakeTransport:
    """The transport of a connection to a provider; its methods record their names."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.protocol: asyncio.Protocol

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class Provider:
    """The other side of a connection."""

    def __init__(self) -> None:
        self.connection = Connection(Owner())
        self.transport = FakeTransport()
        self.transport.protocol = self.connection
        self.connection.connection_made(cast(asyncio.Transport, self.transport))
        self.response = self.connection.ask(b"request")

    def send(self, *events: str) -> None:
        """Let the events arrive with one read."""
        data = b"".join(b"data: %b\n\n" % event.encode() for event in events)
        self.transport.protocol.data_received(b"%x\r\n%b\r\n" % (len(data), data))

    @asynccontextmanager
    async def answer(
        self, limits: ModelLimits | None = None
    ) -> AsyncIterator[tuple[ProviderAnswer, Forward]]:
        """Begin an answer, and read its first word."""

        async def send(request: ModelRequest) -> Accepted:
            return Accepted(self.response, AnswerReader)

        self.transport.protocol.data_received(HEAD)
        self.send(word("Hello"))
        call = ProviderAnswer(
            FakeAnsweringModel(send),
            ModelRequest(messages=[]),
            limits or ModelLimits(),
        )
        async with asyncio.timeout(10), call as batches:
            assert await anext(batches) == [TextDelta("Hello")]
            forward = forward_of(batches)
            assert forward is not None
            yield call, forward


def word(text: str, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": reason}]})


class Taker:
    """Records batches; ``is_open`` is what ``take`` returns."""

    def __init__(self) -> None:
        self.batches: list[Sequence[ModelDelta]] = []
        self.names: list[str] = []
        self.is_open = True

    def take(self, batch: Sequence[ModelDelta]) -> bool:
        self.batches.append(batch)
        self.names.append(NAME.get(""))
        return self.is_open

    @property
    def text(self) -> str:
        return "".join(
            delta.text for batch in self.batches for delta in batch if isinstance(delta, TextDelta)
        )


@asynccontextmanager
async def forwarding(forward: Forward, taker: Taker) -> AsyncIterator[asyncio.Task[bool]]:
    task = asyncio.ensure_future(forward(taker.take))
    await asyncio.sleep(0)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_batches_are_taken_as_they_arrive_in_the_context_of_the_task() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (_, forward):
        NAME.set("of the turn")
        async with forwarding(forward, taker) as task:
            NAME.set("of the loop")
            provider.send(word(" dear"), word(" client"))

            assert taker.batches == [[TextDelta(" dear"), TextDelta(" client")]]
            assert taker.names == ["of the turn"]
            assert not task.done()


async def test_data_that_came_before_is_taken_first() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (_, forward):
        provider.send(word(" dear"))
        async with forwarding(forward, taker):
            assert taker.text == " dear"


async def test_nothing_is_taken_after_take_has_refused() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (call, forward):
        async with forwarding(forward, taker) as task:
            taker.is_open = False
            provider.send(word(" one"))
            provider.send(word(" two"))
            assert not await task
            provider.send(word(" three"))
            assert taker.text == " one"
        assert await anext(call) == [TextDelta(" two"), TextDelta(" three")]


async def test_the_end_is_read_by_the_task() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (call, forward):
        async with forwarding(forward, taker) as task:
            provider.send(word(" dear"))
            provider.send(word(" client", "stop"), "[DONE]")
            assert await task
        assert taker.text == " dear"
        assert await anext(call) == [TextDelta(" client"), Finished("stop")]
        assert await forward(taker.take)
        with pytest.raises(StopAsyncIteration):
            await anext(call)


async def test_usage_behind_the_finish_reason_is_read_by_the_task() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (call, forward):
        async with forwarding(forward, taker) as task:
            provider.send(json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]}))
            assert await task
        assert await forward(taker.take)
        provider.send("[DONE]")
        assert await anext(call) == [Finished("stop")]


async def test_a_reported_error_is_raised_and_described() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (_, forward), forwarding(forward, taker) as task:
        provider.send(json.dumps({"error": {"message": "overloaded"}}))
        with pytest.raises(UpstreamFailed) as raised:
            await task
    assert raised.value.facts["host"] == "described"


async def test_deltas_before_an_error_are_not_lost() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (call, forward):
        async with forwarding(forward, taker) as task:
            provider.send(word(" dear"), json.dumps({"error": {"message": "overloaded"}}))
            assert await task
        assert await anext(call) == [TextDelta(" dear")]
        with pytest.raises(UpstreamFailed):
            await anext(call)


async def test_a_lost_connection_is_a_failure_behind_what_came() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (call, forward):
        async with forwarding(forward, taker) as task:
            provider.send(word(" dear"))
            provider.connection.connection_lost(None)
            assert await task
        assert taker.text == " dear"
        with pytest.raises(UpstreamFailed):
            await anext(call)


async def test_a_provider_that_sends_nothing_more_times_out() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer(ModelLimits(idle=0.05)) as (call, forward):
        assert await forward(taker.take)
        with pytest.raises(UpstreamTimeout):
            await anext(call)


async def test_an_exception_of_take_is_raised_in_the_task() -> None:
    provider = Provider()

    def take(batch: Sequence[ModelDelta]) -> bool:
        raise ValueError("broken")

    async with provider.answer() as (_, forward):
        provider.send(word(" dear"))
        with pytest.raises(ValueError, match="broken"):
            await forward(take)


async def test_a_cancelled_task_leaves_the_rest_in_the_response() -> None:
    provider, taker = Provider(), Taker()
    async with provider.answer() as (call, forward):
        async with forwarding(forward, taker):
            pass
        provider.send(word(" dear"))
        assert taker.batches == []
        assert await anext(call) == [TextDelta(" dear")]


async def test_a_fast_provider_lets_other_tasks_run() -> None:
    provider, taker = Provider(), Taker()
    piece = word("x" * 60_000)
    async with provider.answer() as (_, forward), forwarding(forward, taker) as task:
        for _ in range(10):
            provider.send(piece)
        assert await task
        assert HIGH_WATER - 60_000 < len(taker.text) <= HIGH_WATER + 60_000
        # The rest waits in the response, which stops reading.
        assert provider.transport.calls == ["write", "pause_reading"]
