"""What every ``TurnRepository`` promises about clients that leave, and about the progress of turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from proxy.messages import AssistantMessage, FunctionCall, Item, ToolCall, ToolMessage
from proxy.store.engine.database import Database, open_database
from proxy.store.engine.sqlite_file import DatabaseFile
from proxy.store.turns import SqlHistory, open_history
from proxy.turns.records import Attendance, Progress
from proxy.turns.repository import IdempotencyKeyTaken, TurnRepository
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.turn_records import new_turn, the_end
from tests.polling import until


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def history(request: pytest.FixtureRequest) -> AsyncIterator[TurnRepository]:
    if request.param == "memory":
        yield MemoryHistory()
        return
    store = open_history(request.getfixturevalue(f"{request.param}_database"))
    yield store
    await store.close()


class CountedReads:
    """A database that counts its reads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def read(self, query: Callable[[Connection], Any]) -> Any:
        self.reads += 1
        return await self._database.read(query)


INPUT = b"\x01" * 16
CALL = AssistantMessage(None, tool_calls=[ToolCall("c1", FunctionCall("pay", "{}"))])
PAID = [Item(CALL, "sales", visible=False), Item(ToolMessage("c1", "paid"), "sales", visible=False)]


async def test_a_left_turn_is_cancelled_unless_a_client_returns(history: TurnRepository) -> None:
    turn = (await history.begin(new_turn())).turn
    others = new_turn("conv_b")
    other, others_id = (await history.begin(others)).turn, others.id

    assert await history.attendance([turn, other, 99]) == {
        turn: Attendance(None, None, False),
        other: Attendance(None, None, False),
    }
    assert not await history.end_unattended(turn, now=105.0)
    await history.leave(turn, left_at=105.0, cancel_at=135.0)
    await history.announce_reader(turn, until=109.0)
    await history.announce_reader(turn, until=108.0)
    assert (await history.attendance([turn]))[turn] == Attendance(135.0, 108.0, False)
    assert not await history.end_unattended(turn, now=106.0)
    assert await history.end_unattended(turn, now=109.0)
    assert (await history.attendance([turn]))[turn] == Attendance(109.0, 108.0, False)
    await history.leave(turn, left_at=None, cancel_at=None)
    assert not await history.end_unattended(turn, now=110.0)

    running = await history.running_turn("alice", "conv_a")
    assert running is not None
    assert (running.turn, running.left_at, running.reader_until) == (turn, None, 108.0)
    await history.finish(the_end(turn))
    await history.leave(turn, left_at=111.0, cancel_at=141.0)
    assert await history.running_turn("alice", "conv_a") is None
    assert await history.running_turn("bob", "conv_b") is None
    assert await history.attendance([turn]) == {}
    record = await history.turn("alice", running.id)
    assert record is not None
    assert record.left_at == 111.0
    await history.leave(turn, left_at=None, cancel_at=None)
    record = await history.turn("alice", running.id)
    assert record is not None
    assert record.left_at is None
    await history.finish(the_end(other, status="failed", is_history=False))
    await history.leave(other, left_at=112.0, cancel_at=None)
    failed = await history.turn("alice", others_id)
    assert failed is not None
    assert failed.left_at is None


@pytest.mark.parametrize("ran_effects", [True, False])
async def test_a_lost_turn_with_progress_is_history_and_keeps_its_key_after_effects(
    history: TurnRepository, ran_effects: bool
) -> None:
    new = new_turn(idempotency_key="k", input_fingerprint=INPUT)
    turn = (await history.begin(new)).turn
    await history.store_progress(turn, Progress("triage", PAID[:1], ran_effects))
    await history.store_progress(turn, Progress("sales", PAID, False))

    assert await history.interrupt(now=200.0) == 1
    await history.store_progress(turn, Progress("sales", [], True))

    record = await history.turn("alice", new.id)
    assert record is not None
    assert (record.status, record.is_history, record.agent) == ("interrupted", True, "sales")
    assert (list(record.items), record.ran_effects) == (PAID, ran_effects)
    assert record.idempotency_key == ("k" if ran_effects else None)
    conversation = await history.find_conversation("alice", "conv_a")
    assert conversation is not None
    assert conversation.head == turn
    (found,) = await history.find_by_input([INPUT])
    assert (found.turn, found.status, found.is_history, found.ran_effects) == (
        turn,
        "interrupted",
        True,
        ran_effects,
    )
    (last,) = await history.chain(turn)
    assert (last.id, last.is_complete, last.items[-1]) == (new.id, False, PAID[1])


