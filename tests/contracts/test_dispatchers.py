"""What every dispatcher guarantees: outcomes and errors go to their own caller, and a cancelled agent has ended."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.agents.agent_loop import AgentAnswered, AgentHandedOff, AgentOutcome
from proxy.agents.dispatch import AutoGenDispatcher, DirectDispatcher, Dispatcher
from proxy.agents.queued_dispatch import QueuedDispatcher
from proxy.agents.turn_state import TurnState
from proxy.errors import UpstreamTimeout
from proxy.teamfiles.definitions import Limits
from tests.fakes.teams import RememberingSink, turn_of


@dataclass(frozen=True)
class Agent:
    """An agent that is one function of the turn's id."""

    work: Callable[[str], Awaitable[AgentOutcome]]

    async def run(self, state: TurnState) -> AgentOutcome:
        return await self.work(state.turn.id)


def state(turn_id: str) -> TurnState:
    turn = turn_of(agent="a", turn_id=turn_id)
    return TurnState(team="shop", turn=turn, sink=RememberingSink(), limits=Limits(), data_dir=Path())


@pytest.fixture(
    params=[AutoGenDispatcher, QueuedDispatcher, DirectDispatcher], ids=["autogen", "queued", "direct"]
)
async def dispatcher(request: pytest.FixtureRequest) -> AsyncIterator[Dispatcher]:
    make: Callable[[], Dispatcher] = request.param
    created = make()
    await created.start()
    yield created
    await created.close()


async def test_every_one_of_500_concurrent_turns_gets_its_own_outcome(dispatcher: Dispatcher) -> None:
    async def work(turn_id: str) -> AgentOutcome:
        await asyncio.sleep(0)
        return AgentHandedOff(f"after {turn_id}")

    outcomes = await asyncio.gather(*(dispatcher.run(Agent(work), state(f"t{i}")) for i in range(500)))

    assert outcomes == [AgentHandedOff(f"after t{i}") for i in range(500)]


async def test_concurrent_turns_run_their_own_agents(dispatcher: Dispatcher) -> None:
    def named(name: str) -> Agent:
        async def work(turn_id: str) -> AgentOutcome:
            await asyncio.sleep(0)
            return AgentHandedOff(f"{name} in {turn_id}")

        return Agent(work)

    outcomes = await asyncio.gather(
        dispatcher.run(named("repairs"), state("t1")), dispatcher.run(named("sales"), state("t2"))
    )

    assert list(outcomes) == [AgentHandedOff("repairs in t1"), AgentHandedOff("sales in t2")]


async def test_the_agents_of_one_turn_run_one_after_the_other_on_the_same_state(
    dispatcher: Dispatcher,
) -> None:
    class Counting:
        async def run(self, state: TurnState) -> AgentOutcome:
            state.handoffs += 1
            return AgentHandedOff(str(state.handoffs))

    shared = state("t1")

    outcomes = [await dispatcher.run(Counting(), shared) for _ in range(3)]

    assert outcomes == [AgentHandedOff("1"), AgentHandedOff("2"), AgentHandedOff("3")]


async def test_an_error_is_raised_to_its_own_caller_only(dispatcher: Dispatcher) -> None:
    async def work(turn_id: str) -> AgentOutcome:
        if turn_id == "bad":
            raise UpstreamTimeout("timeout_first")
        return AgentAnswered("stop")

    running = [dispatcher.run(Agent(work), state(turn_id)) for turn_id in ("good", "bad", "fine")]

    good, bad, fine = await asyncio.gather(*running, return_exceptions=True)

    assert (good, fine) == (AgentAnswered("stop"), AgentAnswered("stop"))
    assert isinstance(bad, UpstreamTimeout)


async def test_a_cancelled_turn_has_cleaned_up_when_the_cancellation_is_seen(dispatcher: Dispatcher) -> None:
    begun, cleaned = asyncio.Event(), []

    async def work(turn_id: str) -> AgentOutcome:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(turn_id)
        return AgentAnswered("stop")

    running = asyncio.create_task(dispatcher.run(Agent(work), state("t1")))
    await begun.wait()
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert cleaned == ["t1"]


async def test_a_turn_cancelled_before_its_agent_began_ends_too(dispatcher: Dispatcher) -> None:
    async def work(turn_id: str) -> AgentOutcome:
        await asyncio.Event().wait()
        return AgentAnswered("stop")

    running = asyncio.create_task(dispatcher.run(Agent(work), state("t1")))
    await asyncio.sleep(0)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await running


@pytest.mark.parametrize("make", [AutoGenDispatcher, QueuedDispatcher], ids=["autogen", "queued"])
async def test_an_agent_that_is_cancelled_from_inside_is_an_error_and_not_a_cancelled_turn(
    make: Callable[[], Dispatcher],
) -> None:
    dispatcher = make()
    await dispatcher.start()

    async def work(turn_id: str) -> AgentOutcome:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError):
        await dispatcher.run(Agent(work), state("t1"))
    await dispatcher.close()


async def test_no_objects_remain_of_2_000_turns(dispatcher: Dispatcher) -> None:
    async def work(turn_id: str) -> AgentOutcome:
        return AgentAnswered("stop")

    async def many(count: int) -> None:
        for start in range(0, count, 500):
            await asyncio.gather(*(dispatcher.run(Agent(work), state(f"t{start + i}")) for i in range(500)))

    await many(500)
    gc.collect()
    before = len(gc.get_objects())

    await many(2_000)

    gc.collect()
    assert len(gc.get_objects()) - before < 500
