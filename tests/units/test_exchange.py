"""Turns of workers that are gone, and ends that cannot be written."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.errors import ModelNotFound, StoreUnavailable
from proxy.events import Cancelled, Completed, Failed, Started, TextDelta
from proxy.exchange.asking import Ask
from proxy.exchange.history import Begun, NewTurn, TurnEnd
from proxy.exchange.service import Exchange, Opened, Policy
from proxy.messages import UserMessage
from proxy.store.memory import MemoryHistory
from tests.fakes.history import new_turn
from tests.fakes.models import ScriptedModel, says
from tests.fakes.teams import agent, team_of


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class OneTeam:
    def __init__(self, team: Any) -> None:
        self._team = team

    def find(self, model: str) -> tuple[Any, bool]:
        if model != self._team.name:
            raise ModelNotFound(model)
        return self._team, False


async def exchange_of(*replies: Any, history: Any = None, clock: Clock | None = None) -> Exchange:
    team = await team_of(agent("triage", ScriptedModel(*replies)))
    policy = Policy(heartbeat=0.01)
    return Exchange(OneTeam(team), history or MemoryHistory(), policy=policy, clock=clock or Clock())


async def end_of(opened: Opened) -> Any:
    with opened.live.follower() as follower:
        async with asyncio.timeout(5):
            while not opened.live.is_finished:
                await follower.next()
    return opened.live.entries[-1].event


ASK = Ask(caller="c", model="shop", messages=[UserMessage("Hi")])


async def test_an_answer_is_completed_only_after_it_was_stored() -> None:
    exchange = await exchange_of(says("Hello"))

    opened = await exchange.open(ASK)

    assert isinstance(await end_of(opened), Completed)
    again = await exchange.attach("c", opened.turn_id)
    assert again.live.entries == opened.live.entries


async def test_an_answer_that_cannot_be_stored_is_no_success() -> None:
    class Full(MemoryHistory):
        async def finish(self, end: TurnEnd) -> bool:
            raise StoreUnavailable

    exchange = await exchange_of(says("Hello"), history=Full())

    opened = await exchange.open(ASK)

    end = await end_of(opened)
    assert isinstance(end, Failed)
    assert (end.code, end.is_repeatable) == ("storage_unavailable", True)
    assert any(isinstance(entry.event, TextDelta) for entry in opened.live.entries)


async def test_a_turn_that_lost_its_lease_does_not_say_that_it_was_kept() -> None:
    class Swept(MemoryHistory):
        async def finish(self, end: TurnEnd) -> bool:
            return False

    exchange = await exchange_of(says("Hello"), history=Swept())

    end = await end_of(await exchange.open(ASK))

    assert isinstance(end, Failed)
    assert end.code == "internal_error"


async def test_a_turn_that_is_stopped_before_its_first_step_ends_like_any_other() -> None:
    history = MemoryHistory()
    exchange = await exchange_of(says("Hello"), history=history)

    opened = await exchange.open(ASK)
    assert opened.live.stop("requested")

    end = await end_of(opened)
    assert isinstance(end, Cancelled)
    assert isinstance(opened.live.entries[0].event, Started)
    assert exchange.running == 0
    record = await history.turn("c", opened.turn_id)
    assert record is not None
    assert record.status == "cancelled"


async def test_a_turn_that_was_being_opened_when_the_server_stopped_is_stopped_too() -> None:
    begins, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(MemoryHistory):
        async def begin(self, turn: NewTurn) -> Begun:
            begins.set()
            await goes_on.wait()
            return await super().begin(turn)

    exchange = await exchange_of(says("Hello"), history=Slow())

    opening = asyncio.create_task(exchange.open(ASK))
    await begins.wait()
    await exchange.close(grace=0)
    goes_on.set()

    end = await end_of(await opening)
    assert isinstance(end, Cancelled)
    assert end.reason == "shutting_down"


async def test_who_follows_a_turn_of_another_worker_is_told_that_this_one_stops() -> None:
    history, clock = MemoryHistory(), Clock()
    elsewhere = new_turn(caller="c", worker="elsewhere:1:x", created_at=clock.now, lease_until=clock.now + 15)
    await history.begin(elsewhere)
    exchange = await exchange_of(history=history, clock=clock)

    opened = await exchange.attach("c", elsewhere.id)
    await asyncio.sleep(0)
    await exchange.close(grace=0)

    end = await end_of(opened)
    assert isinstance(end, Cancelled)
    assert end.reason == "shutting_down"
    record = await history.turn("c", elsewhere.id)
    assert record is not None
    assert record.status == "running"


async def test_who_follows_a_turn_of_a_worker_that_died_is_told_when_its_lease_is_over() -> None:
    history, clock = MemoryHistory(), Clock()
    lost = new_turn(caller="c", worker="elsewhere:1:x", created_at=clock.now, lease_until=clock.now + 15)
    await history.begin(lost)
    exchange = await exchange_of(history=history, clock=clock)

    opened = await exchange.attach("c", lost.id)
    assert not opened.live.is_finished
    clock.now += 16

    assert isinstance(await end_of(opened), Failed)
    record = await history.turn("c", lost.id)
    assert record is not None
    assert record.status == "interrupted"


async def test_an_answer_that_cannot_even_be_written_down_is_no_success_and_frees_its_conversation() -> None:
    history = MemoryHistory()
    exchange = await exchange_of(says("half a pair: \ud800"), history=history)

    opened = await exchange.open(ASK)

    end = await end_of(opened)
    assert isinstance(end, Failed)
    assert end.code == "internal_error"
    record = await history.turn("c", opened.turn_id)
    assert record is not None
    assert (record.status, record.error_code) == ("failed", "internal_error")
