"""The writer: many in one commit, one bad among many, a database that is locked, gone, or lies about a commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Connection, select

from proxy.errors import ConversationBusy, StoreUnavailable
from proxy.store.engine.database import Database, open_database
from proxy.store.engine.errors import Settle, Unavailable
from proxy.store.engine.writer import GROUP_SIZE
from proxy.store.sql.tables import turns
from proxy.store.turns import SqlHistory
from proxy.turns.records import Begun
from tests.fakes.turn_records import new_turn, place_of, the_end


class Faulty:
    """A database that does as the test says before or after it wrote."""

    def __init__(self, behind: Database) -> None:
        self.behind = behind
        self.dialect = behind.dialect
        self.commits = 0
        self.outlived: list[bool] = []
        self.before: list[Exception] = []
        self.after: list[Exception] = []
        self.then_before: list[Exception] = []
        self.instead: list[Any] = []
        self.is_asked = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, work: Callable[[Connection], Any]) -> Any:
        return await self.behind.read(work)

    async def write(self, work: Callable[[Connection], Any], *, is_durable: bool = True) -> Any:
        self.is_asked = True
        await self.gate.wait()
        if self.before:
            raise self.before.pop(0)
        if self.instead:
            return self.instead.pop(0)
        given = await self.behind.write(work, is_durable=is_durable)
        self.commits += 1
        self.outlived.append(is_durable)
        if self.after:
            self.before = self.then_before
            raise self.after.pop(0)
        return given

    def commit(self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool = True) -> None:
        self.task = asyncio.create_task(self._write_and_settle(work, settle, is_durable=is_durable))

    async def _write_and_settle(
        self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool
    ) -> None:
        try:
            given = await self.write(work, is_durable=is_durable)
        except Exception as error:
            settle(None, error)
        else:
            settle(given, None)

    def state(self) -> object:
        return self.behind.state()

    async def close(self) -> None:
        await self.behind.close()


def gone(times: int) -> list[Exception]:
    return [Unavailable("gone") for _ in range(times)]


LOST_ANSWER = Unavailable("connection lost in commit", outcome_unknown=True)


@pytest.fixture
async def faulty(database: str) -> Faulty:
    return Faulty(open_database(database, time_limit=5.0))


@pytest.fixture
async def history(faulty: Faulty) -> AsyncIterator[SqlHistory]:
    history = SqlHistory(faulty, time_limit=5.0)
    yield history
    await history.close()


@pytest.fixture
async def hasty(faulty: Faulty) -> AsyncIterator[SqlHistory]:
    """A history that waits for a quarter of a second only; what has to succeed is not for it but for ``history``."""
    history = SqlHistory(faulty, time_limit=0.25)
    yield history
    await history.close()


async def test_what_waits_is_committed_together(faulty: Faulty, history: SqlHistory) -> None:
    begun = await asyncio.gather(*(history.begin(new_turn(f"conv_{n}")) for n in range(50)))

    assert faulty.commits == 1
    assert all(await asyncio.gather(*(history.finish(the_end(turn.turn)) for turn in begun)))
    assert faulty.commits == 2


async def test_changes_of_turns_of_other_workers_are_committed_one_by_one(
    faulty: Faulty, history: SqlHistory
) -> None:
    begun = await asyncio.gather(*(history.begin(new_turn(f"conv_{n}")) for n in range(3)))
    before = faulty.commits

    # A transaction with all of them could deadlock with one of the worker that runs the turns.
    await asyncio.gather(*(history.announce_reader(turn.turn, until=1.0) for turn in begun))

    assert faulty.commits == before + 3
    attendance = await history.attendance([turn.turn for turn in begun])
    assert [one.reader_until for one in attendance.values()] == [1.0, 1.0, 1.0]


async def test_only_beginnings_do_not_wait_for_the_disk(faulty: Faulty, history: SqlHistory) -> None:
    begun = await history.begin(new_turn("conv_a"))
    await history.finish(the_end(begun.turn))
    begun = await history.begin(new_turn("conv_b"))
    await asyncio.gather(history.begin(new_turn("conv_c")), history.finish(the_end(begun.turn)))

    assert faulty.outlived == [False, True, False, True]


async def test_writes_during_a_commit_are_batched_for_the_next(faulty: Faulty, history: SqlHistory) -> None:
    faulty.gate.clear()
    first = asyncio.create_task(history.begin(new_turn("conv_first")))
    while not faulty.is_asked:
        await asyncio.sleep(0)
    others = [asyncio.create_task(history.begin(new_turn(f"conv_{n}"))) for n in range(50)]
    faulty.gate.set()

    await asyncio.gather(first, *others)

    assert faulty.commits == 2


async def test_a_turn_can_begin_behind_an_end_that_timed_out(faulty: Faulty) -> None:
    history = SqlHistory(faulty, time_limit=1.0)
    begun = await history.begin(new_turn("conv_a"))
    faulty.is_asked = False
    faulty.gate.clear()
    other = asyncio.create_task(history.begin(new_turn("conv_b")))
    while not faulty.is_asked:
        await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable):
        await history.finish(the_end(begun.turn))

    following = asyncio.create_task(history.begin(new_turn("conv_a")))
    await asyncio.sleep(0)
    faulty.gate.set()

    # The turn that was not ended is closed in the group of the one that begins.
    assert await following is not None
    with pytest.raises(StoreUnavailable):
        await other
    await history.close()


async def test_no_end_that_timed_out_is_stored_however_many_wait(
    faulty: Faulty, history: SqlHistory, hasty: SqlHistory
) -> None:
    names = [f"conv_{n}" for n in range(GROUP_SIZE + 4)]
    begun = await asyncio.gather(*(history.begin(new_turn(name)) for name in names))
    faulty.is_asked = False
    faulty.gate.clear()
    first = asyncio.create_task(hasty.begin(new_turn("conv_first")))
    while not faulty.is_asked:
        await asyncio.sleep(0)
    ends = await asyncio.gather(*(hasty.finish(the_end(turn.turn)) for turn in begun), return_exceptions=True)
    with pytest.raises(StoreUnavailable):
        await first
    faulty.gate.set()
    await until_it_works(lambda: hasty.begin(new_turn(names[-1])))

    assert [type(end) for end in ends] == [StoreUnavailable] * len(begun)
    statuses = await faulty.read(lambda on: on.scalars(select(turns.c.status)).all())
    assert sorted(statuses) == ["failed"] * (len(begun) + 1) + ["running"]


async def test_writes_are_acknowledged_after_the_commit(faulty: Faulty, history: SqlHistory) -> None:
    faulty.gate.clear()
    begin = asyncio.create_task(history.begin(new_turn()))
    done, _ = await asyncio.wait([begin], timeout=0.1)
    assert not done

    faulty.gate.set()

    assert isinstance(await begin, Begun)


async def test_who_begins_behind_an_end_in_the_same_group_finds_the_conversation_free(
    history: SqlHistory,
) -> None:
    first = await history.begin(new_turn("conv_a"))

    begun, is_done = await asyncio.gather(
        history.begin(new_turn("conv_a")), history.finish(the_end(first.turn))
    )

    assert is_done
    assert begun.conversation == first.conversation


async def test_a_bad_one_does_not_fail_the_rest(
    history: SqlHistory, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad, also_good = await asyncio.gather(
        history.begin(new_turn("conv_a")),
        history.begin(new_turn("conv_b", parent=2**70)),
        history.begin(new_turn("conv_c")),
        return_exceptions=True,
    )

    assert isinstance(good, Begun)
    assert isinstance(bad, StoreUnavailable)
    assert isinstance(also_good, Begun)
    assert await history.find_conversation("alice", "conv_b") is None
    assert "store write failed" in caplog.messages


# --- a commit whose outcome is not known ----------------------------------------------------------------------


async def test_a_begin_that_was_done_but_reported_as_failed_is_there_once(
    faulty: Faulty, history: SqlHistory
) -> None:
    faulty.after = [LOST_ANSWER]

    begun = await history.begin(new_turn("conv_a", id="chatcmpl-1", idempotency_key="k"))

    assert faulty.commits == 2
    record = await history.turn("alice", "chatcmpl-1")
    assert record is not None
    assert (record.turn, record.status, len(record.input)) == (begun.turn, "running", 1)


async def test_an_end_that_was_done_but_reported_as_failed_is_there_once(
    faulty: Faulty, history: SqlHistory
) -> None:
    begun = await history.begin(new_turn("conv_a"))
    faulty.after = [LOST_ANSWER]

    assert await history.finish(the_end(begun.turn, pending=["call_1"]))

    assert faulty.commits == 3
    (turn,) = await history.chain(begun.turn)
    assert len(turn.items) == 2
    assert await history.find_pending("alice", ["call_1"]) == [("call_1", begun.turn)]


async def test_a_begin_in_doubt_that_was_given_up_does_not_keep_its_conversation(
    faulty: Faulty, hasty: SqlHistory
) -> None:
    faulty.after = [LOST_ANSWER]
    faulty.then_before = gone(5)

    with pytest.raises(StoreUnavailable):
        await hasty.begin(new_turn("conv_a", id="chatcmpl-1"))

    await until_it_works(lambda: hasty.begin(new_turn("conv_a")))
    record = await hasty.turn("alice", "chatcmpl-1")
    assert record is not None
    assert (record.status, record.error_code) == ("failed", "abandoned")


# --- a database that is not there -----------------------------------------------------------------------------


async def test_what_cannot_be_written_now_is_written_a_little_later(
    faulty: Faulty, history: SqlHistory
) -> None:
    faulty.before = gone(3)

    begun = await history.begin(new_turn())

    assert await history.finish(the_end(begun.turn))


async def test_a_begin_is_refused_when_the_database_is_gone_for_long(
    faulty: Faulty, hasty: SqlHistory
) -> None:
    faulty.before = gone(1000)

    with pytest.raises(StoreUnavailable):
        await hasty.begin(new_turn("conv_a", id="chatcmpl-1"))

    assert not await hasty.is_ready()
    faulty.before = []
    await until_it_works(lambda: hasty.begin(new_turn("conv_a")))
    assert await hasty.is_ready()
    assert await hasty.turn("alice", "chatcmpl-1") is None


async def test_a_refused_end_is_not_stored_and_does_not_keep_the_conversation(
    faulty: Faulty, history: SqlHistory, hasty: SqlHistory
) -> None:
    begun = await history.begin(new_turn("conv_a", id="chatcmpl-1"))
    faulty.before = gone(1000)

    with pytest.raises(StoreUnavailable):
        await hasty.finish(the_end(begun.turn, fingerprint=b"f"))

    faulty.before = []
    await until_it_works(lambda: hasty.begin(new_turn("conv_a")))
    record = await hasty.turn("alice", "chatcmpl-1")
    assert record is not None
    assert (record.status, record.error_code, record.items) == ("failed", "storage_unavailable", [])
    assert await place_of(hasty, b"f") is None


async def test_writes_fail_at_once_on_a_full_disk(faulty: Faulty, history: SqlHistory) -> None:
    begun = await history.begin(new_turn("conv_a"))
    faulty.before = [Unavailable("SQLITE_FULL", is_permanent=True)]

    with pytest.raises(StoreUnavailable):
        await history.begin(new_turn("conv_b"))

    assert await history.finish(the_end(begun.turn))


async def test_a_database_that_hangs_is_not_waited_for(faulty: Faulty, hasty: SqlHistory) -> None:
    faulty.gate.clear()

    with pytest.raises(StoreUnavailable):
        await hasty.begin(new_turn("conv_a", id="chatcmpl-1"))

    faulty.gate.set()
    await until_it_works(lambda: hasty.begin(new_turn("conv_a")))
    record = await hasty.turn("alice", "chatcmpl-1")
    assert record is None or record.status == "failed"


# --- waiters that go away -------------------------------------------------------------------------------------


async def test_a_cancelled_begin_releases_the_conversation(faulty: Faulty, history: SqlHistory) -> None:
    faulty.gate.clear()
    begin = asyncio.create_task(history.begin(new_turn("conv_a", id="chatcmpl-1")))
    while not faulty.is_asked:
        await asyncio.sleep(0)
    begin.cancel()
    await asyncio.wait([begin])
    faulty.gate.set()

    await history.begin(new_turn("conv_a"))

    record = await history.turn("alice", "chatcmpl-1")
    assert record is not None
    assert (record.status, record.error_code) == ("failed", "abandoned")


async def test_a_begin_cancelled_before_its_turn_came_is_never_written(
    faulty: Faulty, history: SqlHistory
) -> None:
    faulty.gate.clear()
    first = asyncio.create_task(history.begin(new_turn("conv_first")))
    while not faulty.is_asked:
        await asyncio.sleep(0)
    begin = asyncio.create_task(history.begin(new_turn("conv_a", id="chatcmpl-cancelled")))
    await asyncio.sleep(0)
    begin.cancel()
    faulty.gate.set()
    await first

    await history.begin(new_turn("conv_a"))

    assert await history.turn("alice", "chatcmpl-cancelled") is None


@pytest.mark.parametrize("journal", [b"[]", b"[" + b" " * 500_000 + b"]"], ids=["short", "long"])
async def test_an_end_whose_waiter_is_cancelled_is_written(
    faulty: Faulty, history: SqlHistory, journal: bytes
) -> None:
    begun = await history.begin(new_turn(id="chatcmpl-1"))
    faulty.gate.clear()
    finish = asyncio.create_task(history.finish(the_end(begun.turn, journal=journal)))
    await asyncio.sleep(0)
    finish.cancel()
    await asyncio.wait([finish])
    faulty.gate.set()

    await history.begin(new_turn("conv_other"))
    while (record := await history.turn("alice", "chatcmpl-1")) is not None and record.status == "running":
        await asyncio.sleep(0)

    assert record is not None
    assert record.status == "completed"


async def test_a_defect_of_the_writer_ends_its_task(faulty: Faulty) -> None:
    history = SqlHistory(faulty, time_limit=0.25)
    faulty.instead = [{}]

    with pytest.raises(StoreUnavailable):
        await history.begin(new_turn())

    # The task is watched: see ``background_tasks``.
    with pytest.raises(KeyError):
        await history.writer_task
    await faulty.close()


@pytest.mark.parametrize("failures", [0, 1])
async def test_a_cancelled_writer_settles_its_commit_and_takes_no_more(faulty: Faulty, failures: int) -> None:
    # Nothing times out.
    history = SqlHistory(faulty, time_limit=3600)
    faulty.gate.clear()
    faulty.before = gone(failures)
    begin = asyncio.create_task(history.begin(new_turn()))
    async with asyncio.timeout(20):
        while not faulty.is_asked:
            await asyncio.sleep(0)

        history.writer_task.cancel()
        await asyncio.wait([history.writer_task])
        faulty.gate.set()

        if failures:
            with pytest.raises(StoreUnavailable):
                await begin
        else:
            assert (await begin) is not None
        with pytest.raises(StoreUnavailable):
            await history.begin(new_turn("conv_late"))
    await faulty.close()


async def test_closing_writes_what_was_handed_in_and_takes_no_more(faulty: Faulty, database: str) -> None:
    history = SqlHistory(faulty, time_limit=5.0)
    faulty.gate.clear()
    begins = [asyncio.create_task(history.begin(new_turn(f"conv_{n}"))) for n in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(history.close())
    await asyncio.sleep(0)
    faulty.gate.set()

    assert len(await asyncio.gather(*begins)) == 3
    await closing
    with pytest.raises(StoreUnavailable):
        await history.begin(new_turn("conv_late"))


async def test_closing_does_not_wait_for_a_database_that_is_gone(faulty: Faulty, history: SqlHistory) -> None:
    hasty = SqlHistory(faulty, time_limit=0.25)
    begun = await history.begin(new_turn("conv_a"))
    faulty.before = gone(1000)
    finish = asyncio.create_task(hasty.finish(the_end(begun.turn)))
    await asyncio.sleep(0)

    async with asyncio.timeout(20):
        await hasty.close()

    with pytest.raises(StoreUnavailable):
        await finish


async def until_it_works(begin: Callable[[], Awaitable[Begun]]) -> None:
    """Begin a turn, and retry a busy conversation as a client does."""
    async with asyncio.timeout(20):
        while True:
            try:
                await begin()
                return
            except (StoreUnavailable, ConversationBusy):
                await asyncio.sleep(0.01)
