"""Stopping, sealing, disconnects, memory counts and positions of a live turn."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.events import (
    ClientToolArguments,
    ClientToolCall,
    Completed,
    Entry,
    Event,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
)
from proxy.messages import Usage
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from proxy.turns.log_memory import ENTRY_WEIGHT, LogMemory
from proxy.turns.turn_log import BATCH_SIZE, COUNTED_BYTES

DONE = Completed("triage", "stop", Usage())


async def forever() -> None:
    await asyncio.Event().wait()


async def running(live: LiveTurn) -> asyncio.Task[None]:
    """Start a task as the writer of the turn."""
    task = asyncio.create_task(forever())
    live.task = task
    await asyncio.sleep(0)
    return task


async def ended(task: asyncio.Task[None]) -> bool:
    """Whether the task was cancelled by now."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task.cancelled()


@pytest.mark.parametrize(
    ("event", "size"),
    [
        (TextDelta("x" * 7), 7),
        (ReasoningDelta("x" * 5), 5),
        (RefusalDelta("x" * 6), 6),
        (ClientToolArguments(0, "x" * 9), 9),
        (ClientToolCall(0, "call", "name"), 8),
        (Started("turn", "triage"), 0),
    ],
)
async def test_weight_of_an_entry_is_a_constant_and_its_text_without_names_of_agents(
    event: Event, size: int
) -> None:
    live = LiveTurn("a")

    live.emit(event)
    live.emit(event)

    assert live.log.weight == 2 * (size + ENTRY_WEIGHT)


async def test_weight_counts_from_the_registration_or_the_first_reader_to_the_end_of_both() -> None:
    memory = LogMemory()
    live = LiveTurn("a", memory=memory)
    live.emit(TextDelta("x"))
    assert (memory.used, memory.logs) == (0, set())

    with live.reader():
        assert (memory.used, memory.logs) == (COUNTED_BYTES, {live})
        live.register()
        live.unregister()
        assert (memory.used, memory.logs) == (COUNTED_BYTES, {live})
        live.register()
    assert (memory.used, memory.logs) == (COUNTED_BYTES, {live})
    live.unregister()
    assert (memory.used, memory.logs) == (0, set())
    live.emit(TextDelta("y" * COUNTED_BYTES))
    assert memory.used == 0


