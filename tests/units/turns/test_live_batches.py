"""Batches of events that readers process as soon as they are logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from proxy.events import Completed, Entry, Started, TextBatch, TextDelta
from proxy.messages import Usage
from proxy.turns.live import LiveTurn
from proxy.turns.log_memory import ENTRY_WEIGHT, LogMemory
from proxy.turns.log_reader import EventLogReader, Take
from proxy.turns.turn_log import COUNTED_BYTES


class Taker:
    """Records what it takes; ``is_open`` is whether it takes anything."""

    def __init__(self) -> None:
        self.taken: list[Entry] = []
        self.is_open = True

    def take(self, entries: Sequence[Entry]) -> bool:
        if self.is_open:
            self.taken += entries
        return self.is_open


@asynccontextmanager
async def waiting(reader: EventLogReader, take: Take) -> AsyncIterator[asyncio.Task[Sequence[Entry]]]:
    """Let the reader wait for entries."""
    task = asyncio.create_task(reader.next(take))
    while reader.waiter is None:
        await asyncio.sleep(0)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def texts(entries: Sequence[Entry]) -> list[str]:
    return [entry.event.text for entry in entries if isinstance(entry.event, TextDelta)]


async def test_a_reader_takes_a_batch_before_emit_returns() -> None:
    live, taker = LiveTurn("a"), Taker()
    with live.reader() as reader:
        async with waiting(reader, taker.take) as task:
            assert live.emit_batch([TextDelta("x"), TextDelta("y")])

            assert [(entry.position, entry.event) for entry in taker.taken] == [
                (1, TextDelta("x")),
                (2, TextDelta("y")),
            ]
            assert list(live.entries) == taker.taken
            assert reader.position == 2
            await asyncio.sleep(0)
            assert not task.done()


async def test_a_batch_of_texts_is_logged_as_its_deltas() -> None:
    live, other = LiveTurn("a"), LiveTurn("b")
    batch = TextBatch([TextDelta("one"), TextDelta("ü")])
    batch.texts = ["one", "ü"]

    assert live.emit_batch(batch)
    assert other.emit_batch(list(batch))

    for log in (live.entries, other.entries):
        assert [(entry.position, entry.event) for entry in log] == [
            (1, TextDelta("one")),
            (2, TextDelta("ü")),
        ]
    assert live.length == live.log.batch_end(0) == 2
    assert live.log.weight == other.log.weight == 4 + 2 * ENTRY_WEIGHT


async def test_a_batch_of_texts_is_passed_to_the_listener() -> None:
    live, logged = LiveTurn("a"), list[Entry]()
    live.listener = logged.append
    batch = TextBatch([TextDelta("one"), TextDelta("two")])
    batch.texts = ["one", "two"]

    live.emit_batch(batch)

    assert texts(logged) == ["one", "two"]


async def test_a_batch_that_is_not_taken_is_returned_by_next() -> None:
    live, taker = LiveTurn("a"), Taker()
    with live.reader() as reader:
        async with waiting(reader, taker.take) as task:
            live.emit_batch([TextDelta("x")])
            taker.is_open = False
            live.emit_batch([TextDelta("y")])
            live.emit_batch([TextDelta("z")])

            assert texts(await task) == ["y", "z"]
            assert reader.position == 1
    assert texts(taker.taken) == ["x"]


async def test_single_events_and_the_closing_one_are_returned_by_next() -> None:
    live, taker = LiveTurn("a"), Taker()
    completed = Completed("triage", "stop", Usage())
    with live.reader() as reader:
        async with waiting(reader, taker.take) as task:
            live.emit(Started("a", "triage"))
            # Only the order counts: this batch is behind an entry that the reader has not.
            live.emit_batch([TextDelta("x")])
            assert [entry.position for entry in await task] == [1, 2]
        async with waiting(reader, taker.take) as task:
            taker.is_open = False
            live.emit_batch([TextDelta("y")])
            live.emit(completed)
            assert [entry.event for entry in await task] == [TextDelta("y"), completed]
        taker.is_open = True
        assert list(await reader.next(taker.take)) == []
    assert taker.taken == []


async def test_each_reader_gets_a_batch_in_its_way() -> None:
    live, first, second = LiveTurn("a"), Taker(), Taker()
    second.is_open = False
    with live.reader() as one, live.reader() as other, live.reader() as plain:
        async with waiting(one, first.take), waiting(other, second.take) as task:
            live.emit_batch([TextDelta("x")])

            assert texts(first.taken) == ["x"]
            assert texts(await task) == ["x"]
            assert texts(await plain.next()) == ["x"]


async def test_the_writer_learns_that_a_reader_is_too_far_behind() -> None:
    live, taker = LiveTurn("a", high_water=10), Taker()
    with live.reader() as fast, live.reader() as slow:
        async with waiting(fast, taker.take):
            assert live.emit_batch([TextDelta("x" * 10)])
            assert not live.emit_batch([TextDelta("y")])
            assert not live.emit_batch([])
            assert texts(taker.taken) == ["x" * 10, "y"]
            writer = asyncio.create_task(live.drain())
            assert texts(await slow.next()) == ["x" * 10, "y"]
            await asyncio.sleep(0)
            assert not writer.done()
    async with asyncio.timeout(5):
        await writer
    assert live.emit_batch([])


async def test_an_error_of_a_reader_does_not_reach_the_writer() -> None:
    live = LiveTurn("a")

    def take(entries: Sequence[Entry]) -> bool:
        raise ValueError("broken reader")

    with live.reader() as reader:
        async with waiting(reader, take) as task:
            assert live.emit_batch([TextDelta("x")])
            with pytest.raises(ValueError, match="broken reader"):
                await task
    assert live.length == 1


async def test_a_cancelled_reader_takes_nothing_more() -> None:
    live, taker = LiveTurn("a"), Taker()
    with live.reader() as reader:
        async with waiting(reader, taker.take) as task:
            task.cancel()
            live.emit_batch([TextDelta("x")])
            assert taker.taken == []


async def test_the_memory_of_a_batch_is_counted() -> None:
    memory = LogMemory()
    live = LiveTurn("a", memory=memory)
    live.register()

    live.emit_batch([TextDelta("four"), TextDelta("x")])

    assert live.log.weight == 5 + 2 * ENTRY_WEIGHT
    assert memory.used == COUNTED_BYTES
    live.emit_batch([TextDelta("x" * COUNTED_BYTES)])
    assert memory.used == 2 * COUNTED_BYTES
