"""What every dispatcher promises: exact answers to many at once, errors to the asker, an end to what is cancelled."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.agents.agent_loop import HandedOver, Outcome, Spoke
from proxy.agents.dispatch import AutoGenDispatcher, DirectDispatcher, Dispatcher
from proxy.errors import UpstreamTimeout


@pytest.fixture(params=[AutoGenDispatcher, DirectDispatcher], ids=["autogen", "direct"])
async def dispatcher(request: pytest.FixtureRequest) -> AsyncIterator[Dispatcher]:
    make: Callable[[], Dispatcher] = request.param
    made = make()
    yield made
    await made.close()


async def test_every_one_of_500_concurrent_turns_gets_its_own_answer(dispatcher: Dispatcher) -> None:
    async def handler(turn_id: str) -> Outcome:
        await asyncio.sleep(0)
        return HandedOver(f"after {turn_id}")

    await dispatcher.start({"shop.sales": handler})

    outcomes = await asyncio.gather(*(dispatcher.dispatch("shop.sales", f"t{i}") for i in range(500)))

    assert outcomes == [HandedOver(f"after t{i}") for i in range(500)]


async def test_addresses_reach_their_own_handler(dispatcher: Dispatcher) -> None:
    def saying(name: str) -> Callable[[str], asyncio.Future[Outcome]]:
        async def handler(turn_id: str) -> Outcome:
            return HandedOver(name)

        return lambda turn_id: asyncio.ensure_future(handler(turn_id))

    await dispatcher.start({"shop.sales": saying("sales"), "shop.repairs": saying("repairs")})

    assert await dispatcher.dispatch("shop.repairs", "t1") == HandedOver("repairs")
    assert await dispatcher.dispatch("shop.sales", "t1") == HandedOver("sales")


async def test_an_error_reaches_the_one_who_asked_and_nobody_else(dispatcher: Dispatcher) -> None:
    async def handler(turn_id: str) -> Outcome:
        if turn_id == "bad":
            raise UpstreamTimeout("timeout_first")
        return Spoke("stop")

    await dispatcher.start({"a": handler})
    asked = [dispatcher.dispatch("a", turn_id) for turn_id in ("good", "bad", "fine")]

    good, bad, fine = await asyncio.gather(*asked, return_exceptions=True)

    assert (good, fine) == (Spoke("stop"), Spoke("stop"))
    assert isinstance(bad, UpstreamTimeout)


async def test_a_cancelled_turn_has_cleaned_up_when_the_cancellation_is_seen(dispatcher: Dispatcher) -> None:
    begun, cleaned = asyncio.Event(), []

    async def handler(turn_id: str) -> Outcome:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(turn_id)
        return Spoke("stop")

    await dispatcher.start({"a": handler})
    asking = asyncio.create_task(dispatcher.dispatch("a", "t1"))
    await begun.wait()
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert cleaned == ["t1"]


async def test_a_turn_cancelled_before_it_began_ends_too(dispatcher: Dispatcher) -> None:
    async def handler(turn_id: str) -> Outcome:
        await asyncio.Event().wait()
        return Spoke("stop")

    await dispatcher.start({"a": handler})
    asking = asyncio.create_task(dispatcher.dispatch("a", "t1"))
    await asyncio.sleep(0)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await asking


async def test_a_handler_that_is_cancelled_from_inside_is_an_error_and_not_a_departure() -> None:
    dispatcher = AutoGenDispatcher()

    async def handler(turn_id: str) -> Outcome:
        raise asyncio.CancelledError

    await dispatcher.start({"a": handler})
    with pytest.raises(RuntimeError):
        await dispatcher.dispatch("a", "t1")
    await dispatcher.close()


async def test_nothing_is_left_of_10_000_turns(dispatcher: Dispatcher) -> None:
    async def handler(turn_id: str) -> Outcome:
        return Spoke("stop")

    async def many(count: int) -> None:
        for start in range(0, count, 500):
            await asyncio.gather(*(dispatcher.dispatch("a", f"t{start + i}") for i in range(500)))

    await dispatcher.start({"a": handler})
    await many(1_000)
    gc.collect()
    before = len(gc.get_objects())

    await many(10_000)

    gc.collect()
    assert len(gc.get_objects()) - before < 500
