"""SQLite: a thread that writes and a few that read, each with its own connection.

One hop to a thread per transaction, not one per statement, is what makes a stored turn cheap.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from proxy.errors import ConfigurationError, StoreUnavailable
from proxy.store.engine.errors import Unavailable, refused_read, unavailability
from proxy.store.sql.dialects import decode_json, encode_json

R = TypeVar("R")
_Job = tuple[Callable[[Connection], Any], str | None, "asyncio.Future[Any]", asyncio.AbstractEventLoop]

READERS = 3
# How long one attempt waits for another process's lock; the attempts are repeated until the time limit.
BUSY_SECONDS = 1.0
_PAUSE = 0.05


def sqlite_engine(url: URL, *, begin: str, pragmas: dict[str, object]) -> Engine:
    """Return an engine whose transactions start with ``begin`` and whose connections have ``pragmas`` set."""
    engine = create_engine(
        url,
        poolclass=NullPool,
        # Errors go to the log, what people wrote does not.
        hide_parameters=True,
        json_serializer=encode_json,
        json_deserializer=decode_json,
        # None: the driver begins nothing by itself, and DDL is part of a transaction.
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        for name, value in pragmas.items():
            connection.execute(f"PRAGMA {name} = {value}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.connection.driver_connection.execute(begin)  # type: ignore[union-attr]

    return engine


def make_file(url: URL) -> None:
    """Make the database's file and folder where they are missing; only their owner may look into them.

    Raises:
        ConfigurationError: It cannot be made.
    """
    file = Path(url.database or "").resolve()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError as error:
        raise ConfigurationError(f"the database {file} cannot be made: {error.strerror}") from None
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"the folder {file.parent} of the database cannot be written to")


class SqliteDatabase:
    """A ``Database`` in a file."""

    dialect = "sqlite"

    def __init__(self, url: URL, *, time_limit: float) -> None:
        make_file(url)
        self._time_limit = time_limit
        pragmas: dict[str, object] = {"foreign_keys": "ON", "synchronous": "FULL"}
        written = pragmas | {"journal_mode": "WAL", "journal_size_limit": 64 * 1024 * 1024}
        # Deleted words are overwritten, not only let go of; some builds of SQLite do that by themselves, most do not.
        written["secure_delete"] = "ON"
        self._writer = _Threads(
            sqlite_engine(url, begin="BEGIN IMMEDIATE", pragmas=written), 1, "store writes"
        )
        self._readers = _Threads(sqlite_engine(url, begin="BEGIN", pragmas=pragmas), READERS, "store reads")

    async def read(self, work: Callable[[Connection], R]) -> R:
        """See ``Database``."""
        try:
            async with asyncio.timeout(self._time_limit):
                while True:
                    try:
                        return await self._readers.run(work)
                    except Unavailable as error:
                        if error.is_lasting:
                            raise StoreUnavailable from error
                    except SQLAlchemyError as error:
                        raise refused_read(error) from None
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            raise StoreUnavailable from None

    async def write(self, work: Callable[[Connection], R], *, outlives_power: bool = True) -> R:
        """See ``Database``."""
        # NORMAL does not wait for the disk. A later commit that does takes with it what came before
        # (sqlite.org/pragma.html#pragma_synchronous).
        synchronous = "FULL" if outlives_power else "NORMAL"
        return await self._writer.run(work, f"PRAGMA synchronous = {synchronous}")

    async def close(self) -> None:
        """See ``Database``."""
        # The last connection to close moves the log into the file and removes it; of two at a time, neither may.
        await self._readers.close()
        await self._writer.close()


class _Threads:
    """Threads that run work, each over a connection of its own, in the order in which it comes."""

    def __init__(self, engine: Engine, count: int, name: str) -> None:
        self._engine = engine
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[Connection], R], pragma: str | None = None) -> R:
        """Run the work in a thread, after setting the pragma; cancelling does not stop what has begun."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._jobs.put((work, pragma, future, loop))
        return await future

    async def close(self) -> None:
        """Finish what was handed in and close the connections."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._engine.dispose()

    def _work(self) -> None:
        connection: Connection | None = None
        while (job := self._jobs.get()) is not None:
            connection = self._do(job, connection)
            # What was read is not kept until the next job.
            del job
        if connection is not None:
            connection.close()

    def _do(self, job: _Job, connection: Connection | None) -> Connection | None:
        work, pragma, future, loop = job
        result: Any = None
        error: BaseException | None = None
        if not future.cancelled():
            try:
                connection = connection or self._engine.connect()
                if pragma is not None:
                    connection.connection.driver_connection.execute(pragma)  # type: ignore[union-attr]
                with connection.begin():
                    result = work(connection)
            except BaseException as raised:  # noqa: BLE001 - it is raised where it is waited for
                error = unavailability(raised) or raised
            # One that is well is kept: opening another needs room on a disk that may be full.
            if connection is not None and _is_stuck(connection):
                connection.close()
                connection = None
        # The loop is closed when the program did not wait for its work.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, future, result, error)
        return connection


def _is_stuck(connection: Connection) -> bool:
    """Whether the transaction could not even be rolled back."""
    driver = connection.connection.driver_connection
    return driver is None or bool(driver.in_transaction)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
