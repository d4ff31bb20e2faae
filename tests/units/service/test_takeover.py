"""Turns that outlive their worker: what the next worker continues with, and what the earlier one can still do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from proxy.agents.agent import Agent
from proxy.background_tasks import BackgroundTasks
from proxy.events import TAKEOVER_POSITIONS, Completed, Entry, Failed, TextDelta, ToolFailed
from proxy.messages import ToolMessage, Usage, UserMessage, text_of
from proxy.providers.model import Finished
from proxy.service.turns import Policy, TurnHandle, TurnService
from proxy.tools.port import ToolContext
from proxy.turns.request import TurnRequest
from proxy.turns.turn import RUN_UNKNOWN
from tests.fakes.models import ScriptedModel, calls, says
from tests.fakes.store.approvals import MemoryApprovals
from tests.fakes.store.checkpoints import MemoryCheckpoints
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.teams import FixedTool, agent, team_of
from tests.fakes.worker_messages import MemoryBus, MemoryMessages
from tests.units.service.test_turns import Clock, OneTeam

ASK = TurnRequest(
    caller="c", model="shop", messages=[UserMessage("Hi")], body_digest=b"d" * 16, idempotency_key="key-1"
)
LOOK_UP = calls(("look_up", "{}"))


class HangingTool(FixedTool):
    """A tool that does not end."""

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        await super().call(arguments, context)
        await asyncio.Event().wait()
        return ""


class Workers:
    """Workers on one store; a worker is dead for the others when its lease has expired."""

    def __init__(self) -> None:
        self.history = MemoryHistory()
        self.approvals = MemoryApprovals(self.history)
        self.clock = Clock()
        self.bus = MemoryBus()
        self.models: list[ScriptedModel] = []

    async def start(
        self,
        *replies: Any,
        tools: Sequence[FixedTool] = (),
        approvals: Sequence[str] = (),
        before: Sequence[Agent] = (),
    ) -> TurnService:
        """Start a worker; ``before`` are agents before the one with the model."""
        model = ScriptedModel(*replies)
        self.models.append(model)
        service = TurnService(
            OneTeam(await team_of(*before, agent("triage", model, tools=tools, approvals=approvals))),
            self.history,
            approvals=self.approvals,
            policy=Policy(follow=0.01),
            clock=self.clock,
            checkpoints=MemoryCheckpoints(self.history),
            messages=MemoryMessages(self.bus),
        )
        await service.start(BackgroundTasks())
        return service

    async def next_worker(self, *replies: Any, **given: Any) -> TurnService:
        """A worker that starts after the leases of the others have expired, and takes over their turns."""
        self.clock.now += 60
        return await self.start(*replies, **given)

    def results(self) -> list[str]:
        """The tool results that the model of the last worker got."""
        messages = self.models[-1].requests[-1].messages
        return [text_of(message) for message in messages if isinstance(message, ToolMessage)]


async def read(opened: TurnHandle, count: int | None = None) -> list[Entry]:
    """Read the first entries, or all."""
    entries: list[Entry] = []
    with opened.live.reader() as reader:
        async with asyncio.timeout(5):
            while (count is None or len(entries) < count) and not (
                entries and opened.live.is_finished and len(entries) >= opened.live.length
            ):
                entries += await reader.next()
    return entries


def rounded(entries: Sequence[Entry]) -> list[Entry]:
    """The entries with times in milliseconds, as encoders write them."""
    return [Entry(entry.position, entry.event, round(entry.time, 3)) for entry in entries]


async def until_called(tool: FixedTool) -> None:
    async with asyncio.timeout(5):
        while not tool.calls:
            await asyncio.sleep(0)


async def test_another_worker_continues_after_the_last_step_with_the_same_log() -> None:
    workers, tool = Workers(), FixedTool("look_up", "found")
    here = await workers.start(LOOK_UP, [TextDelta("Lost "), asyncio.Event()], tools=[tool])
    first = await here.open(ASK)
    before = await read(first, 5)
    assert before[-1].event == TextDelta("Lost ")

    there = await workers.next_worker(says("Found it"), tools=[tool])
    again = await there.open(ASK)
    after = await read(again)

    assert again.turn_id == first.turn_id
    assert rounded(after[:4]) == rounded(before[:4])
    assert [entry.position for entry in after[4:]] == [
        TAKEOVER_POSITIONS + position for position in range(5, len(after) + 1)
    ]
    assert [entry.event for entry in after[4:6]] == [TextDelta("Found "), TextDelta("it")]
    assert isinstance(after[-1].event, Completed)
    assert (len(tool.calls), workers.results()) == (1, ["found"])
    stored = await there.attach("c", first.turn_id)
    assert rounded(stored.live.entries) == rounded(after)


async def test_a_turn_without_a_completed_step_begins_again() -> None:
    workers = Workers()
    here = await workers.start([asyncio.Event()])
    first = await here.open(ASK)
    await read(first, 1)

    there = await workers.next_worker(says("Hello"))
    again = await there.open(ASK)
    events = await read(again)

    assert (again.turn_id, events[0]) == (first.turn_id, first.live.entries[0])
    assert isinstance(events[-1].event, Completed)


async def test_a_running_tool_with_effects_is_reported_as_unknown_and_not_run_again() -> None:
    workers, tool = Workers(), HangingTool("refund", has_effects=True)
    here = await workers.start(calls(("refund", '{"n":1}')), tools=[tool])
    await here.open(ASK)
    await until_called(tool)

    there = await workers.next_worker(says("I do not know"), tools=[tool])
    events = [entry.event for entry in await read(await there.open(ASK))]

    assert len(tool.calls) == 1
    assert workers.results() == [RUN_UNKNOWN]
    assert [event.error for event in events if isinstance(event, ToolFailed)] == [RUN_UNKNOWN]
    assert isinstance(events[-1], Completed)


async def test_a_running_tool_without_effects_is_run_again_with_the_same_key() -> None:
    workers, hanging, tool = Workers(), HangingTool("look_up"), FixedTool("look_up", "found")
    here = await workers.start(LOOK_UP, tools=[hanging])
    await here.open(ASK)
    await until_called(hanging)

    there = await workers.next_worker(says("Found it"), tools=[tool])
    await read(await there.open(ASK))

    assert (tool.keys, workers.results()) == (hanging.keys, ["found"])


async def test_the_earlier_worker_stops_and_stores_nothing() -> None:
    workers, tool, go = Workers(), FixedTool("refund", has_effects=True), asyncio.Event()
    refund = calls(("refund", "{}"))
    here = await workers.start([go, *refund], tools=[tool])
    first = await here.open(ASK)
    await read(first, 1)

    there = await workers.next_worker(says("Done"), tools=[tool])
    await read(await there.open(ASK))
    go.set()
    events = [entry.event for entry in await read(first)]

    assert isinstance(events[-1], Failed)
    assert (events[-1].code, tool.calls) == ("turn_lease_lost", [])
    record = await workers.history.turn("c", first.turn_id)
    assert record is not None
    assert [text_of(item.message) for item in record.items] == ["Done"]


async def test_a_turn_without_a_key_or_readers_ends_with_its_worker() -> None:
    workers, tool = Workers(), FixedTool("look_up")
    here = await workers.start(LOOK_UP, [asyncio.Event()], tools=[tool])
    first = await here.open(replace(ASK, idempotency_key=None))
    await read(first, 4)
    assert all(not turn.checkpoints for turn in workers.history.turns.values())

    await workers.next_worker(says("Hello"), tools=[tool])

    record = await workers.history.turn("c", first.turn_id)
    assert record is not None
    assert record.status == "interrupted"


async def test_a_follower_at_a_third_worker_continues_without_a_gap() -> None:
    workers, tool, go = Workers(), FixedTool("look_up", "found"), asyncio.Event()
    here = await workers.start([go, *LOOK_UP], [asyncio.Event()], tools=[tool])
    third = await workers.start()
    first = await here.open(replace(ASK, idempotency_key=None))
    followed = await third.attach("c", first.turn_id)
    reading = asyncio.create_task(read(followed))
    await read(await here.attach("c", first.turn_id), 1)
    await asyncio.sleep(0)
    go.set()
    await read(followed, 4)

    there = await workers.next_worker(says("Found it"), tools=[tool])
    entries = await reading

    assert isinstance(entries[-1].event, Completed)
    assert rounded(entries) == rounded((await there.attach("c", first.turn_id)).live.entries)


async def test_a_follower_that_has_lost_text_gets_an_error() -> None:
    workers = Workers()
    here = await workers.start([TextDelta("Lost "), asyncio.Event()])
    third = await workers.start()
    first = await here.open(ASK)
    followed = await third.attach("c", first.turn_id)
    reading = asyncio.create_task(read(followed))
    await read(followed, 2)

    await workers.next_worker([TextDelta("New"), Finished("stop", Usage(1, 1))])
    closing = (await reading)[-1].event

    assert isinstance(closing, Failed)
    assert closing.code == "turn_taken_over"


async def test_a_turn_that_a_shutdown_ends_is_continued_at_once() -> None:
    workers = Workers()
    tool = FixedTool("look_up", "found")
    here = await workers.start(LOOK_UP, [TextDelta("Lost "), asyncio.Event()], tools=[tool])
    first = await here.open(ASK)
    await read(first, 5)

    await here.close(grace=0)
    (left,) = workers.history.turns.values()
    # For workers of other hosts, which cannot see that the process has ended.
    assert (left.record.status, left.record.lease_until) == ("running", workers.clock.now)
    workers.clock.now += 0.01
    there = await workers.start(says("Answer"), tools=[tool])
    again = await there.open(ASK)
    events = [entry.event for entry in await read(again)]

    closing = first.live.entries[-1].event
    assert isinstance(closing, Failed)
    assert closing.code == "turn_taken_over"
    assert (again.turn_id, isinstance(events[-1], Completed)) == (first.turn_id, True)
    assert len(tool.calls) == 1


async def test_a_turn_that_something_it_called_has_cancelled_ends_at_its_worker() -> None:
    workers = Workers()
    tool = FixedTool("look_up", "found")
    here = await workers.start(LOOK_UP, [asyncio.CancelledError()], tools=[tool])

    events = [entry.event for entry in await read(await here.open(ASK))]

    (left,) = workers.history.turns.values()
    assert (type(events[-1]), left.record.status) == (Failed, "failed")
