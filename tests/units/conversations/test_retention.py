"""What is older than it may be goes, with a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from proxy.conversations.repository import ConversationQuery
from proxy.conversations.retention import DAY, INTERVAL, delete_expired
from proxy.errors import StoreUnavailable
from proxy.wire.validation.query_params import ListQuery
from tests.fakes.store.conversations import MemoryLibrary
from tests.fakes.store.turns import MemoryHistory


class Enough(Exception):
    """The test has seen what it wanted."""


@dataclass
class Time:
    """A clock that only pauses move on; the last of ``rounds`` ends the test."""

    now: float
    rounds: int
    between: Callable[[], Awaitable[None]] | None = None
    pauses: list[float] = field(default_factory=list)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == self.rounds:
            raise Enough
        if self.between is not None:
            await self.between()
        self.now += seconds


class Failing(MemoryLibrary):
    """Fails in its first rounds, each time with the next of ``errors``."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__(MemoryHistory())
        self.errors = errors
        self.asked: list[float] = []

    async def remove_older(self, before: float) -> int:
        self.asked.append(before)
        if self.errors:
            raise self.errors.pop(0)
        return 0


async def created(library: MemoryLibrary, name: str, now: float) -> None:
    await library.create_conversation("alice", name, metadata={}, items=[], now=now)


async def names(library: MemoryLibrary) -> list[str]:
    page = await library.list_conversations("alice", ConversationQuery(ListQuery(limit=100)))
    assert page is not None
    return [one.id for one in page.data]


async def test_old_conversations_go_at_the_start_and_others_as_they_grow_old() -> None:
    library, time = MemoryLibrary(MemoryHistory()), Time(now=100 * DAY, rounds=26)
    await created(library, "older than a week", 92 * DAY)
    await created(library, "a week in half a day", 93.5 * DAY)
    await created(library, "a week in two days", 95 * DAY)
    seen: list[list[str]] = []

    async def look() -> None:
        seen.append(await names(library))

    time.between = look
    with pytest.raises(Enough):
        await delete_expired(library, days=7, clock=lambda: time.now, pause=time.pause)

    assert set(time.pauses) == {INTERVAL}
    assert seen[0] == seen[12] == ["a week in half a day", "a week in two days"]
    assert seen[13] == seen[24] == ["a week in two days"]


async def test_a_round_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    library, time = Failing([StoreUnavailable(), ValueError("a defect")]), Time(now=10 * DAY, rounds=3)

    with pytest.raises(Enough):
        await delete_expired(library, days=1, clock=lambda: time.now, pause=time.pause)

    assert library.asked == [9 * DAY, 9 * DAY + INTERVAL, 9 * DAY + 2 * INTERVAL]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


async def test_it_ends_when_it_is_cancelled() -> None:
    library = Failing([])
    task = asyncio.create_task(delete_expired(library, days=1, clock=lambda: 5 * DAY))
    while not library.asked:
        await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
