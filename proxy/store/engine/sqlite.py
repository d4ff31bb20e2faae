"""SQLite: a thread that writes and a few that read, each with its own connection.

One hop to a thread per transaction, not one per statement, is what makes a stored turn cheap.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from proxy.errors import StoreUnavailable
from proxy.store.engine.errors import Unavailable, refused_read, unavailability
from proxy.store.engine.sqlite_file import DatabaseFile, make_file
from proxy.store.sql.dialects import decode_json, encode_json

R = TypeVar("R")
_Job = tuple[Callable[[Connection], Any], str | None, "asyncio.Future[Any]", asyncio.AbstractEventLoop]

READERS = 3
# How long one attempt waits for a lock of another process. Attempts are repeated until the time limit.
BUSY_SECONDS = 1.0
_PAUSE = 0.05


def sqlite_engine(url: URL, *, begin: str, pragmas: dict[str, object]) -> Engine:
    """Return an engine whose transactions start with ``begin`` and whose connections have ``pragmas`` set."""
    engine = create_engine(
        url,
        poolclass=NullPool,
        # Errors are logged; parameters contain message contents.
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
        driver: Any = connection.connection.driver_connection
        # Those of ``_Threads`` begin before SQLAlchemy notices.
        if not driver.in_transaction:
            driver.execute(begin)

    return engine


class SqliteDatabase:
    """A ``Database`` in a file. A commit is acknowledged only if the path still leads to the file it went to."""

    dialect = "sqlite"

    def __init__(self, url: URL, *, time_limit: float) -> None:
        make_file(url)
        self._file = file = DatabaseFile(Path(url.database or "").absolute())
        self._time_limit = time_limit
        pragmas: dict[str, object] = {"foreign_keys": "ON", "synchronous": "FULL"}
        written = pragmas | {"journal_mode": "WAL", "journal_size_limit": 64 * 1024 * 1024}
        # Overwrite deleted content with zeros (sqlite.org/pragma.html#pragma_secure_delete); off in most SQLite builds.
        written["secure_delete"] = "ON"
        # 16 MB instead of 4: a checkpoint copies pages that many turns changed once, and waits for the disk once.
        written["wal_autocheckpoint"] = 4000
        self._writer = _Threads(url, 1, "store writes", file, begin="BEGIN IMMEDIATE", pragmas=written)
        self._readers = _Threads(url, READERS, "store reads", file, begin="BEGIN", pragmas=pragmas)

    async def read(self, work: Callable[[Connection], R]) -> R:
        """Run ``work`` in a reader thread. Transient errors (``SQLITE_BUSY``) are retried until the time limit."""
        try:
            async with asyncio.timeout(self._time_limit):
                while True:
                    try:
                        return await self._readers.run(work)
                    except Unavailable as error:
                        if error.is_permanent:
                            raise StoreUnavailable from error
                    except (SQLAlchemyError, sqlite3.Error) as error:
                        # Prepared statements run on the driver.
                        raise refused_read(error) from None
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            raise StoreUnavailable from None

    async def write(self, work: Callable[[Connection], R], *, is_durable: bool = True) -> R:
        """Run ``work`` in the writer thread. Transient errors are raised; the caller retries."""
        # NORMAL does not wait for the disk. A later commit that does takes with it what came before
        # (sqlite.org/pragma.html#pragma_synchronous).
        synchronous = "FULL" if is_durable else "NORMAL"
        return await self._writer.run(work, f"PRAGMA synchronous = {synchronous}")

    def state(self) -> object:
        """Return the state of the write-ahead log, which every commit changes."""
        return self._file.log_state()

    async def close(self) -> None:
        """Finish the queued work and close all connections."""
        # The last connection to close checkpoints and deletes the WAL. If two close concurrently, neither does.
        await self._readers.close()
        await self._writer.close()


@dataclass(slots=True)
class _Session:
    """The connection of a thread: that of SQLAlchemy, and that of the driver below it."""

    connection: Connection
    driver: Any
    pragma: str | None = None
    """The last one of a job."""
    log: tuple[int, int] | None = None
    """Device and inode of the write-ahead log."""


class _Threads:
    """Up to ``count`` threads with one connection each that run jobs from a shared FIFO queue."""

    def __init__(
        self,
        url: URL,
        count: int,
        name: str,
        file: DatabaseFile,
        *,
        begin: str,
        pragmas: dict[str, object],
    ) -> None:
        self._engine = sqlite_engine(url, begin=begin, pragmas=pragmas)
        self._begin = begin
        self._file = file
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._name = name
        self._count = count
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        """Jobs that wait or run; used in the event loop only."""

    async def run(self, work: Callable[[Connection], R], pragma: str | None = None) -> R:
        """Run the work in a thread, after setting the pragma; cancellation does not stop a job that has started."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._jobs.put((work, pragma, future, loop))
        self._unfinished += 1
        if self._unfinished > len(self._threads) < self._count:
            self._start_thread()
        return await future

    def _start_thread(self) -> None:
        name = f"{self._name} {len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    async def close(self) -> None:
        """Finish the queued jobs and close the connections."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._engine.dispose()

    def _work(self) -> None:
        session: _Session | None = None
        while (job := self._jobs.get()) is not None:
            session = self._do(job, session)
            # Release the result now, not at the next job.
            del job
        if session is not None:
            session.connection.close()

    def _do(self, job: _Job, session: _Session | None) -> _Session | None:
        work, pragma, future, loop = job
        result: Any = None
        error: BaseException | None = None
        if not future.cancelled():
            try:
                # First: connecting to a path without a file would create an empty database there.
                self._file.check()
                session = session or self._connect()
                if pragma is not None and pragma != session.pragma:
                    session.driver.execute(pragma)
                    session.pragma = pragma
                result = self._transact(session, work)
                self._check_committed(session)
            except BaseException as raised:  # noqa: BLE001 - raised to the waiter
                error = unavailability(raised) or raised
                # Reuse the connection after an error: opening another needs disk space, and the disk may be full.
                if session is not None and _is_stuck(session):
                    session.connection.close()
                    session = None
        # The loop is closed when the program did not wait for its work.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._settle, future, result, error)
        return session

    def _connect(self) -> _Session:
        connection = self._engine.connect()
        return _Session(connection, connection.connection.driver_connection)

    def _transact(self, session: _Session, work: Callable[[Connection], R]) -> R:
        """Run the work in a transaction of the driver; SQLAlchemy joins it when the work executes something there.

        A transaction of SQLAlchemy costs 40 µs, as much as the statements of a turn.
        """
        session.driver.execute(self._begin)
        try:
            result = work(session.connection)
            # In both cases the same COMMIT.
            (session.connection if session.connection.in_transaction() else session.driver).commit()
        except BaseException:
            session.connection.rollback()
            session.driver.rollback()
            raise
        return result

    def _settle(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        # Here and not where the job is waited for: one whose waiter was cancelled still occupies its thread.
        self._unfinished -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _check_committed(self, session: _Session) -> None:
        """Raise ``Unavailable`` if what was just committed is in a file that the path does not lead to."""
        self._file.check()
        log = self._file.log_identity()
        # SQLite never replaces the log of an open connection: it is reset, or truncated, in place.
        if session.log is None:
            # Some file systems have none: SQLite then keeps the journal mode that they support.
            session.log = log
        elif session.log != log:
            self._file.fail("write-ahead log")


def _is_stuck(session: _Session) -> bool:
    """Whether the transaction could not even be rolled back."""
    return session.connection.closed or bool(session.driver.in_transaction)
