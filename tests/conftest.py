"""Database fixtures: an SQLite file for each test, and a PostgreSQL database for each session.

``HANDOFF_TEST_POSTGRES`` is the URL of the server; the default is the local port 5432. If it does not answer, the tests
of PostgreSQL are skipped, or fail if ``HANDOFF_TEST_REQUIRE_ALL`` is set.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from proxy.store.engine.migrations import migrate
from proxy.store.sql.dialects import build_statements

# Tests use plain HTTP on this machine. With a certificate file, the default, each new HTTP client loads all of its
# certificates, which takes 40 ms. Certificates in a folder are loaded only when they are needed.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# Containers set it. Without bytecode files each test process compiles the tests, which takes 4 s of CPU time, and each
# program the server.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# SQLite waits for the disk at each commit, which is most of the time of many tests. Files in memory need no wait.
MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = 2**31
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK | os.X_OK):
    _memory = os.statvfs(MEMORY)
    # Some tests run programs of their temporary folder.
    if _memory.f_bavail * _memory.f_frsize > MIN_FREE_BYTES and not _memory.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# The objects of imports and of test collection live until the end. Garbage collection over them takes a tenth of the
# total test time, so they are frozen: after the collection of the tests, and after each module, which imports more.
gc.disable()
gc.set_threshold(10_000, 10, 10)  # those of the server

SERVER = os.environ.get("HANDOFF_TEST_POSTGRES") or "postgresql://postgres@127.0.0.1:5432/postgres"
BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


def pytest_runtest_setup() -> None:
    # mutmut runs the tests of a mutant in a fork of a process that has run all tests, and only those that called the
    # changed function there: each test has to build the statements.
    if "MUTANT_UNDER_TEST" in os.environ:
        build_statements.cache_clear()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path != item.path:
        freeze()


def freeze() -> None:
    """Free the garbage, and exclude all other objects from later collections."""
    gc.collect()
    gc.freeze()


def apart(work: Coroutine[Any, Any, object]) -> None:
    """Run the work in a thread, because an event loop may already run in this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def on_server(statement: str, *, url: str = SERVER) -> None:
    """Run the statement on the PostgreSQL server of the tests."""

    async def run() -> None:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    apart(run())


@pytest.fixture(scope="session")
def postgres_server() -> None:
    try:
        on_server("SELECT 1")
    except (OSError, asyncpg.PostgresError) as error:
        reason = f"no PostgreSQL for tests ({type(error).__name__}): start one, or set HANDOFF_TEST_POSTGRES"
        if os.environ.get("HANDOFF_TEST_REQUIRE_ALL"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@contextmanager
def new_database() -> Iterator[str]:
    """Create a database on the server, yield its URL, and drop it.

    Commits do not wait for the disk: a crash of the server itself, which no test causes, could lose the last ones.
    """
    name = f"handoff_test_{secrets.token_hex(6)}"
    on_server(f"CREATE DATABASE {name}")
    on_server(f"ALTER DATABASE {name} SET synchronous_commit = off")
    try:
        yield f"{SERVER.rpartition('/')[0]}/{name}"
    finally:
        on_server(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: None) -> Iterator[str]:
    with new_database() as url:
        apart(migrate(url))
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated database file, to copy."""
    file = tmp_path_factory.mktemp("migrated") / "store.sqlite"
    apart(migrate(f"sqlite:///{file}"))
    return file


@pytest.fixture
def sqlite_database(migrated_sqlite: Path, tmp_path: Path) -> str:
    """Return the URL of a migrated SQLite database for one test."""
    file = tmp_path / "store.sqlite"
    shutil.copy(migrated_sqlite, file)
    return f"sqlite:///{file}"


@pytest.fixture
def postgresql_database(migrated_postgres: str) -> str:
    """Return the URL of the migrated database of the session, without rows; a new database takes half a second."""
    on_server(
        "DELETE FROM conversations; DELETE FROM creations; DELETE FROM snapshots; DELETE FROM api_keys",
        url=migrated_postgres,
    )
    return migrated_postgres


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest) -> str:
    """Return the URL of a migrated database without rows, for SQLite and PostgreSQL."""
    return str(request.getfixturevalue(f"{request.param}_database"))


@pytest.fixture(scope="session")
def shared_postgres(postgres_server: None) -> Iterator[str]:
    with new_database() as url:
        yield url


@pytest.fixture
def emptied_postgres(shared_postgres: str) -> str:
    """Return the URL of the other database of the session, without tables; a new database takes half a second."""
    on_server(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid();"
        " DROP SCHEMA public CASCADE; CREATE SCHEMA public",
        url=shared_postgres,
    )
    return shared_postgres


@pytest.fixture(params=BOTH)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database without tables, for SQLite and PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'folder' / 'store.sqlite'}"
    return str(request.getfixturevalue("emptied_postgres"))