async def test_a_lost_turn_in_the_way_is_history_for_the_turn_that_begins(history: TurnRepository) -> None:
    lost = (await history.begin(new_turn(lease_until=110.0))).turn
    await history.store_progress(lost, Progress("sales", PAID, True))

    await history.begin(new_turn(created_at=120.0))

    assert [*(await history.chain(lost))[-1].items][1:] == PAID


async def test_progress_of_an_unstored_turn_has_no_content(history: TurnRepository) -> None:
    new = new_turn(is_stored=False, idempotency_key="k")
    turn = (await history.begin(new)).turn
    await history.store_progress(turn, Progress("sales", PAID, True))

    await history.interrupt(now=200.0)

    record = await history.turn("alice", new.id)
    assert record is not None
    assert (record.is_history, list(record.items), record.idempotency_key) == (False, [], "k")


async def test_turns_are_found_by_input_while_they_run_and_if_the_end_says_so(
    history: TurnRepository,
) -> None:
    first = await history.begin(new_turn(input_fingerprint=INPUT, body_digest=b"d", first_attempt="t0"))
    await history.begin(new_turn("conv_b", input_fingerprint=b"\x02" * 16))
    (found,) = await history.find_by_input([INPUT, b"\x03" * 16])
    assert (found.turn, found.status, found.body_digest, found.first_attempt) == (
        first.turn,
        "running",
        b"d",
        "t0",
    )
    await history.finish(the_end(first.turn, is_found_by_input=True, ran_effects=True))
    second = await history.begin(new_turn(input_fingerprint=INPUT))
    assert [one.turn for one in await history.find_by_input([INPUT])] == [second.turn, first.turn]
    await history.finish(the_end(second.turn))
    assert [one.turn for one in await history.find_by_input([INPUT], conversation=first.conversation)] == [
        first.turn
    ]
    assert await history.find_by_input([INPUT], conversation=first.conversation + 1) == []
    assert await history.find_by_input([]) == []


@pytest.mark.parametrize("status", ["failed", "cancelled"])
@pytest.mark.parametrize("is_stored", [True, False])
async def test_an_unfinished_turn_that_ran_effects_keeps_its_key_and_is_found_by_its_body_if_not_stored(
    history: TurnRepository, status: str, is_stored: bool
) -> None:
    new = new_turn(idempotency_key="k", body_digest=b"d" * 16, is_stored=is_stored)
    begun = await history.begin(new)
    await history.finish(the_end(begun.turn, status=status, keeps_key=True, ran_effects=True))

    with pytest.raises(IdempotencyKeyTaken):
        await history.begin(new_turn(idempotency_key="k"))
    found = await history.turn_by_body("alice", b"d" * 16, since=0.0)
    assert (found is None) == is_stored
    stored = await history.turn_by_idempotency_key("alice", "k")
    assert stored is not None
    assert (stored.id, stored.ran_effects) == (new.id, True)


async def test_sqlite_is_read_once_before_a_commit_of_any_process(sqlite_database: str) -> None:
    database = CountedReads(open_database(sqlite_database, time_limit=10.0))
    history, other = SqlHistory(database), open_history(sqlite_database)
    log = DatabaseFile(Path(sqlite_database.removeprefix("sqlite:///")))
    try:
        turn, further = [(await history.begin(new_turn(name))).turn for name in ("conv_a", "conv_b")]
        await history.leave(turn, left_at=105.0, cancel_at=135.0)
        await until(lambda: log.log_state() is not None)
        first = await history.attendance([turn])
        reads = database.reads

        assert await history.attendance([turn]) == first == {turn: Attendance(135.0, None, False)}
        assert database.reads == reads
        assert await history.attendance([turn, further]) == {**first, further: Attendance(None, None, False)}
        assert database.reads == reads + 1

        await other.announce_reader(turn, until=108.0)

        assert await history.attendance([turn]) == {turn: Attendance(135.0, 108.0, False)}
        await until(lambda: log.log_state() is not None)
        assert await history.attendance([turn]) == {turn: Attendance(135.0, 108.0, False)}
    finally:
        await history.close()
        await other.close()
