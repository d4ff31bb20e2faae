"""PostgreSQL: a pool of connections that read and one that writes, over asyncpg.

All connections are to a server that accepts writes. After a failover, an old primary that is a standby would answer
reads with old data: no connection to it is opened, and one that turns out to be to a standby ends the whole pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from asyncpg.exceptions import TargetServerAttributeNotMatched  # type: ignore[import-untyped]
from sqlalchemy import Connection
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from proxy.errors import StoreUnavailable
from proxy.store.engine.errors import READ_ONLY, Settle, Unavailable, refused_read, unavailability
from proxy.store.sql.dialects import decode_json
from proxy.store.sql.tables import add_postgresql_conditions, encode_json

R = TypeVar("R")

add_postgresql_conditions()

# In addition to the write connection. Reads are short; many workers share the server's connections (100 by default).
READERS, MORE_READERS = 4, 6
_PAUSE = 0.05


def postgres_engine(url: URL, *, time_limit: float) -> AsyncEngine:
    """Return an engine that waits for connections no longer than the time limit (seconds)."""
    connecting: dict[str, Any] = {
        "timeout": time_limit,
        "server_settings": {"application_name": "handoff-proxy"},
    }
    if url.query.get("pool_mode") == "transaction":
        # The next transaction can run on another server connection, which does not know named statements of this one.
        connecting |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: "",
        }
    else:
        # Behind a pooler, the next transaction can run on another server than the one of this check.
        connecting["target_session_attrs"] = "read-write"
    return create_async_engine(
        url.difference_update_query(["pool_mode"]),
        # Errors are logged; parameters contain message contents.
        hide_parameters=True,
        pool_size=READERS,
        max_overflow=MORE_READERS,
        pool_timeout=time_limit,
        json_serializer=encode_json,
        json_deserializer=decode_json,
        connect_args=connecting,
    )


class PostgresDatabase:
    """``Database`` on a PostgreSQL server."""

    dialect = "postgresql"

    def __init__(self, url: URL, *, time_limit: float) -> None:
        self._time_limit = time_limit
        self._engine = postgres_engine(url, time_limit=time_limit)
        # All statements of a transaction see one snapshot.
        self._read_engine = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._write_connection: AsyncConnection | None = None
        self._commit_task: asyncio.Task[None] | None = None

    async def read(self, work: Callable[[Connection], R]) -> R:
        """Run ``work`` in a read-only transaction. Transient errors are retried until the time limit."""
        try:
            async with asyncio.timeout(self._time_limit):
                while True:
                    try:
                        return await self._read_once(work)
                    except (SQLAlchemyError, OSError, Unavailable, TargetServerAttributeNotMatched) as error:
                        fault = unavailability(error)
                        if fault is None:
                            raise refused_read(error) from None
                        if fault.is_standby:
                            await self._engine.dispose()
                        if fault.is_permanent:
                            raise StoreUnavailable from error
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            raise StoreUnavailable from None

    async def _read_once(self, work: Callable[[Connection], R]) -> R:
        async with self._read_engine.connect() as connection:
            return await connection.run_sync(_read_from_primary, work)

    async def write(self, work: Callable[[Connection], R], *, is_durable: bool = True) -> R:
        """Run ``work`` in a transaction. ``is_durable`` is ignored: every commit waits for the server's disk."""
        try:
            async with asyncio.timeout(self._time_limit):
                if self._write_connection is None:
                    self._write_connection = await self._engine.connect()
                return await self._write_connection.run_sync(_transact, work)
        except BaseException as error:
            fault = unavailability(error)
            if fault is None and isinstance(error, Exception):
                raise
            await self._discard_connection()
            if fault is not None and fault.is_standby:
                # The pool's connections are to the same server, which would answer reads with old data permanently.
                await self._engine.dispose()
            if fault is None:
                raise
            # The timeout may have occurred during the commit.
            fault.outcome_unknown |= isinstance(error, TimeoutError)
            raise fault from error

    def commit(self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool = True) -> None:
        """Run ``work`` like ``write`` in a task, and pass on its result or error."""
        writing = self._write_and_settle(work, settle, is_durable=is_durable)
        # The event loop has no strong reference to it.
        self._commit_task = asyncio.create_task(writing, name="store commit")

    async def _write_and_settle(
        self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool
    ) -> None:
        try:
            result = await self.write(work, is_durable=is_durable)
        except BaseException as error:
            settle(None, error)
            if not isinstance(error, Exception):
                raise
        else:
            settle(result, None)

    def state(self) -> object:
        """Return None: only a query would show what has changed."""
        return None

    async def close(self) -> None:
        """Close the write connection and the pool."""
        if self._write_connection is not None:
            await self._write_connection.close()
        await self._engine.dispose()

    async def _discard_connection(self) -> None:
        connection, self._write_connection = self._write_connection, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()


def _read_from_primary(connection: Connection, work: Callable[[Connection], R]) -> R:
    """Run the work unless the server has reported that it does not accept writes any more.

    PostgreSQL 14 and newer report changes of these settings to open connections (``GUC_REPORT``).
    """
    driver: Any = connection.connection.driver_connection
    settings = driver.get_settings()
    if (
        getattr(settings, "in_hot_standby", "off") == "on"
        or getattr(settings, "default_transaction_read_only", "off") == "on"
    ):
        raise Unavailable(READ_ONLY)
    return work(connection)


def _transact(connection: Connection, work: Callable[[Connection], R]) -> R:
    transaction = connection.begin()
    try:
        given = work(connection)
    except Exception:
        transaction.rollback()
        raise
    try:
        transaction.commit()
    except Exception as error:
        if (fault := unavailability(error)) is None:
            raise
        fault.outcome_unknown = True
        raise fault from error
    return given
