"""Databases that are locked, cut off, full or wrongly named: what the history does, and that it recovers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy import text

from proxy.errors import ConfigurationError, ConversationBusy, StoreUnavailable
from proxy.messages import Item, UserMessage
from proxy.store.engine.database import database_url, open_database
from proxy.store.turns import SqlHistory, open_history
from tests.fakes.tcp_relay import relayed
from tests.fakes.turn_records import new_turn, the_end

T = TypeVar("T")


@asynccontextmanager
async def opened(url: str, *, time_limit: float = 10.0) -> AsyncIterator[SqlHistory]:
    history = open_history(url, time_limit=time_limit)
    try:
        yield history
    finally:
        await history.close()


@asynccontextmanager
async def locked(url: str, *, by: str | None = None) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold a lock that keeps everyone from writing, until released or for as long as the block runs."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(by or "SELECT 1")

        async def release() -> None:
            connection.execute("COMMIT")

        yield release
        connection.close()
        return
    other = await asyncpg.connect(url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute(by or "LOCK TABLE conversations, turns IN EXCLUSIVE MODE")
    yield transaction.commit
    await other.close()


async def test_a_turn_waits_for_a_locked_database(database: str) -> None:
    async with opened(database) as history, locked(database) as release:
        begin = asyncio.create_task(history.begin(new_turn("conv_a")))
        done, _ = await asyncio.wait([begin], timeout=1.5)
        assert not done

        await release()

        begun = await begin
        assert await history.finish(the_end(begun.turn))


async def test_an_end_that_waits_while_another_worker_interrupts_the_turn_is_refused(database: str) -> None:
    interrupt = "UPDATE turns SET status = 'interrupted', finished_at = 200.0"
    async with opened(database) as history:
        begun = await history.begin(new_turn("conv_a", id="chatcmpl-1"))
        async with locked(database, by=interrupt) as release:
            finish = asyncio.create_task(history.finish(the_end(begun.turn)))
            done, _ = await asyncio.wait([finish], timeout=0.3)
            assert not done
            await release()

        assert not await finish
        record = await history.turn("alice", "chatcmpl-1")
        assert record is not None
        assert (record.status, record.items) == ("interrupted", [])


async def test_a_locked_database_is_unavailable_until_released(database: str) -> None:
    async with opened(database) as patient, opened(database, time_limit=0.5) as history:
        begun = await patient.begin(new_turn("conv_a"))
        await connected(history)
        async with locked(database) as release:
            tries = await asyncio.gather(
                history.begin(new_turn("conv_b", id="chatcmpl-b")),
                history.finish(the_end(begun.turn)),
                return_exceptions=True,
            )

            assert [type(outcome) for outcome in tries] == [StoreUnavailable, StoreUnavailable]
            assert not await history.is_ready()
            assert await history.find_conversation("alice", "conv_a") is not None
            await release()

        await free(history, "conv_a")
        await free(history, "conv_b")
        assert await history.is_ready()


@pytest.mark.postgres
async def test_a_stopped_server_is_unavailable_until_restarted(postgresql_database: str) -> None:
    async with relayed(postgresql_database) as relay, opened(relay.url, time_limit=1.0) as history:
        await connected(history)
        begun = await history.begin(new_turn("conv_a"))

        await relay.cut()

        tries = await asyncio.gather(
            history.begin(new_turn("conv_b")), history.chain(begun.turn), return_exceptions=True
        )
        assert [type(outcome) for outcome in tries] == [StoreUnavailable, StoreUnavailable]
        assert not await history.is_ready()
        await relay.open()
        await free(history, "conv_b")
        assert len(await at_last(lambda: history.chain(begun.turn))) == 1
        assert await history.finish(the_end(begun.turn))


@pytest.mark.postgres
async def test_a_server_that_comes_back_in_time_is_waited_for(postgresql_database: str) -> None:
    async with relayed(postgresql_database) as relay, opened(relay.url) as history:
        begun = await history.begin(new_turn("conv_a"))
        await relay.cut()
        both = asyncio.gather(history.finish(the_end(begun.turn)), history.chain(begun.turn))
        await asyncio.sleep(0)

        await relay.open()

        is_done, chain = await both
        assert is_done
        assert len(chain) == 1


@pytest.mark.postgres
async def test_a_server_that_answers_nothing_is_not_waited_for(postgresql_database: str) -> None:
    async with relayed(postgresql_database) as relay, opened(relay.url, time_limit=0.5) as history:
        await free(history, "conv_first")
        begun = await history.begin(new_turn("conv_a"))
        relay.hang()

        async with asyncio.timeout(8):
            for call in (
                history.begin(new_turn("conv_b")),
                history.finish(the_end(begun.turn)),
                history.chain(1),
            ):
                with pytest.raises(StoreUnavailable):
                    await call

        relay.flow()
        await free(history, "conv_a")
        await free(history, "conv_b")


@pytest.mark.postgres
async def test_closed_connections_are_replaced(postgresql_database: str) -> None:
    async with opened(postgresql_database) as history:
        begun = await history.begin(new_turn("conv_a"))
        await asyncio.gather(*(history.chain(begun.turn) for _ in range(8)))
        other = await asyncpg.connect(postgresql_database)
        ended = await other.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'handoff-proxy'"
            " AND datname = current_database()"
        )
        await other.close()
        assert len(ended) > 1

        assert len(await history.chain(begun.turn)) == 1
        assert await history.finish(the_end(begun.turn))


async def test_reads_that_are_cancelled_leave_the_store_well(database: str) -> None:
    async with opened(database) as history:
        begun = await history.begin(new_turn("conv_a"))
        for _ in range(5):
            reads = [asyncio.create_task(history.chain(begun.turn)) for _ in range(20)]
            await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            for read in reads:
                read.cancel()
            await asyncio.wait(reads)

        assert len(await history.chain(begun.turn)) == 1


FULL_DISK = """
import asyncio, resource, sys
from proxy.errors import StoreUnavailable
from proxy.store.turns import open_history
from tests.fakes.turn_records import new_turn, place_of, the_end

