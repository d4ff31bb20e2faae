"""The schema: brought to head under a lock, compared with the tables, left alone when something is wrong."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from proxy.errors import ConfigurationError, SchemaTooNew
from proxy.messages import Compaction, Item, UserMessage
from proxy.store.engine.database import open_database
from proxy.store.engine.migrations import (
    ADVISORY_LOCK,
    migrate,
    migrations_folder,
    prepare_schema,
    schema_state,
)
from proxy.store.sql.tables import metadata
from proxy.store.turns import open_history
from tests.fakes.turn_records import new_turn, place_of, the_end
from tests.fork_server import ROOT, fork

HEAD = str(ScriptDirectory(str(migrations_folder())).get_current_head())

BROKEN = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "HEAD"


def upgrade() -> None:
    op.create_table("half_done", sa.Column("key", sa.Integer(), primary_key=True))
    op.execute("INSERT INTO no_such_table VALUES (1)")
"""


GOOD = BROKEN.replace("half_done", "more").replace("no_such_table", "more")

REBUILDING = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "HEAD"


def upgrade() -> None:
    with op.batch_alter_table("conversations", recreate="auto") as table:
        table.add_column(sa.Column("note", sa.Text(), server_default=""))
        table.alter_column("team", nullable=True)
"""


@asynccontextmanager
async def held(url: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold the lock of a migration for as long as the block runs, or until released."""
    if url.startswith("sqlite"):
        file = Path(url.removeprefix("sqlite:///"))
        file.parent.mkdir()
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")

        async def release() -> None:
            connection.execute("ROLLBACK")

        yield release
        connection.close()
        return
    other = await asyncpg.connect(url)
    await other.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
    yield lambda: other.execute("SELECT pg_advisory_unlock_all()")
    await other.close()


async def requested(url: str, question: Any) -> Any:
    database = open_database(url, time_limit=5.0)
    try:
        return await database.write(question)
    finally:
        await database.close()


def copied_migrations(folder: Path) -> Path:
    """A copy of the migrations, with which a new SQLite database is migrated step by step."""
    copy = folder / "migrations"
    shutil.copytree(migrations_folder(), copy, dirs_exist_ok=True)
    return copy


def with_migration(folder: Path, source: str) -> Path:
    """A copy of the migrations with one more."""
    copy = copied_migrations(folder)
    (copy / "versions" / "9999_next.py").write_text(source.replace("HEAD", HEAD))
    return copy


def migrations_before(number: int, folder: Path) -> Path:
    """A copy of the migrations without this one and all later ones."""
    copy = copied_migrations(folder)
    for file in (copy / "versions").glob("*.py"):
        if file.name[:4].isdigit() and int(file.name[:4]) >= number:
            file.unlink()
    return copy


async def test_an_empty_database_is_brought_to_head(empty_database: str) -> None:
    assert await schema_state(empty_database) == "empty"

    assert await migrate(empty_database) == (None, HEAD)

    assert await schema_state(empty_database) == "current"
    assert await migrate(empty_database) == (HEAD, HEAD)


async def test_the_migrated_schema_is_what_the_tables_say(empty_database: str, tmp_path: Path) -> None:
    await migrate(empty_database, folder=copied_migrations(tmp_path))

    def differences(connection: Connection) -> list[Any]:
        return list(
            compare_metadata(
                MigrationContext.configure(connection, opts={"compare_server_default": True}), metadata
            )
        )

    assert await requested(empty_database, differences) == []


async def test_the_retained_part_of_stored_compactions_is_renamed(
    empty_database: str, tmp_path: Path
) -> None:
    await migrate(empty_database, folder=migrations_before(10, tmp_path))
    marker = Item(
        UserMessage('A text with "compaction":{"kept":1}.'),
        agent="a",
        visible=False,
        compaction=Compaction(retained_from=7, whole=2, scope="call_1"),
    )
    history = open_history(empty_database)
    begun = await history.begin(new_turn("conv_a"))
    await history.finish(the_end(begun.turn, items=[marker]))
    await history.close()

    def as_before(connection: Connection) -> None:
        new, old = '"compaction":{"retained_from":', '"compaction":{"kept":'
        connection.execute(
            text("UPDATE items SET message = replace(message, :new, :old)"), {"new": new, "old": old}
        )

    await requested(empty_database, as_before)
    assert await migrate(empty_database) == ("0009", HEAD)

    history = open_history(empty_database)
    [chain] = await history.chain(begun.turn)
    await history.close()
    assert chain.items[-1:] == [marker]


