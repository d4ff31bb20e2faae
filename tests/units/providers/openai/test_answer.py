"""How long an answer is waited for, and who may cancel the wait."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress

import pytest

from proxy.errors import UpstreamTimeout, UpstreamUnreachable
from proxy.providers.model import ModelRequest
from proxy.providers.openai.answer import Accepted, ProviderAnswer
from proxy.providers.timeouts import ModelLimits
from tests.fakes.answering_model import FakeAnsweringModel, Send


def answer_of(send: Send, *, first_token: float) -> ProviderAnswer:
    return ProviderAnswer(
        FakeAnsweringModel(send),
        ModelRequest(messages=[]),
        ModelLimits(first_token=first_token),
    )


def current() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def never(request: ModelRequest) -> Accepted:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def test_a_request_without_an_answer_is_given_up_and_the_task_can_continue() -> None:
    with pytest.raises(UpstreamTimeout) as raised:
        async with answer_of(never, first_token=0.01):
            pass

    assert (raised.value.label, raised.value.facts) == ("timeout_first", {"host": "described"})
    assert current().cancelling() == 0
    # Time limits around the call find their own cancellations.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.get_running_loop().create_future()


async def test_a_limit_of_the_caller_is_not_reported_as_a_late_answer() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), answer_of(never, first_token=20):
            pass


async def test_a_cancellation_of_the_caller_stays_one_if_the_answer_is_late_too() -> None:
    async def cancelled_twice(request: ModelRequest) -> Accepted:
        try:
            return await never(request)
        except asyncio.CancelledError:
            current().cancel()
            raise

    async def call() -> None:
        async with answer_of(cancelled_twice, first_token=0.01):
            pass

    task = asyncio.create_task(call())
    await asyncio.wait([task])

    assert task.cancelled()


async def test_a_failure_that_comes_with_the_timeout_leaves_no_cancellation() -> None:
    async def failing(request: ModelRequest) -> Accepted:
        try:
            return await never(request)
        except asyncio.CancelledError:
            raise UpstreamUnreachable("refused") from None

    with pytest.raises(UpstreamUnreachable):
        async with answer_of(failing, first_token=0.01):
            pass

    assert current().cancelling() == 0


async def test_an_answer_that_does_not_begin_is_freed_before_its_deadline() -> None:
    async def rejected(request: ModelRequest) -> Accepted:
        raise UpstreamUnreachable("refused")

    answer = answer_of(rejected, first_token=20)
    freed = weakref.ref(answer)
    with suppress(UpstreamUnreachable):
        await answer.__aenter__()
    del answer
    gc.collect()

    assert freed() is None
