"""The pool of objects of AutoGen AgentChat."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat")

from proxy.members.adapters.agentchat_objects import Pool


class FakeAgent:
    """An agent that records whether it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def save_state(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.is_closed = True


async def test_object_whose_run_has_ended_is_used_again_and_closed_with_the_pool() -> None:
    made: list[FakeAgent] = []
    pool = Pool(first := FakeAgent(), lambda: made.append(FakeAgent()))
    for _ in range(2):
        async with pool.take() as taken:
            taken.is_usable = True

    assert taken.found is first
    assert (made, first.is_closed) == ([], False)
    await pool.close()
    assert first.is_closed


async def test_object_whose_run_was_stopped_is_closed_and_replaced() -> None:
    pool = Pool(first := FakeAgent(), FakeAgent)

    async with pool.take() as taken:
        assert taken.found is first
    assert first.is_closed
    async with pool.take() as taken:
        assert taken.found is not first


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("broken")])
async def test_object_of_a_cancelled_or_failed_run_is_closed(error: BaseException) -> None:
    pool = Pool(found := FakeAgent(), FakeAgent)

    async def run() -> None:
        async with pool.take() as taken:
            taken.is_usable = True
            raise error

    with pytest.raises(type(error)):
        await run()

    assert found.is_closed
