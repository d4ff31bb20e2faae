"""Check the database schema and upgrade it to the newest Alembic revision.

One migration runs at a time, over all workers: on PostgreSQL under an advisory lock, on SQLite in an exclusive
transaction. All steps and the new version are one transaction, so that a failed migration leaves nothing behind.

Alembic is imported for an upgrade only: it takes 10 MB of memory and 0.15 s of the start. A new SQLite database gets
the present tables without it. Its table ``alembic_version`` has one row, and the version files form one line of
revisions.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL

import proxy
from proxy.errors import ConfigurationError, DatabaseNotReady, SchemaTooNew
from proxy.store.engine.database import database_url
from proxy.store.engine.errors import unavailability
from proxy.store.engine.sqlite import sqlite_engine
from proxy.store.engine.sqlite_file import check_free_space, make_file
from proxy.store.sql.tables import metadata

R = TypeVar("R")

SchemaState = Literal["empty", "behind", "current", "too_new"]

TIME_LIMIT = 60.0
_PAUSE = 0.1
_REVISION = re.compile(r'^revision = "([^"]+)"', re.MULTILINE)
_DOWN_REVISION = re.compile(r'^down_revision = (?:"([^"]+)"|None)', re.MULTILINE)
# Arbitrary, but it must not change: workers of different versions share the lock.
ADVISORY_LOCK = 4_872_301_966
# Alembic stores the running migration in module globals.
_migration_lock = threading.Lock()


def migrations_folder(package: Path = Path(proxy.__file__).parent) -> Path:
    """Return where the migrations are: inside the package when installed, next to it in a working copy."""
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


async def migrate(
    url: str, *, folder: Path | None = None, time_limit: float = TIME_LIMIT
) -> tuple[str | None, str]:
    """Bring the schema to the newest revision; return the revision before and after.

    Waits (seconds) for another process that is migrating, and for a database that is not there yet.

    Raises:
        ConfigurationError: The URL cannot be used, or the database did not answer.
        SchemaTooNew: The database has a revision that this program does not know.
    """
    place = folder or migrations_folder()
    return await _run(
        database_url(url), lambda connection: _upgrade(connection, place), time_limit=time_limit
    )


async def schema_state(
    url: str, *, folder: Path | None = None, time_limit: float = TIME_LIMIT
) -> SchemaState:
    """Return whether the schema is at the revision of this program.

    Raises:
        ConfigurationError: The URL cannot be used, or the database did not answer.
    """
    place, revisions = database_url(url), _revisions(folder or migrations_folder())
    if _is_missing(place):
        return "empty"
    return await _run(
        place,
        lambda connection: _state(_current(connection), revisions),
        time_limit=time_limit,
        changes=False,
    )


async def prepare_schema(url: str, *, time_limit: float = TIME_LIMIT) -> None:
    """Prepare the schema before startup: migrate SQLite, check PostgreSQL.

    Raises:
        ConfigurationError: The schema is not current or the database is not usable; the message says what to do.
    """
    place = database_url(url)
    if place.drivername == "sqlite":
        make_file(place)
        await asyncio.to_thread(check_free_space, place)
        await migrate(url, time_limit=time_limit)
        return
    state = await schema_state(url, time_limit=time_limit)
    if state == "too_new":
        raise _too_new()
    if state != "current":
        raise _needs_migration(state)


async def check_schema(url: str, *, time_limit: float) -> None:
    """Check in one attempt, without a change, whether a server can start with the database, which may be missing.

    Raises:
        SchemaTooNew: The database has a revision that this program does not know.
        DatabaseNotReady: The database did not answer within the time limit (seconds), or has to be migrated first.
        ConfigurationError: The database cannot be used, and waiting does not change that.
    """
    place, revisions = database_url(url), _revisions(migrations_folder())
    is_sqlite = place.drivername == "sqlite"
    if _is_missing(place):
        return
    if is_sqlite:
        await asyncio.to_thread(check_free_space, place)
    state = await _run(
        place,
        lambda connection: _state(_current(connection), revisions),
        time_limit=time_limit,
        changes=False,
        is_retried=False,
    )
    if state == "too_new":
        raise _too_new()
    # ``prepare_schema`` migrates SQLite.
    if state != "current" and not is_sqlite:
        raise _needs_migration(state)


def is_missing(url: str) -> bool:
    """Whether the database is an SQLite file that does not exist yet, so that nothing is stored."""
    return _is_missing(database_url(url))


def _needs_migration(state: SchemaState) -> DatabaseNotReady:
    found = "has no tables yet" if state == "empty" else "is older than this program"
    return DatabaseNotReady(f"the database {found}: run `handoff-proxy migrate` and start again")


def _revisions(folder: Path) -> Sequence[str]:
    """Return all revisions of this program, oldest first."""
    following = {}
    for file in (folder / "versions").glob("*.py"):
        source = file.read_text("utf-8")
        revision, before = _REVISION.search(source), _DOWN_REVISION.search(source)
        assert revision is not None, f"{file.name} has no revision"
        assert before is not None, f"{file.name} has no down_revision"
        following[before[1]] = revision[1]
    ordered: list[str] = []
    while (revision_id := following.get(ordered[-1] if ordered else None)) is not None:
        ordered.append(revision_id)
    assert len(ordered) == len(following), "the revisions are not one line"
    return ordered


def _current(connection: Connection) -> str | None:
    """Return the revision of the database; None if it has none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _state(current: str | None, revisions: Sequence[str]) -> SchemaState:
    if current is None:
        return "empty"
    if current == revisions[-1]:
        return "current"
    return "behind" if current in revisions else "too_new"


