"""The write-ahead log of SQLite: it is copied into the database while commits continue, and does not grow forever."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from proxy.store.engine.database import database_url, open_database
from proxy.store.engine.errors import Settle
from proxy.store.engine.sqlite import CHECKPOINT_COMMITS, LOG_PAGES, SqliteDatabase

PAGE = 4096


@pytest.fixture
def file(sqlite_database: str) -> Path:
    return Path(sqlite_database.removeprefix("sqlite:///"))


@pytest.fixture
async def database(sqlite_database: str) -> AsyncIterator[SqliteDatabase]:
    opened = open_database(sqlite_database, time_limit=10)
    assert isinstance(opened, SqliteDatabase)
    await opened.write(lambda on: on.execute(text("CREATE TABLE numbers (number INTEGER, filling BLOB)")))
    yield opened
    await opened.close()


async def commit(database: SqliteDatabase, count: int, *, pages: int = 1) -> None:
    """Commit rows that fill this many pages, without waiting for the disk."""

    def add(on: Connection) -> None:
        on.exec_driver_sql("INSERT INTO numbers VALUES (1, zeroblob(?))", (PAGE * pages,))

    for _ in range(count):
        await database.write(add, is_durable=False)


async def checkpoint() -> None:
    """Wait for the checkpoint that has begun, if it has not ended yet."""
    await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == "SQLite checkpoint"])


def pages_of(file: Path) -> int:
    return file.stat().st_size // PAGE


def pages_of_log(file: Path) -> int:
    return pages_of(file.with_name(f"{file.name}-wal"))


async def test_the_log_is_copied_after_some_commits(database: SqliteDatabase, file: Path) -> None:
    empty = pages_of(file)
    await commit(database, CHECKPOINT_COMMITS // 2)
    assert pages_of(file) == empty

    await commit(database, CHECKPOINT_COMMITS // 2)
    await checkpoint()

    assert pages_of(file) >= empty + CHECKPOINT_COMMITS - 1
    assert pages_of_log(file) < LOG_PAGES


async def test_the_log_is_restarted_although_commits_continue(database: SqliteDatabase, file: Path) -> None:
    pages = LOG_PAGES // CHECKPOINT_COMMITS + 1

    await commit(database, 4 * CHECKPOINT_COMMITS, pages=pages)

    # Those until a checkpoint begins, and those during the longest one.
    assert pages_of_log(file) < (1 + 2) * CHECKPOINT_COMMITS * (pages + 3)


async def test_commits_continue_while_a_reader_prevents_checkpoints(
    database: SqliteDatabase, file: Path
) -> None:
    empty = pages_of(file)
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM numbers").fetchone() == (0,)
        await commit(database, CHECKPOINT_COMMITS)
        await checkpoint()
        assert pages_of(file) < empty + 10
        reader.execute("ROLLBACK")

    await commit(database, CHECKPOINT_COMMITS)
    await checkpoint()

    assert pages_of(file) >= empty + 2 * CHECKPOINT_COMMITS - 1


async def test_a_database_is_closed_after_its_checkpoint(database: SqliteDatabase, file: Path) -> None:
    await commit(database, CHECKPOINT_COMMITS)

    await database.close()

    assert not file.with_name(f"{file.name}-wal").exists()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM numbers").fetchone() == (CHECKPOINT_COMMITS,)


class Refusing(SqliteDatabase):
    """A database whose commits fail before they begin, as when no thread can be started."""

    is_refusing = False

    def commit(self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool = True) -> None:
        if self.is_refusing:
            raise RuntimeError("can't start new thread")
        super().commit(work, settle, is_durable=is_durable)


async def test_a_commit_that_waits_for_a_checkpoint_and_cannot_begin_fails(sqlite_database: str) -> None:
    database = Refusing(database_url(sqlite_database), time_limit=10)
    writes = [database.write(lambda on: on.execute(text("SELECT 1"))) for _ in range(2 * CHECKPOINT_COMMITS)]
    waiting = database.write(lambda on: on.execute(text("SELECT 1")))
    database.is_refusing = True

    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError):
            await waiting
        await asyncio.gather(*writes)
        await database.close()
