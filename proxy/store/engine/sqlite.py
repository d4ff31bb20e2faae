"""SQLite: a thread that writes and a few that read, each with its own connection.

One hop to a thread per transaction, not one per statement, is what makes a stored turn cheap.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from proxy.errors import StoreUnavailable
from proxy.store.engine.errors import Settle, Unavailable, cause_of, refused_read, unavailability
from proxy.store.engine.sqlite_file import DatabaseFile, Identity, make_file
from proxy.store.sql.dialects import decode_json
from proxy.store.sql.tables import encode_json

logger = logging.getLogger(__name__)

R = TypeVar("R")
_Job = tuple[Callable[[Connection], Any], Settle, Callable[[], bool] | None, str | None, bool]
"""The work and its receiver; whether it is not needed any more; the pragma to set before it; if in a transaction."""

READERS = 3
# How long one attempt waits for a lock of another process. Attempts are repeated until the time limit.
BUSY_SECONDS = 1.0
_PAUSE = 0.05
CHECKPOINT_COMMITS = 150
"""Commits between two checkpoints: 2,000 pages of single turns. A page that several turns changed is copied once."""
LOG_PAGES, MOST_LOG_PAGES = 4_000, 12_000
"""Pages of the write-ahead log: from the first number on it is to be restarted; from the second on (48 MB), each commit
tries a checkpoint itself."""
# NORMAL does not wait for the disk. A later commit that does takes with it what came before
# (sqlite.org/pragma.html#pragma_synchronous).
_WAITING_FOR_DISK, _NOT_WAITING = "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"

# Of each parameter that is not exactly an int, float, str or bytearray, the driver looks for an adapter, and raises and
# drops errors when there is none: 3 % of the instructions of a streamed request. These functions change no value.
_none_of: dict[None, None] = {}
sqlite3.register_adapter(type(None), _none_of.get)
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(bool, int)


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
        written["wal_autocheckpoint"] = MOST_LOG_PAGES
        self._writer = _Threads(url, 1, "store writes", file, begin="BEGIN IMMEDIATE", pragmas=written)
        self._readers = _Threads(url, READERS, "store reads", file, begin="BEGIN", pragmas=pragmas)
        self._commits = 0
        """Commits since the last checkpoint."""
        self._checkpoint: asyncio.Task[None] | None = None

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

    def commit(self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool = True) -> None:
        """Run ``work`` in the writer thread. Transient errors are passed to ``settle``; the caller retries."""
        if self._commits >= 2 * CHECKPOINT_COMMITS and self._checkpoint is not None:
            # The checkpoint takes longer than committing as many pages again: without this wait, the log would grow
            # without bound.
            later = partial(self._commit_later, work, settle, is_durable=is_durable)
            self._checkpoint.add_done_callback(lambda _: later())
            return
        self._writer.start(work, settle, pragma=_WAITING_FOR_DISK if is_durable else _NOT_WAITING)
        self._commits += 1
        if self._commits >= CHECKPOINT_COMMITS and self._checkpoint is None:
            self._checkpoint = asyncio.create_task(self._copy_log(), name="SQLite checkpoint")

    def _commit_later(self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool) -> None:
        try:
            self.commit(work, settle, is_durable=is_durable)
        except Exception as error:  # noqa: BLE001 - of a callback, which nothing waits for
            settle(None, error)

    def write(self, work: Callable[[Connection], R], *, is_durable: bool = True) -> asyncio.Future[R]:
        """Run ``work`` like ``commit``, and return its result."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.commit(work, partial(_settle, future), is_durable=is_durable)
        return future

    def state(self) -> object:
        """Return the state of the write-ahead log, which every commit changes."""
        return self._file.log_state()

    async def close(self) -> None:
        """Finish the queued work and close all connections."""
        if self._checkpoint is not None:
            await asyncio.wait([self._checkpoint])
        # The last connection to close checkpoints and deletes the WAL. If two close concurrently, neither does.
        await self._readers.close()
        await self._writer.close()

    async def _copy_log(self) -> None:
        """Copy the write-ahead log into the database while commits continue.

        A commit overwrites the log from its beginning only if all of it was copied: what was committed during the copy,
        usually a few pages, is copied in the writer's thread. A failed checkpoint loses nothing, and a later one
        succeeds.
        """
        self._commits = 0
        try:
            if await self._readers.run(_checkpoint, in_transaction=False) >= LOG_PAGES:
                await self._writer.run(_checkpoint, in_transaction=False)
        except (Unavailable, SQLAlchemyError, sqlite3.Error) as error:
            logger.info("checkpoint failed", extra={"cause": cause_of(error)})
        finally:
            self._checkpoint = None


