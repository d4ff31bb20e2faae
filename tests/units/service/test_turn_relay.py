"""Turns that are followed from another worker: what is sent, lost messages, and workers that die."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.background_tasks import BackgroundTasks
from proxy.events import Completed, Entry, Failed, Started, TextDelta
from proxy.messages import Usage, UserMessage
from proxy.providers.model import Finished
from proxy.service.leases import retire
from proxy.service.turns import Policy, TurnHandle, TurnService
from proxy.turns.request import TurnRequest
from tests.fakes.models import ScriptedModel, says
from tests.fakes.store.approvals import MemoryApprovals
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.teams import agent, team_of
from tests.fakes.worker_messages import MemoryBus, MemoryMessages
from tests.units.service.test_turns import Clock, OneTeam

ASK = TurnRequest(caller="c", model="shop", messages=[UserMessage("Hi")], on_disconnect="detach")


class Workers:
    """Workers on one store and one bus."""

    def __init__(self) -> None:
        self.history = MemoryHistory()
        self.bus = MemoryBus()
        self.clock = Clock()

    async def start(self, *replies: Any, follow: float = 0.01) -> TurnService:
        team = await team_of(agent("triage", ScriptedModel(*replies)))
        service = TurnService(
            OneTeam(team),
            self.history,
            approvals=MemoryApprovals(self.history),
            policy=Policy(follow=follow),
            clock=self.clock,
            messages=MemoryMessages(self.bus),
        )
        await service.start(BackgroundTasks())
        return service


async def read(opened: TurnHandle, count: int | None = None) -> list[Entry]:
    """Read the first entries, or all."""
    entries: list[Entry] = []
    with opened.live.reader() as reader:
        async with asyncio.timeout(5):
            while count is None or len(entries) < count:
                batch = await reader.next()
                entries += batch
                if not batch and opened.live.is_over:
                    break
                if opened.live.is_finished and reader.position >= opened.live.length - len(batch):
                    break
    return entries


async def test_nothing_is_sent_without_readers_at_another_worker() -> None:
    workers = Workers()
    here = await workers.start(says("First"), says("Second"))
    await workers.start()

    await read(await here.open(ASK))
    await read(await here.open(ASK))

    assert workers.bus.sent == []


async def test_a_follower_gets_every_entry_as_it_was_logged() -> None:
    go = asyncio.Event()
    workers = Workers()
    here = await workers.start([TextDelta("First "), go, TextDelta("last"), Finished("stop", Usage(1, 1))])
    there = await workers.start(follow=5.0)
    opened = await here.open(ASK)
    followed = await there.attach("c", opened.turn_id)

    assert [entry.event for entry in await read(followed, 2)] == [
        Started(opened.turn_id, "triage"),
        TextDelta("First "),
    ]
    go.set()
    await read(followed)

    assert followed.live.entries == opened.live.entries
    assert isinstance(followed.live.entries[-1].event, Completed)


async def test_entries_of_a_lost_message_are_sent_again() -> None:
    first, second = asyncio.Event(), asyncio.Event()
    workers = Workers()
    reply = [TextDelta("1"), first, TextDelta("2"), second, TextDelta("3"), Finished("stop", Usage(1, 1))]
    here = await workers.start(reply)
    there = await workers.start(follow=5.0)
    opened = await here.open(ASK)
    followed = await there.attach("c", opened.turn_id)
    await read(followed, 2)
    name = next(name for name in workers.bus.workers if name != here_name(workers, here))
    receive = workers.bus.workers[name]
    lost = asyncio.Event()
    workers.bus.workers[name] = lambda message: lost.set()
    first.set()
    await lost.wait()
    workers.bus.workers[name] = receive
    second.set()

    await read(followed)

    assert followed.live.entries == opened.live.entries


def here_name(workers: Workers, service: TurnService) -> str:
    """The name of the worker, from its running turn."""
    (turn_id,) = service.running_turns()
    return next(one.record.worker for one in workers.history.turns.values() if one.record.id == turn_id)


async def test_a_follower_of_a_worker_that_dies_gets_the_text_so_far() -> None:
    workers = Workers()
    here = await workers.start([TextDelta("First "), asyncio.Event()])
    there = await workers.start()
    opened = await here.open(ASK)
    followed = await there.attach("c", opened.turn_id)
    await read(followed, 2)

    del workers.bus.workers[here_name(workers, here)]
    await workers.history.interrupt(now=workers.clock.now + 60)
    events = [entry.event for entry in await read(followed)]

    assert events[:2] == [Started(opened.turn_id, "triage"), TextDelta("First ")]
    assert isinstance(events[2], Failed)
    assert (len(events), events[2].code) == (3, "turn_interrupted")


async def test_a_follower_does_not_wait_for_the_lease_of_a_worker_that_has_certainly_died() -> None:
    workers = Workers()
    here = await workers.start([TextDelta("First "), asyncio.Event()])
    there = await workers.start()
    opened = await here.open(ASK)
    followed = await there.attach("c", opened.turn_id)
    await read(followed, 2)

    name = here_name(workers, here)
    del workers.bus.workers[name]
    retire(name)
    events = [entry.event for entry in await read(followed)]

    assert isinstance(events[-1], Failed)
    assert (len(events), events[-1].code) == (3, "turn_interrupted")