async def main():
    history = open_history(sys.argv[1], time_limit=0.5)
    first = None
    while first is None:
        try:
            first = await history.begin(new_turn("conv_a"))
        except StoreUnavailable:
            pass  # The machine is busy.
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
    for write in (history.begin(new_turn("conv_b")), history.finish(the_end(first.turn, fingerprint=b"f"))):
        try:
            await write
        except StoreUnavailable:
            print("refused")
    print("reads", len(await history.chain(first.turn)), await place_of(history, b"f"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    while True:
        try:
            await history.begin(new_turn("conv_a"))
            break
        except StoreUnavailable:
            pass
    print("works", (await history.find_conversation("alice", "conv_b")))
    await history.close()

asyncio.run(main())
"""


async def test_a_full_disk_rejects_writes_and_allows_reads(sqlite_database: str) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FULL_DISK, sqlite_database, stdout=PIPE, stderr=PIPE
    )
    out, err = await child.communicate()

    assert out.decode().splitlines() == ["refused", "refused", "reads 1 None", "works None"], err.decode()


async def test_a_defect_is_reported_as_unavailable_without_logging_messages(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil = open_database(database, time_limit=5.0)
    await spoil.write(lambda on: on.execute(text("ALTER TABLE items RENAME TO moved_items")))
    await spoil.close()
    async with opened(database, time_limit=1.0) as history:
        with pytest.raises(StoreUnavailable):
            await history.begin(
                new_turn("conv_a", input=[Item(UserMessage("my secret"))], end_user="my secret")
            )
        with pytest.raises(StoreUnavailable):
            await history.chain(1)
        await history.begin(new_turn("conv_b", input=[]))
    restore = open_database(database, time_limit=5.0)
    await restore.write(lambda on: on.execute(text("ALTER TABLE moved_items RENAME TO items")))
    await restore.close()

    assert {"store write failed", "store read failed"} <= set(caplog.messages)
    formatter = logging.Formatter("%(message)s %(cause)s", defaults={"cause": ""})
    assert "my secret" not in "".join(map(formatter.format, caplog.records))


# --- where the database is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///some/file.sqlite", "sqlite"),
        ("sqlite+aiosqlite:////some/file.sqlite", "sqlite"),
        ("postgres://u:p@h/name", "postgresql+asyncpg"),
        ("postgresql://u:p@h:5433/name", "postgresql+asyncpg"),
        ("postgresql+asyncpg://u:p@h/name", "postgresql+asyncpg"),
    ],
)
def test_the_usual_forms_of_urls_are_understood(given: str, driver: str) -> None:
    assert database_url(given).drivername == driver


def test_sslmode_is_passed_to_the_driver() -> None:
    assert dict(database_url("postgresql://u:p@h/name?sslmode=require").query) == {"ssl": "require"}


@pytest.mark.parametrize(
    "given",
    [
        "nonsense secret",
        "mysql://u:secret@h/name",
        "postgresql+psycopg://u:secret@h/name",
        "postgresql://u:secret@h:port/name",
        "postgresql://u:secret@h",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file?mode=secret",
        "postgresql://u:secret@h/name?sslrootcert=secret",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(given: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        database_url(given)

    assert str(raised.value).startswith("the database URL ")
    assert "secret" not in str(raised.value)


async def test_only_the_owner_may_look_into_the_database(tmp_path: Path) -> None:
    file = tmp_path / "new" / "store.sqlite"

    async with opened(f"sqlite:///{file}"):
        pass

    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_created_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigurationError, match="cannot be made"):
        open_history(f"sqlite:///{tmp_path / 'file' / 'store.sqlite'}")


async def at_last(call: Callable[[], Awaitable[T]]) -> T:
    """What the call gives as soon as the history lets us."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except (StoreUnavailable, ConversationBusy):
                await asyncio.sleep(0.01)


async def free(history: SqlHistory, conversation: str) -> None:
    """Begin and end a turn of the conversation."""

    async def talk() -> bool:
        begun = await history.begin(new_turn(conversation))
        return await history.finish(the_end(begun.turn))

    assert await at_last(talk)


async def connected(history: SqlHistory) -> None:
    """Have the connections made, which takes a busy machine longer than a short time limit."""
    await free(history, "conv_first")
    await at_last(lambda: history.find_conversation("alice", "conv_first"))
