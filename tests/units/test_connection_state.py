"""Events of an HTTP connection, which replace those of asyncio."""

from __future__ import annotations

import asyncio

import pytest

from proxy.connection_state import ConnectionEvent


async def test_an_event_wakes_all_waiters_and_can_be_cleared() -> None:
    event = ConnectionEvent()
    waiters = [asyncio.create_task(event.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not event.is_set()

    event.set()
    event.clear()

    assert await asyncio.gather(*waiters) == [True, True]
    assert not event.is_set()


async def test_an_event_that_is_set_does_not_wait() -> None:
    assert await ConnectionEvent(is_set=True).wait()


async def test_a_cancelled_waiter_does_not_affect_the_others() -> None:
    event = ConnectionEvent()
    cancelled, other = (asyncio.create_task(event.wait()) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled

    event.set()

    assert await other
