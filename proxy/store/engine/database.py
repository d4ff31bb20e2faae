"""The database: where it is, and one way to run work in it that does not depend on which it is.

Work is a plain function over a SQLAlchemy ``Connection``, run as one transaction: for SQLite in a thread, for
PostgreSQL over asyncpg.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from proxy.errors import ConfigurationError
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
# What PostgreSQL's own programs call it, and what the driver does.
_PARAMETERS = {
    "sslmode": "ssl",
    "host": "host",
    "port": "port",
    "prepared_statement_cache_size": "prepared_statement_cache_size",
}
_WANTED = "it should look like sqlite:///folder/file.sqlite or postgresql://user:password@host:5432/name"


class Database(Protocol):
    """Runs work. Both methods give what the work gives, and raise its errors; nothing is written then."""

    dialect: str
    """``sqlite`` or ``postgresql``."""

    async def read(self, work: Callable[[Connection], R]) -> R:
        """Run work that only reads, seeing one state of the database.

        Raises:
            StoreUnavailable: The database did not answer within the time limit.
        """
        ...

    async def write(self, work: Callable[[Connection], R], *, outlives_power: bool = True) -> R:
        """Run work that writes; return when it is durable. Not to be called again before it returned.

        Without ``outlives_power`` it may be lost when the machine that this process runs on stops at once, but not
        when the process does.

        Raises:
            Unavailable: The database as a whole did not do it.
        """
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...


def database_url(given: str) -> URL:
    """Return the URL of the database with the driver in use, from any of the usual forms.

    Raises:
        ConfigurationError: It is none of a database that can be used. The sentence does not repeat it.
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
    return url.set(drivername=driver, query={_PARAMETERS[name]: value for name, value in url.query.items()})


def open_database(given: str, *, time_limit: float) -> Database:
    """Return the database at the URL. SQLite's file is made when it is missing; PostgreSQL is not asked yet.

    Raises:
        ConfigurationError: The URL cannot be used, or the file not be made.
    """
    url = database_url(given)
    if url.drivername == "sqlite":
        return SqliteDatabase(url, time_limit=time_limit)
    # Only where it is in use: importing it takes a tenth of the time to start.
    from proxy.store.engine.postgres import PostgresDatabase

    return PostgresDatabase(url, time_limit=time_limit)
