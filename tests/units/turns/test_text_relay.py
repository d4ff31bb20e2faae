"""Text that the reader of a turn gets before it is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from proxy.events import Entry, Started, TextDelta
from proxy.turns.live import LiveTurn
from proxy.turns.log_memory import ENTRY_WEIGHT, LogMemory
from proxy.turns.log_reader import EventLogReader
from proxy.turns.text_relay import TextRelay
from proxy.turns.turn_log import COUNTED_BYTES


class Client:
    """A reader that offers relays."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.recorded: list[str] = []
        self.has_relay = True

    def take(self, entries: Sequence[Entry]) -> bool:
        return True

    def open_relay(self, is_gone: Callable[[], bool]) -> TextRelay | None:
        if not self.has_relay:
            return None
        relay = TextRelay(self.write, b"|", is_gone)
        relay.add_record(lambda texts, times: self.recorded.extend(texts))
        return relay

    def write(self, text: bytes) -> bool:
        self.written.append(text)
        return True


@asynccontextmanager
async def read_by(live: LiveTurn, client: Client) -> AsyncIterator[EventLogReader]:
    """Let a client wait for entries of the turn."""
    with live.reader() as reader:
        if live.length:
            await reader.next()
        task = asyncio.create_task(reader.next(client.take, client.open_relay))
        while reader.waiter is None:
            await asyncio.sleep(0)
        yield reader
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def passed_on(relay: TextRelay | None, *texts: str) -> TextRelay:
    """Pass texts on, as the source of a relay does."""
    assert relay is not None
    for text in texts:
        assert relay.write(text.encode())
        relay.texts.append(text)
        relay.times.append(asyncio.get_running_loop().time())
    return relay


def texts(live: LiveTurn) -> list[str]:
    return [entry.event.text for entry in live.entries if isinstance(entry.event, TextDelta)]


ACTIONS: list[Callable[[LiveTurn], object]] = [
    lambda live: live.emit(TextDelta("end")),
    lambda live: live.emit_batch([TextDelta("end")]),
    lambda live: live.emit_batch([]),
    lambda live: live.entries,
    lambda live: live.entries_after(0),
    lambda live: live.reader(),
    lambda live: live.abandon(),
    lambda live: live.open_relay(),
    lambda live: live.close_relay(),
]


@pytest.mark.parametrize("act", ACTIONS)
async def test_text_is_logged_before_anything_else_happens(act: Callable[[LiveTurn], object]) -> None:
    live, client = LiveTurn("a", memory=(memory := LogMemory())), Client()
    async with read_by(live, client) as reader:
        relay = passed_on(live.open_relay(), "one", "ü")
        detached: list[bool] = []
        relay.detach = lambda: detached.append(True)
        assert (live.length, client.recorded) == (0, [])

        act(live)

        assert texts(live)[:2] == client.recorded == ["one", "ü"]
        assert [entry.position for entry in live.entries[:2]] == [1, 2]
        assert reader.position >= 2
        assert detached == [True]
        assert live.log.weight >= 4 + 2 * ENTRY_WEIGHT
        assert memory.used == COUNTED_BYTES
        relay.close()
        assert client.recorded == ["one", "ü"]


async def test_text_has_the_time_at_which_it_was_passed_on() -> None:
    live, client = LiveTurn("a"), Client()
    live.emit(Started("a", "triage"))
    async with read_by(live, client):
        relay = passed_on(live.open_relay(), "one", "two")
        relay.times[:] = [relay.times[0] - 5.0, relay.times[0]]

        _, first, second = live.entries

        assert second.time - first.time == pytest.approx(5.0)
        assert abs(second.time - live.entries[0].time) < 5.0


async def test_another_reader_gets_all_text() -> None:
    live, client = LiveTurn("a"), Client()
    async with read_by(live, client):
        passed_on(live.open_relay(), "one")
        with live.reader() as other:
            assert [entry.event for entry in await other.next()] == [TextDelta("one")]
            assert live.open_relay() is None
        assert live.open_relay() is not None


async def test_the_task_of_the_reader_continues_behind_the_text() -> None:
    live, client = LiveTurn("a"), Client()
    with live.reader() as reader:
        task = asyncio.create_task(reader.next(client.take, client.open_relay))
        await asyncio.sleep(0)
        passed_on(live.open_relay(), "one")
        reader.wake()

        assert await task == []
        assert (reader.position, texts(live)) == (1, ["one"])


async def test_a_relay_needs_a_waiting_reader_that_offers_one() -> None:
    live, client = LiveTurn("a"), Client()
    assert live.open_relay() is None
    with live.reader():
        assert live.open_relay() is None
    client.has_relay = False
    async with read_by(live, client):
        assert live.open_relay() is None
    client.has_relay = True
    async with read_by(live, client) as reader:
        assert reader.waiter is not None
        reader.waiter.cancel()
        assert live.open_relay() is None
    async with read_by(live, client):
        live.listener = lambda entry: None
        assert live.open_relay() is None


async def test_a_listener_that_comes_later_gets_what_was_passed_on_after_it() -> None:
    live, client, logged = LiveTurn("a"), Client(), list[Entry]()
    async with read_by(live, client):
        relay = live.open_relay()
        live.listener = logged.append
        passed_on(relay, "one")

        assert list(live.entries) == logged != []