async def test_memory_of_a_log_is_counted_when_it_exceeds_what_is_counted() -> None:
    memory = LogMemory()
    live = LiveTurn("a", memory=memory)
    live.register()
    counts = []
    for characters in (1, COUNTED_BYTES - 2 * ENTRY_WEIGHT - 1, 1, 3 * COUNTED_BYTES):
        live.emit(TextDelta("x" * characters))
        counts.append(memory.used // COUNTED_BYTES)

    assert counts == [1, 1, 2, 5]
    assert memory.used >= live.log.weight


async def test_memory_is_exhausted_at_its_limit_and_reports_that_once_per_crossing() -> None:
    memory = LogMemory(limit=10)
    reports: list[int] = []
    memory.add(3)
    memory.on_exhausted = lambda: reports.append(memory.used)
    memory.add(6)
    memory.relieve()
    assert (memory.is_exhausted, reports) == (False, [])

    memory.add(1)
    assert (memory.is_exhausted, reports) == (True, [10])
    memory.add(5)
    assert reports == [10]
    memory.relieve()
    assert reports == [10, 15]
    assert not LogMemory().is_exhausted


async def test_positions_and_times_of_entries() -> None:
    seen: list[Entry] = []
    live = LiveTurn("a")
    live.listener = seen.append
    before = time.time()

    live.emit(Started("a", "triage"), at=100.0)
    live.emit(TextDelta("x"))
    live.emit(TextDelta("y"), at=7.0)
    live.emit(DONE, at=8.0, position=50)

    assert [entry.position for entry in live.entries] == [1, 2, 3, 50]
    assert live.entries[0].time == 100.0
    assert before <= live.entries[1].time <= time.time()
    assert [entry.time for entry in live.entries[2:]] == [7.0, 8.0]
    assert seen == live.entries
    assert live.entries_after(2) == live.entries[2:]


async def test_first_entry_without_a_time_is_timed_when_it_is_logged() -> None:
    live, before = LiveTurn("a"), time.time()

    live.emit(Started("a", "triage"))

    assert before <= live.entries[0].time <= time.time()


async def test_stop_cancels_a_turn_once_and_stores_the_reason() -> None:
    live = LiveTurn("a")
    live.emit(Started("a", "triage"))
    task = await running(live)

    assert live.stop("requested")
    assert not live.stop("shutting_down")

    assert await ended(task)
    assert live.stop_reason == "requested"


async def test_stop_before_the_first_event_leaves_it_to_the_writer() -> None:
    live = LiveTurn("a")
    task = await running(live)

    assert live.stop("client_left")

    assert not await ended(task)
    assert live.stop_reason == "client_left"
    task.cancel()


async def test_stop_rejects_a_turn_that_is_sealed_or_has_no_running_task() -> None:
    live = LiveTurn("a")
    live.emit(Started("a", "triage"))
    assert not live.stop("requested")

    task = await running(live)
    live.seal()
    assert not live.stop("requested")
    assert not await ended(task)
    task.cancel()

    over = LiveTurn("b")
    over.emit(Started("b", "triage"))
    over.task = asyncio.create_task(asyncio.sleep(0))
    await over.task
    assert not over.stop("requested")
    assert (live.stop_reason, over.stop_reason) == (None, None)


async def test_disconnect_cancels_only_a_turn_without_other_readers_that_may_be_cancelled() -> None:
    stays, watched, left = (
        LiveTurn("stays"),
        LiveTurn("watched", cancel_on_disconnect=True),
        LiveTurn("left", cancel_on_disconnect=True),
    )
    tasks = []
    for live in (stays, watched, left):
        live.emit(Started("a", "triage"))
        tasks.append(await running(live))

    with watched.reader(), left.reader(is_observer=True):
        for live in (stays, watched, left):
            live.on_client_disconnect()

    assert [await ended(task) for task in tasks] == [False, False, True]
    assert [live.stop_reason for live in (stays, watched, left)] == [None, None, "client_left"]
    for task in tasks:
        task.cancel()


class Calls:
    """A watcher that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def left(self, *, can_return: bool) -> None:
        self.calls.append("left")

    def returned(self) -> None:
        self.calls.append("returned")

    async def store_departure(self) -> None:
        self.calls.append("store departure")

    def missed_end(self) -> None:
        self.calls.append("missed end")


async def test_watcher_gets_the_departure_of_the_last_client_and_each_return() -> None:
    live, watcher = LiveTurn("a"), Calls()
    live.watcher = watcher

    with live.reader(), live.reader(is_observer=True):
        live.on_client_disconnect()
        assert watcher.calls == []
    live.on_client_disconnect()
    with live.reader():
        live.on_client_disconnect()
    live.emit(Completed("triage", "stop", Usage()))
    live.on_client_disconnect()

    assert watcher.calls == ["left", "returned", "missed end"]


async def test_paused_turn_waits_until_it_is_resumed() -> None:
    live = LiveTurn("a")
    await live.attended()
    live.pause()
    waiting = asyncio.create_task(live.attended())
    assert not await ended(waiting)

    live.resume()

    async with asyncio.timeout(5):
        await waiting


async def test_all_parts_of_a_paused_turn_continue_when_it_is_resumed() -> None:
    live = LiveTurn("a")
    live.pause()
    waiting = [asyncio.create_task(live.attended()) for _ in range(2)]
    for task in waiting:
        assert not await ended(task)

    live.resume()

    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_all_writers_of_a_turn_continue_when_its_reader_has_read() -> None:
    live = LiveTurn("a", high_water=10)
    with live.reader() as reader:
        live.emit(TextDelta("x" * 11))
        writers = [asyncio.create_task(live.drain()) for _ in range(2)]
        for writer in writers:
            assert not await ended(writer)

        await reader.next()
    async with asyncio.timeout(5):
        await asyncio.gather(*writers)
    assert not live.is_waiting


async def test_abandoned_log_is_over_without_a_closing_event() -> None:
    live = LiveTurn("a")
    live.emit(Started("a", "triage"))
    with live.reader(after=1) as reader:
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        assert (live.is_over, waiting.done()) == (False, False)

        live.abandon()

        async with asyncio.timeout(5):
            assert await waiting == []
        assert (live.is_over, live.is_finished) == (True, False)
        assert await reader.next() == []


async def test_ignored_readers_do_not_block_the_writer() -> None:
    live = LiveTurn("a", high_water=10)
    with live.reader() as reader:
        live.emit(TextDelta("x" * 11))
        writer = asyncio.create_task(live.drain())
        await asyncio.sleep(0)
        assert (live.is_waiting, live.ignores_readers, live.unread) == (True, False, 11)

        live.ignore_readers()

        async with asyncio.timeout(5):
            await writer
        assert (live.is_waiting, live.ignores_readers) == (False, True)
        live.emit(TextDelta("y" * 100))
        await live.drain()
        assert len(await reader.next()) == 2
        assert live.unread == 111
        await asyncio.sleep(0)
    assert live.unread == 0


async def test_text_at_the_high_water_mark_does_not_block_the_writer_and_observers_never_do() -> None:
    live = LiveTurn("a", high_water=10)
    with live.reader(is_observer=True):
        live.emit(TextDelta("x" * 50))
        async with asyncio.timeout(5):
            await live.drain()
        with live.reader(after=1):
            live.emit(TextDelta("y" * 10))
            async with asyncio.timeout(5):
                await live.drain()
            live.emit(TextDelta("z"))
            writer = asyncio.create_task(live.drain())
            await asyncio.sleep(0)
            assert live.is_waiting
        async with asyncio.timeout(5):
            await writer


async def test_entries_dropped_from_memory_are_read_from_the_store_if_they_are_there() -> None:
    live = LiveTurn("a")
    for event in (Started("a", "triage"), TextDelta("x"), DONE):
        live.emit(event)
    live.register()
    entries = list(live.entries)
    live.cut()
    assert live.entries == entries, "an entry that is not stored is not dropped"

    async def load() -> list[Entry]:
        return entries

    live.load = load
    live.cut()

    assert (live.entries, live.length) == (entries[2:], 3)
    assert live.log.weight == ENTRY_WEIGHT
    assert live.entries_after(1) is None
    assert await live.stored_after(1) == entries[1:]
    entries.pop()
    assert await live.stored_after(1) is None


async def test_registry_returns_running_and_finished_turns() -> None:
    turns = LiveTurns()
    first, second = LiveTurn("a", memory=turns.memory), LiveTurn("b", memory=turns.memory)
    for live in (first, second):
        turns.add(live)
        live.emit(DONE)
    assert (turns.running(), len(turns)) == ([first, second], 2)

    turns.retire(first)

    assert (turns.running(), len(turns)) == ([second], 1)
    assert (turns.get("a"), turns.get("b"), turns.get("c")) == (first, second, None)
    assert turns.memory.logs == {first, second}


async def test_readers_start_at_most_at_the_end_of_the_log() -> None:
    live = LiveTurn("a")
    live.emit(Started("a", "triage"))
    with live.reader(after=9) as reader:
        assert reader.position == 1
        live.emit(TextDelta("x"))
        assert [entry.position for entry in await reader.next()] == [2]
        assert reader.position == 1
        live.emit(DONE)
        assert [entry.position for entry in await reader.next()] == [3]
        assert reader.position == 2
        assert await reader.next() == []


async def test_patient_reader_is_woken_by_a_full_batch_and_by_the_end_only() -> None:
    live = LiveTurn("a")
    with live.reader() as reader:
        live.emit(Started("a", "triage"))
        task = asyncio.create_task(reader.next(is_patient=True))
        await asyncio.sleep(0)
        live.emit(TextDelta("x"))
        live.emit_batch([TextDelta("y"), TextDelta("z")])
        await asyncio.sleep(0)
        assert not task.done()
        live.emit_batch([TextDelta("x" * BATCH_SIZE)])
        async with asyncio.timeout(5):
            assert [entry.position for entry in await task] == [1, 2, 3, 4]
            assert [entry.position for entry in await reader.next(is_patient=True)] == [5]

        task = asyncio.create_task(reader.next(is_patient=True))
        await asyncio.sleep(0)
        assert reader.position == 5
        live.emit(TextDelta("x"))
        await asyncio.sleep(0)
        assert not task.done()
        live.emit(DONE)
        async with asyncio.timeout(5):
            assert [entry.position for entry in await task] == [6, 7]


async def test_patient_reader_is_woken_if_it_is_to_wait_for_nothing_more() -> None:
    live = LiveTurn("a", high_water=10)
    with live.reader() as reader:
        task = asyncio.create_task(reader.next(is_patient=True))
        await asyncio.sleep(0)
        reader.wake()
        async with asyncio.timeout(5):
            assert await task == []

        task = asyncio.create_task(reader.next(is_patient=True))
        await asyncio.sleep(0)
        live.emit(TextDelta("x" * 11))
        writer = asyncio.create_task(live.drain())
        async with asyncio.timeout(5):
            assert len(await task) == 1
            task = asyncio.create_task(reader.next(is_patient=True))
            await writer
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
