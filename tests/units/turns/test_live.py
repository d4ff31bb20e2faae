"""The log of a running turn, its back-pressure, and the turns that stay in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from proxy.errors import LogMemoryExhausted
from proxy.events import Completed, Entry, Failed, Started, TextDelta, is_closing
from proxy.messages import Usage
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from proxy.turns.log_memory import ENTRY_WEIGHT, LogMemory
from proxy.turns.log_reader import EventLogReader
from proxy.turns.turn_log import COUNTED_BYTES


def finished(turn_id: str, *, characters: int = 1) -> LiveTurn:
    live = LiveTurn(turn_id)
    live.emit(Started(turn_id, "triage"))
    live.emit(TextDelta("x" * characters))
    live.emit(Completed("triage", "stop", Usage()))
    return live


async def test_only_the_newest_finished_turns_are_retained() -> None:
    turns = LiveTurns(keep_finished=2)

    for turn_id in ("a", "b", "c"):
        live = finished(turn_id)
        turns.add(live)
        turns.retire(live)

    assert [turn_id for turn_id in "abc" if turns.get(turn_id)] == ["b", "c"]
    assert len(turns) == 0


async def test_long_turns_are_retained_within_the_memory_limit() -> None:
    turns = LiveTurns(keep_bytes=13_000)

    for turn_id, characters in (("a", 4_000), ("b", 4_000), ("c", 100), ("d", 50_000)):
        turns.retire(finished(turn_id, characters=characters))
        if turn_id == "c":
            assert [one for one in "abc" if turns.get(one)] == ["b", "c"]

    # A turn over the whole memory limit is not retained; all turns are in the store.
    assert [one for one in "abcd" if turns.get(one)] == []
    turns.retire(finished("e", characters=4_000))
    assert turns.get("e") is not None


async def test_writer_continues_when_its_last_slow_reader_leaves() -> None:
    live = LiveTurn("a", high_water=10)
    reader = live.reader()
    with reader:
        live.emit(TextDelta("x" * 11))
        writer = asyncio.create_task(live.drain())
        await asyncio.sleep(0)
        assert not writer.done()

    async with asyncio.timeout(5):
        await writer
    assert not live.clients


async def test_writer_waits_for_the_slower_of_two_readers() -> None:
    live = LiveTurn("a", high_water=10)
    with live.reader() as fast, live.reader() as slow:
        live.emit(TextDelta("x" * 11))
        writer = asyncio.create_task(live.drain())
        await fast.next()
        live.emit(TextDelta("y"))
        await fast.next()
        await asyncio.sleep(0)
        assert not writer.done()

        await slow.next()
        assert not writer.done(), "the batch in hand is not read yet"
        live.emit(TextDelta("z"))
        await slow.next()
        async with asyncio.timeout(5):
            await writer


async def test_the_memory_of_logs_is_counted_until_they_are_evicted_and_no_longer_read() -> None:
    memory = LogMemory(limit=20_000)
    turns = LiveTurns(memory=memory)
    live = LiveTurn("a", memory=memory)
    turns.add(live)
    live.emit(Started("a", "triage"))
    live.emit(TextDelta("x" * 30_000))
    assert memory.used == 8 * COUNTED_BYTES > 30_000 + 2 * ENTRY_WEIGHT
    # A running turn is never evicted: its events are stored when it ends.
    assert not turns.has_memory()
    assert turns.get("a") is live

    with live.reader() as reader:
        assert len(await reader.next()) == 2
        live.emit(TextDelta("y" * 100))
        live.emit(Completed("triage", "stop", Usage()))
        turns.retire(live)
        assert turns.get("a") is None
        assert memory.used > 30_000
        # The next call shows that the reader has sent the long entry.
        rest = await reader.next()
        assert [entry.position for entry in rest] == [3, 4]
        assert memory.used == 100 + 2 * ENTRY_WEIGHT
        assert turns.has_memory()
    assert memory.used == 0


async def test_finished_logs_are_evicted_before_turns_are_refused() -> None:
    memory = LogMemory(limit=20_000)
    turns = LiveTurns(memory=memory)
    for turn_id in ("a", "b"):
        live = LiveTurn(turn_id, memory=memory)
        turns.add(live)
        live.emit(TextDelta("x" * 4_000))
        live.emit(Completed("triage", "stop", Usage()))
        turns.retire(live)
    running = LiveTurn("c", memory=memory)
    turns.add(running)
    running.emit(TextDelta("x" * 4_000))

    assert turns.has_memory()
    assert [turn_id for turn_id in "abc" if turns.get(turn_id)] == ["b", "c"]


async def test_who_comes_after_entries_were_dropped_gets_an_error_and_not_a_part() -> None:
    live = finished("a", characters=10)
    live.register()
    with live.reader() as reader:
        live.evict()
        await reader.next()
        await reader.next()
        assert live.entries_after(0) is None
        assert live.is_finished

        with live.reader() as late:
            (entry,) = await late.next()
            assert isinstance(entry.event, Failed)
            assert entry.event.code == "log_discarded"
            assert not await late.next()
        with live.reader(is_observer=True) as observer, pytest.raises(LogMemoryExhausted):
            await observer.next()


def stored(live: LiveTurn) -> None:
    """Let the store have the entries of a log, as it has them after the end of the turn."""
    entries = list(live.entries)

    async def load() -> list[Entry]:
        return entries

    live.load = load


async def texts(reader: EventLogReader) -> str:
    """Read to the end, and return the text."""
    found: list[str] = []
    while True:
        entries = await reader.next()
        for entry in entries:
            if isinstance(entry.event, TextDelta):
                found.append(entry.event.text)
            if is_closing(entry.event):
                assert isinstance(entry.event, Completed)
                return "".join(found)


async def test_many_slow_readers_of_stored_turns_get_everything_within_the_limit() -> None:
    memory = LogMemory(limit=100_000)
    turns = LiveTurns(memory=memory)
    with ExitStack() as readers:
        slow: list[EventLogReader] = []
        for number in range(50):
            live = LiveTurn(f"t{number}", memory=memory)
            turns.add(live)
            slow.append(readers.enter_context(live.reader()))
            live.emit(Started(live.turn_id, "triage"))
            for _ in range(10):
                live.emit(TextDelta("x" * 1_000))
            live.emit(Completed("triage", "stop", Usage()))
            stored(live)
            turns.retire(live)
            assert turns.has_memory()

        assert memory.used < 100_000
        assert [await texts(reader) for reader in slow] == ["x" * 10_000] * 50
    # What is left is registered and not read.
    assert all(isinstance(live, LiveTurn) and turns.get(live.turn_id) is live for live in memory.logs)


async def test_waiting_turns_finish_until_memory_is_free() -> None:
    memory = LogMemory(limit=30_000)
    turns = LiveTurns(memory=memory)
    with ExitStack() as readers:
        slow: list[EventLogReader] = []
        writers = []
        for number in range(5):
            live = LiveTurn(f"t{number}", memory=memory, high_water=5_000)
            turns.add(live)
            slow.append(readers.enter_context(live.reader()))
            writers.append(asyncio.create_task(_write(live, turns, pieces=20)))
        async with asyncio.timeout(20):
            await asyncio.wait(writers, return_when=asyncio.FIRST_COMPLETED)
            while memory.is_exhausted:
                await asyncio.sleep(0)

            # No reader has started. The other writers wait for their readers, and continue with them.
            assert 0 < sum(writer.done() for writer in writers) < 5
            assert await asyncio.gather(*map(texts, slow)) == ["x" * 20_000] * 5
            await asyncio.gather(*writers)


async def _write(live: LiveTurn, turns: LiveTurns, *, pieces: int) -> None:
    for _ in range(pieces):
        live.emit(TextDelta("x" * 1_000))
        await live.drain()
        await asyncio.sleep(0)
    live.emit(Completed("triage", "stop", Usage()))
    stored(live)
    turns.retire(live)


async def test_a_batch_is_bounded_and_all_batches_are_the_log() -> None:
    live = LiveTurn("a")
    batches: list[Sequence[Entry]] = []
    with live.reader() as reader:
        for _ in range(10_000):
            live.emit(TextDelta("x" * 100))
        live.emit(Completed("triage", "stop", Usage()))
        while not batches or not is_closing(batches[-1][-1].event):
            batches.append(await reader.next())

    assert max(map(len, batches)) < 4_000
    assert [entry for batch in batches for entry in batch] == live.entries


async def test_logged_entries_are_read_without_a_wait_and_once() -> None:
    live = LiveTurn("a")
    with live.reader() as reader:
        assert list(reader.logged()) == []
        live.emit(Started("a", "triage"))
        live.emit(TextDelta("x"))

        assert list(reader.logged()) == list(live.entries)
        assert list(reader.logged()) == []
        live.emit(Completed("triage", "stop", Usage()))
        assert [entry.position for entry in await reader.next()] == [3]


async def test_entries_that_were_dropped_are_not_logged() -> None:
    live = finished("a", characters=10)
    live.log.drop(2)

    with live.reader() as reader:
        assert list(reader.logged()) == []