async def test_turns_of_an_earlier_version_are_found_by_the_new_indexes(
    empty_database: str, tmp_path: Path
) -> None:
    await migrate(empty_database, folder=migrations_before(12, tmp_path))
    history = open_history(empty_database)
    for conversation in ("conv_a", "conv_b"):
        begun = await history.begin(new_turn(conversation))
        await history.finish(the_end(begun.turn, fingerprint=b"f", last_answer=conversation.encode()))
    before = await place_of(history, b"f"), await history.find_last_answer(b"conv_a")
    await history.close()

    assert await migrate(empty_database) == ("0011", HEAD)

    history = open_history(empty_database)
    assert (await place_of(history, b"f"), await history.find_last_answer(b"conv_a")) == before
    assert before[0] is not None
    assert before[0].turn == begun.turn
    await history.close()

    def indexes(connection: Connection) -> set[str]:
        return {str(index["name"]) for index in inspect(connection).get_indexes("turns")}

    found = await requested(empty_database, indexes)
    assert not found & {"ix_turns_fingerprint", "ix_turns_conversation_fingerprint", "ix_turns_last_answer"}


async def test_a_new_sqlite_database_is_like_a_migrated_one(tmp_path: Path) -> None:
    created, migrated = (f"sqlite:///{tmp_path}/{name}.sqlite" for name in ("created", "migrated"))
    await migrate(created)
    assert await migrate(migrated, folder=copied_migrations(tmp_path)) == (None, HEAD)

    def schema(connection: Connection) -> dict[str, object]:
        """All that SQLite knows of each table and index, but the order of the columns."""
        run = connection.exec_driver_sql
        found: dict[str, object] = {}
        for kind, name, source in run("SELECT type, name, sql FROM sqlite_master").all():
            if kind == "table":
                columns = {tuple(row)[1:] for row in run(f"PRAGMA table_xinfo({name})")}
                keys = {tuple(row)[2:] for row in run(f"PRAGMA foreign_key_list({name})")}
                found[name] = columns, keys, "AUTOINCREMENT" in source
                for index in run(f"PRAGMA index_list({name})").all():
                    members = [row[2] for row in run(f"PRAGMA index_info({index[1]})")]
                    found[f"{name}: {index[3]} {members}"] = tuple(index)[2:]
            elif source is not None:
                found[name] = " ".join(source.split())
        return found

    assert await requested(created, schema) == await requested(migrated, schema)


async def test_the_comparison_sees_a_difference(empty_database: str) -> None:
    await migrate(empty_database)

    def without_an_index(connection: Connection) -> list[Any]:
        connection.execute(text("DROP INDEX ix_turns_running"))
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert [difference[0] for difference in await requested(empty_database, without_an_index)] == [
        "add_index"
    ]


async def test_partial_indexes_have_their_conditions(database: str) -> None:
    """The comparison does not look at them, and one running turn per conversation hangs on one."""

    def definitions(connection: Connection) -> dict[str, str]:
        indexes = inspect(connection).get_indexes("turns")
        name = connection.dialect.name
        return {
            str(index["name"]): str(index["dialect_options"][f"{name}_where"])
            for index in indexes
            if f"{name}_where" in index.get("dialect_options", {})
        }

    found = await requested(database, definitions)
    assert "status" in found["ix_turns_running"]
    assert "running" in found["ix_turns_running"]
    assert set(found) == {
        "ix_turns_running",
        "ix_turns_fingerprint_conversation_key",
        "ix_turns_input",
        "ix_turns_last_answer_conversation_key",
        "ix_turns_body_digest",
        "ix_turns_listed",
    }


