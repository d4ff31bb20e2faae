"""The log of a running turn, its back-pressure, and the turns that stay in memory."""

from __future__ import annotations

import asyncio

from proxy.events import Completed, Started, TextDelta
from proxy.messages import Usage
from proxy.turns.live import LiveTurn, LiveTurns


def finished(turn_id: str, *, characters: int = 1) -> LiveTurn:
    live = LiveTurn(turn_id)
    live.emit(Started(turn_id, "triage"))
    live.emit(TextDelta("x" * characters))
    live.emit(Completed("triage", "stop", Usage()))
    return live


async def test_only_the_newest_finished_turns_are_kept() -> None:
    turns = LiveTurns(keep_finished=2)

    for turn_id in ("a", "b", "c"):
        live = finished(turn_id)
        turns.add(live)
        turns.retire(live)

    assert [turn_id for turn_id in "abc" if turns.get(turn_id)] == ["b", "c"]
    assert len(turns) == 0


async def test_long_answers_are_kept_for_as_long_as_there_is_room() -> None:
    turns = LiveTurns(keep_weight=10_000)

    for turn_id, characters in (("a", 4_000), ("b", 4_000), ("c", 100), ("d", 50_000)):
        turns.retire(finished(turn_id, characters=characters))
        if turn_id == "c":
            assert [one for one in "abc" if turns.get(one)] == ["b", "c"]

    # One that is too large for the whole room is not kept either; all of them are in the store.
    assert [one for one in "abcd" if turns.get(one)] == []
    turns.retire(finished("e", characters=4_000))
    assert turns.get("e") is not None


async def test_writer_continues_when_its_last_slow_reader_leaves() -> None:
    live = LiveTurn("a", high_water=10)
    reader = live.follower()
    with reader:
        live.emit(TextDelta("x" * 11))
        writer = asyncio.create_task(live.room())
        await asyncio.sleep(0)
        assert not writer.done()

    async with asyncio.timeout(5):
        await writer
    assert not live.has_readers


async def test_writer_waits_for_the_slower_of_two_readers() -> None:
    live = LiveTurn("a", high_water=10)
    with live.follower() as fast, live.follower() as slow:
        live.emit(TextDelta("x" * 11))
        writer = asyncio.create_task(live.room())
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
