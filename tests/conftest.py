"""Databases for tests: SQLite in a file of the test's own, PostgreSQL in a database of its own.

PostgreSQL is looked for at ``HANDOFF_TEST_POSTGRES`` or the usual local port. Without one its tests are skipped, or
fail when ``HANDOFF_TEST_REQUIRE_ALL`` is set.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import shutil
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from proxy.store.engine.migrations import migrate

# Everything is on this machine and in plain HTTP. With a file of certificates, which is also the default, each new HTTP
# client of a test reads those of all authorities, which takes 40 ms; a folder is looked into when one is needed.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# What collecting the tests makes stays to the end: looking for garbage in it takes a tenth of the time of all tests.
gc.disable()

SERVER = os.environ.get("HANDOFF_TEST_POSTGRES") or "postgresql://postgres@127.0.0.1:5432/postgres"
BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def apart(work: Coroutine[Any, Any, object]) -> None:
    """Run the work in a thread: a fixture may be asked for while an event loop runs in this one."""
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
    """A database on the server, for as long as the block runs; gives its URL."""
    name = f"handoff_test_{secrets.token_hex(6)}"
    on_server(f"CREATE DATABASE {name}")
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
    """A migrated file to copy."""
    file = tmp_path_factory.mktemp("migrated") / "store.sqlite"
    apart(migrate(f"sqlite:///{file}"))
    return file


@pytest.fixture
def sqlite_database(migrated_sqlite: Path, tmp_path: Path) -> str:
    """The URL of a migrated database of the test's own."""
    file = tmp_path / "store.sqlite"
    shutil.copy(migrated_sqlite, file)
    return f"sqlite:///{file}"


@pytest.fixture
def postgresql_database(migrated_postgres: str) -> str:
    """The URL of a migrated database without rows: making one for each test takes half a second."""
    on_server(
        "DELETE FROM conversations; DELETE FROM creations; DELETE FROM snapshots; DELETE FROM api_keys",
        url=migrated_postgres,
    )
    return migrated_postgres


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database of the test's own, on each of the two."""
    return str(request.getfixturevalue(f"{request.param}_database"))


@pytest.fixture(params=BOTH)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables, on each of the two."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'folder' / 'store.sqlite'}"
        return
    request.getfixturevalue("postgres_server")
    with new_database() as url:
        yield url