async def test_a_failed_migration_leaves_nothing_behind_and_can_be_tried_again(
    empty_database: str, tmp_path: Path
) -> None:
    await migrate(empty_database)
    folder = with_migration(tmp_path, BROKEN)

    with pytest.raises(Exception, match="no_such_table"):
        await migrate(empty_database, folder=folder)

    assert await schema_state(empty_database) == "current"
    assert await schema_state(empty_database, folder=folder) == "behind"
    assert not await requested(empty_database, lambda connection: inspect(connection).has_table("half_done"))
    with_migration(tmp_path, BROKEN.replace("no_such_table VALUES (1)", "half_done VALUES (1)"))
    assert await migrate(empty_database, folder=folder) == (HEAD, "next")


async def test_a_database_of_a_newer_version_is_refused(empty_database: str, tmp_path: Path) -> None:
    await migrate(empty_database, folder=with_migration(tmp_path, GOOD))

    assert await schema_state(empty_database) == "too_new"
    with pytest.raises(SchemaTooNew, match="newer version"):
        await migrate(empty_database)
    with pytest.raises(SchemaTooNew, match="newer version"):
        await prepare_schema(empty_database)


async def test_rebuilding_a_table_keeps_what_belongs_to_its_rows(empty_database: str, tmp_path: Path) -> None:
    await migrate(empty_database)
    history = open_history(empty_database)
    begun = await history.begin(new_turn("conv_a"))
    await history.finish(the_end(begun.turn))
    before = await history.chain(begun.turn)
    await history.close()

    await migrate(empty_database, folder=with_migration(tmp_path, REBUILDING))

    history = open_history(empty_database)
    assert await history.chain(begun.turn) == before
    await history.close()


async def test_a_migration_that_would_orphan_rows_is_refused(tmp_path: Path, sqlite_database: str) -> None:
    history = open_history(sqlite_database)
    await history.begin(new_turn("conv_a"))
    await history.close()
    folder = with_migration(
        tmp_path,
        GOOD.replace(
            'op.create_table("more"', 'op.execute("DELETE FROM conversations")\n    op.create_table("more"'
        ),
    )

    with pytest.raises(ConfigurationError, match="belong to nothing"):
        await migrate(sqlite_database, folder=folder)

    assert await schema_state(sqlite_database) == "current"
    history = open_history(sqlite_database)
    assert await history.find_conversation("alice", "conv_a") is not None
    await history.close()


async def test_workers_that_start_at_once_migrate_once(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "import asyncio; from proxy.store.engine.migrations import migrate\n"
        f"print(asyncio.run(migrate({empty_database!r}))[0])"
    )
    workers = [await fork("worker", folder=tmp_path, environment={"PYTHONPATH": str(ROOT)}) for _ in range(3)]
    output = [await asyncio.gather(*map(read_all, (worker.stdout, worker.stderr))) for worker in workers]

    assert [await worker.wait() for worker in workers] == [0, 0, 0], output
    assert sorted(out.decode().strip() for out, _ in output) == [HEAD, HEAD, "None"]
    assert await schema_state(empty_database) == "current"


async def read_all(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None
    return await stream.read()


async def test_a_migration_waits_for_a_running_one(empty_database: str) -> None:
    """Here another connection holds what a migration holds."""
    async with held(empty_database) as release:
        waiting = asyncio.create_task(migrate(empty_database))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        await release()

    assert await waiting == (None, HEAD)


async def test_a_database_that_is_not_there_stops_the_start_with_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="/name cannot be used") as raised:
        await prepare_schema("postgresql://someone:secret@127.0.0.1:1/name", time_limit=0.2)
    assert "secret" not in str(raised.value)


def test_the_migrations_are_found_in_a_working_copy_and_in_a_wheel(tmp_path: Path) -> None:
    assert (migrations_folder() / "versions").is_dir()
    package = tmp_path / "proxy"
    package.mkdir()
    assert migrations_folder(package) == tmp_path / "migrations"
    (package / "migrations").mkdir()
    assert migrations_folder(package) == package / "migrations"


async def test_postgresql_is_not_migrated_by_the_start_but_must_be_current(empty_database: str) -> None:
    if empty_database.startswith("sqlite"):
        await prepare_schema(empty_database)
        assert await schema_state(empty_database) == "current"
        return

    with pytest.raises(ConfigurationError, match="run `handoff-proxy migrate`"):
        await prepare_schema(empty_database)
    assert await schema_state(empty_database) == "empty"
    await migrate(empty_database)
    await prepare_schema(empty_database)
