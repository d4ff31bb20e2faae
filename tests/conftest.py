"""Databases for tests: SQLite in a file of the test's own, PostgreSQL in a database of its own.

PostgreSQL is looked for at ``HANDOFF_TEST_POSTGRES`` or the usual local port. Without one its tests are skipped, or
fail when ``HANDOFF_TEST_REQUIRE_ALL`` is set.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from proxy.store.migrating import migrate

SERVER = os.environ.get("HANDOFF_TEST_POSTGRES") or "postgresql://postgres@127.0.0.1:5432/postgres"
BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


def on_server(*statements: str) -> None:
    """Run the statements on the PostgreSQL server of the tests."""

    async def run() -> None:
        connection = await asyncpg.connect(SERVER, timeout=5)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


@pytest.fixture(scope="session")
def postgres_server() -> None:
    try:
        on_server("SELECT 1")
    except (OSError, asyncpg.PostgresError) as error:
        reason = f"no PostgreSQL for tests ({type(error).__name__}): start one, or set HANDOFF_TEST_POSTGRES"
        if os.environ.get("HANDOFF_TEST_REQUIRE_ALL"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def _in_database(name: str) -> str:
    return SERVER.rpartition("/")[0] + f"/{name}"


def _new_name() -> str:
    return f"handoff_test_{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: None) -> Iterator[str]:
    """The name of a migrated database to copy from."""
    name = _new_name()
    on_server(f"CREATE DATABASE {name}")
    asyncio.run(migrate(_in_database(name)))
    yield name
    on_server(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy."""
    file = tmp_path_factory.mktemp("migrated") / "store.sqlite"
    asyncio.run(migrate(f"sqlite:///{file}"))
    return file


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated database of the test's own, on each of the two."""
    if request.param == "sqlite":
        file = tmp_path / "store.sqlite"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), file)
        yield f"sqlite:///{file}"
        return
    name = _new_name()
    on_server(f"CREATE DATABASE {name} TEMPLATE {request.getfixturevalue('migrated_postgres')}")
    yield _in_database(name)
    on_server(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=BOTH)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables, on each of the two."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'folder' / 'store.sqlite'}"
        return
    request.getfixturevalue("postgres_server")
    name = _new_name()
    on_server(f"CREATE DATABASE {name}")
    yield _in_database(name)
    on_server(f"DROP DATABASE {name} WITH (FORCE)")