def _upgrade(connection: Connection, folder: Path) -> tuple[str | None, str]:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    before, revisions = _current(connection), _revisions(folder)
    state = _state(before, revisions)
    if state == "too_new":
        raise _too_new()
    if state == "empty" and connection.dialect.name == "sqlite" and folder == migrations_folder():
        _create_tables(connection, revisions[-1])
    elif state != "current":
        _run_alembic(connection, folder)
        if (
            connection.dialect.name == "sqlite"
            and connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        ):
            raise ConfigurationError(
                "a migration would leave rows behind that belong to nothing; nothing was changed"
            )
    after = _current(connection)
    assert after is not None
    return before, after


def _create_tables(connection: Connection, revision: str) -> None:
    """Create all tables as they are at the newest revision; fails like a migration if one of them exists."""
    metadata.create_all(connection, checkfirst=False)
    # As Alembic creates it (alembic.runtime.migration, MigrationContext._version).
    connection.execute(
        text(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,"
            " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})


def _run_alembic(connection: Connection, folder: Path) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # ConfigParser, which Alembic uses, interpolates %.
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _too_new() -> SchemaTooNew:
    return SchemaTooNew(
        "the database was migrated by a newer version of handoff-proxy: install that or a later one"
    )


async def _run(
    url: URL,
    work: Callable[[Connection], R],
    *,
    time_limit: float,
    changes: bool = True,
    is_retried: bool = True,
) -> R:
    """Run the work in one transaction; retry transient errors until the time limit.

    ``changes`` is whether the work changes the database.
    """
    run = (
        partial(_run_on_sqlite, changes=changes)
        if url.drivername == "sqlite"
        else partial(_run_on_postgres, time_limit=TIME_LIMIT if is_retried else time_limit)
    )
    deadline = time.monotonic() + (time_limit if is_retried else 0)
    while True:
        try:
            return await asyncio.to_thread(run, url, work)
        except Exception as error:
            fault = unavailability(error)
            if fault is None:
                raise
            if fault.is_permanent or time.monotonic() > deadline:
                place = (
                    url.database
                    if url.drivername == "sqlite"
                    else f"{url.host}:{url.port or 5432}/{url.database}"
                )
                kind = ConfigurationError if fault.is_permanent else DatabaseNotReady
                raise kind(f"the database {place} cannot be used ({fault})") from None
        await asyncio.sleep(_PAUSE)


def _is_missing(url: URL) -> bool:
    return url.drivername == "sqlite" and not Path(url.database or "").exists()


def _run_on_sqlite(url: URL, work: Callable[[Connection], R], *, changes: bool) -> R:
    if changes:
        make_file(url)
    # Foreign keys stay off: where a table is rebuilt, dropping the old one would delete what belongs to its rows.
    engine = (
        sqlite_engine(url, begin="BEGIN EXCLUSIVE", pragmas={"journal_mode": "WAL"})
        if changes
        else sqlite_engine(url, begin="BEGIN", pragmas={})
    )
    try:
        with _migration_lock, engine.begin() as connection:
            return work(connection)
    finally:
        engine.dispose()


def _run_on_postgres(url: URL, work: Callable[[Connection], R], *, time_limit: float) -> R:
    # Imported on demand, see ``open_database``.
    from proxy.store.engine.postgres import postgres_engine

    async def run() -> R:
        engine = postgres_engine(url, time_limit=time_limit)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()

    # A separate event loop in this thread, so that the loop of the server is not blocked.
    with _migration_lock:
        return asyncio.run(run())
