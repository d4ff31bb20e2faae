"""Database URL parsing, and the ``Database`` protocol that SQLite and PostgreSQL implement.

Work is a plain function over a SQLAlchemy ``Connection``, run as one transaction: for SQLite in a thread, for
PostgreSQL over asyncpg.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from proxy.errors import ConfigurationError
from proxy.store.engine.errors import Settle
from proxy.store.engine.sqlite import SqliteDatabase

R = TypeVar("R")

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
# libpq parameter names, and the names that asyncpg uses.
_PARAMETERS = {
    "sslmode": "ssl",
    "host": "host",
    "port": "port",
    "prepared_statement_cache_size": "prepared_statement_cache_size",
    # Not of asyncpg: see ``postgres_engine``.
    "pool_mode": "pool_mode",
}
_POOL_MODES = ("session", "transaction")
_WANTED = "it should look like sqlite:///folder/file.sqlite or postgresql://user:password@host:5432/name"


class Database(Protocol):
    """Runs transactions. The result is that of ``work``; if it raises, the transaction is rolled back."""

    dialect: str
    """``sqlite`` or ``postgresql``."""

    async def read(self, work: Callable[[Connection], R]) -> R:
        """Run a read-only transaction; all its statements see one snapshot.

        Raises:
            StoreUnavailable: The database did not answer within the time limit.
        """
        ...

    def write(self, work: Callable[[Connection], R], *, is_durable: bool = True) -> Awaitable[R]:
        """Run a write transaction; its result is available after the commit. Writes must not overlap.

        Without ``is_durable``, a power failure can lose the commit; the end of the process cannot.

        Raises:
            Unavailable: The database failed, not a single statement.
        """
        ...

    def commit(self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool = True) -> None:
        """Run a write transaction like ``write``.

        ``settle`` gets its result or error, once, in a later iteration of the event loop.
        """
        ...

    def state(self) -> object:
        """Return a value that every later commit of any process changes; None if there is no such value."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


def database_url(given: str) -> URL:
    """Return the database URL with the driver that this package uses; common aliases are accepted.

    Raises:
        ConfigurationError: The URL is invalid or not supported. The message does not repeat it: it may have a password.
    """
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"the database URL cannot be read: {_WANTED}") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise ConfigurationError(
            f"the database URL names a database or driver that is not supported: {_WANTED}"
        )
    if driver == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigurationError(
                "the database URL names no file; an SQLite database in memory cannot be shared"
            )
        if url.host or url.query:
            raise ConfigurationError(f"the database URL has parts that SQLite does not take: {_WANTED}")
        return url.set(drivername=driver)
    if not url.database:
        raise ConfigurationError(f"the database URL names no database: {_WANTED}")
    if unknown := sorted(url.query.keys() - _PARAMETERS.keys()):
        raise ConfigurationError(
            f"the database URL has a parameter that is not supported: {', '.join(unknown)}"
            f" (supported: {', '.join(_PARAMETERS)})"
        )
    if url.query.get("pool_mode", "session") not in _POOL_MODES:
        raise ConfigurationError(f"the database URL has an unknown pool_mode: use {' or '.join(_POOL_MODES)}")
    return url.set(drivername=driver, query={_PARAMETERS[name]: value for name, value in url.query.items()})


def is_pooled(url: URL) -> bool:
    """Whether a pooler assigns a server connection to each transaction, so that a session has no state."""
    return url.query.get("pool_mode") == "transaction"


def open_database(given: str, *, time_limit: float) -> Database:
    """Open the database at the URL. A missing SQLite file is created; PostgreSQL is not connected yet.

    Raises:
        ConfigurationError: The URL is invalid, or the file cannot be created.
    """
    url = database_url(given)
    if url.drivername == "sqlite":
        return SqliteDatabase(url, time_limit=time_limit)
    # Imported on demand: the import is a tenth of the startup time.
    from proxy.store.engine.postgres import PostgresDatabase

    return PostgresDatabase(url, time_limit=time_limit)