def _checkpoint(connection: Connection) -> int:
    """Copy what no reader prevents, without waiting for any; return the number of pages in the log."""
    driver: Any = connection.connection.driver_connection
    _, pages, _ = driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(pages)


@dataclass(slots=True)
class _Session:
    """The connection of a thread: that of SQLAlchemy, and that of the driver below it."""

    connection: Connection
    driver: Any
    pragma: str | None = None
    """The last one of a job."""
    log: Identity | None = None
    """The write-ahead log; None before the first commit."""


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
        self._loop: asyncio.AbstractEventLoop | None = None
        """That of all jobs; set with the first thread."""

    def run(
        self, work: Callable[[Connection], R], pragma: str | None = None, *, in_transaction: bool = True
    ) -> asyncio.Future[R]:
        """Run the work in a thread; cancellation does not stop a job that has started."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.start(
            work, partial(_settle, future), future.cancelled, pragma=pragma, in_transaction=in_transaction
        )
        return future

    def start(
        self,
        work: Callable[[Connection], Any],
        settle: Settle,
        is_cancelled: Callable[[], bool] | None = None,
        *,
        pragma: str | None = None,
        in_transaction: bool = True,
    ) -> None:
        """Run the work in a thread, after setting the pragma; one that ``is_cancelled`` before it starts is skipped."""
        self._jobs.put((work, settle, is_cancelled, pragma, in_transaction))
        self._unfinished += 1
        if self._unfinished > len(self._threads) < self._count:
            self._start_thread()

    def _start_thread(self) -> None:
        self._loop = asyncio.get_running_loop()
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
        work, settle, is_cancelled, pragma, in_transaction = job
        result: Any = None
        error: BaseException | None = None
        if is_cancelled is None or not is_cancelled():
            try:
                if session is None:
                    # Connecting to a path without a file would create an empty database there.
                    self._file.check()
                    session = self._connect()
                if pragma is not None and pragma != session.pragma:
                    session.driver.execute(pragma)
                    session.pragma = pragma
                if in_transaction:
                    result = self._transact(session, work)
                    # What was just committed could be in a file that the path does not lead to.
                    session.log = self._file.check_with_log(session.log)
                else:
                    result = work(session.connection)
            except BaseException as raised:  # noqa: BLE001 - raised to the waiter
                error = unavailability(raised) or raised
                # Reuse the connection after an error: opening another needs disk space, and the disk may be full.
                if session is not None and _is_stuck(session):
                    session.connection.close()
                    session = None
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._end_job, settle, result, error)
        except RuntimeError:
            # The loop is closed: the program did not wait for its work.
            pass
        return session

    def _connect(self) -> _Session:
        connection = self._engine.connect()
        driver = connection.connection.driver_connection
        # For ``PreparedStatement``.
        return _Session(connection.execution_options(driver=driver), driver)

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

    def _end_job(self, settle: Settle, result: Any, error: BaseException | None) -> None:
        # Here and not where the job is waited for: one whose waiter was cancelled still occupies its thread.
        self._unfinished -= 1
        settle(result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _is_stuck(session: _Session) -> bool:
    """Whether the transaction could not even be rolled back."""
    return session.connection.closed or bool(session.driver.in_transaction)
