"""SQLite: a thread that writes and a few that read, each with its own connection.

One hop to a thread per transaction, not one per statement, is what makes a stored turn cheap.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import tempfile
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

logger = logging.getLogger(__name__)

R = TypeVar("R")
_Job = tuple[Callable[[Connection], Any], str | None, "asyncio.Future[Any]", asyncio.AbstractEventLoop]

READERS = 3
START_BYTES = 1024 * 1024
"""Free space that a start needs: an empty database, its write-ahead log and the index of that."""
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
        connection.connection.driver_connection.execute(begin)  # type: ignore[union-attr]

    return engine


def make_file(url: URL) -> None:
    """Create the database file and its folder if they are missing, with access for the owner only.

    Raises:
        ConfigurationError: The file or folder cannot be created.
    """
    file = Path(url.database or "").resolve()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError as error:
        raise ConfigurationError(f"the database {file} cannot be made: {error.strerror}") from None
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"the folder {file.parent} of the database cannot be written to")


def check_free_space(url: URL) -> None:
    """Write and remove a temporary file next to the database.

    SQLite reports a full disk in several ways, some of which also mean a lock and are retried (SQLITE_IOERR and
    SQLITE_CANTOPEN when the index of the write-ahead log cannot be created).

    Raises:
        ConfigurationError: There is no space for ``START_BYTES``, or the folder cannot be written.
    """
    file = Path(url.database or "").absolute()
    try:
        with tempfile.TemporaryFile(dir=file.parent, buffering=0) as probe:
            # Blocks, not a hole: a sparse file takes no space. A raw write may be short.
            remaining = START_BYTES
            while remaining > 0:
                remaining -= probe.write(bytes(remaining)) or 0
            os.fsync(probe.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigurationError(
                f"the disk of the database {file} is full: free at least {START_BYTES // 1024} KiB and start again"
            ) from None
        raise ConfigurationError(
            f"the folder {file.parent} of the database cannot be written to ({error.strerror})"
        ) from None


class DatabaseFile:
    """Detects that the file at the path is no longer the one that the connections have open.

    POSIX keeps an open file after it was deleted or replaced: SQLite would continue to commit into it, and all of that
    would be lost with the last connection. The same holds for the write-ahead log. A replaced file stays an error
    until the process ends, even if the path leads to the first file again: its log may be gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._identity = _identity(self._path)
        self._is_replaced = False

    def check(self) -> None:
        """Compare device and inode with those at the start.

        Raises:
            Unavailable: The file is another one, or there is none.
        """
        if not self._is_replaced and _identity(self._path) == self._identity:
            return
        self.fail("file")

    def log_identity(self) -> tuple[int, int] | None:
        """Return device and inode of the write-ahead log; None if there is none."""
        # SQLite resolves a link to the database before it opens the log next to it. Runs for every commit, and
        # ``realpath`` examines every folder of the path.
        path = os.path.realpath(self._path) if os.path.islink(self._path) else self._path
        return _identity(f"{path}-wal")

    def fail(self, part: str) -> None:
        """Record that a part of the database was replaced, and log it once.

        Raises:
            Unavailable: Always.
        """
        if not self._is_replaced:
            self._is_replaced = True
            logger.error(
                "the database was deleted or replaced while the server runs; no turn is stored until it is restarted",
                extra={"database": self._path, "replaced": part},
            )
        raise Unavailable("database replaced", is_permanent=True)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class SqliteDatabase:
    """A ``Database`` in a file. A commit is acknowledged only if the path still leads to the file it went to."""

    dialect = "sqlite"

    def __init__(self, url: URL, *, time_limit: float) -> None:
        make_file(url)
        file = DatabaseFile(Path(url.database or "").absolute())
        self._time_limit = time_limit
        pragmas: dict[str, object] = {"foreign_keys": "ON", "synchronous": "FULL"}
        written = pragmas | {"journal_mode": "WAL", "journal_size_limit": 64 * 1024 * 1024}
        # Overwrite deleted content with zeros (sqlite.org/pragma.html#pragma_secure_delete); off in most SQLite builds.
        written["secure_delete"] = "ON"
        # 16 MB instead of 4: a checkpoint copies pages that many turns changed once, and waits for the disk once.
        written["wal_autocheckpoint"] = 4000
        self._writer = _Threads(
            sqlite_engine(url, begin="BEGIN IMMEDIATE", pragmas=written), 1, "store writes", file
        )
        self._readers = _Threads(
            sqlite_engine(url, begin="BEGIN", pragmas=pragmas), READERS, "store reads", file
        )

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

    async def close(self) -> None:
        """Finish the queued work and close all connections."""
        # The last connection to close checkpoints and deletes the WAL. If two close concurrently, neither does.
        await self._readers.close()
        await self._writer.close()


class _Threads:
    """Threads with one connection each that run jobs from a shared FIFO queue."""

    def __init__(self, engine: Engine, count: int, name: str, file: DatabaseFile) -> None:
        self._engine = engine
        self._file = file
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[Connection], R], pragma: str | None = None) -> R:
        """Run the work in a thread, after setting the pragma; cancellation does not stop a job that has started."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._jobs.put((work, pragma, future, loop))
        return await future

    async def close(self) -> None:
        """Finish the queued jobs and close the connections."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._engine.dispose()

    def _work(self) -> None:
        connection: Connection | None = None
        while (job := self._jobs.get()) is not None:
            connection = self._do(job, connection)
            # Release the result now, not at the next job.
            del job
        if connection is not None:
            connection.close()

    def _do(self, job: _Job, connection: Connection | None) -> Connection | None:
        work, pragma, future, loop = job
        result: Any = None
        error: BaseException | None = None
        if not future.cancelled():
            try:
                # First: connecting to a path without a file would create an empty database there.
                self._file.check()
                connection = connection or self._engine.connect()
                if pragma is not None:
                    connection.connection.driver_connection.execute(pragma)  # type: ignore[union-attr]
                with connection.begin():
                    result = work(connection)
                self._check_committed(connection)
            except BaseException as raised:  # noqa: BLE001 - raised to the waiter
                error = unavailability(raised) or raised
            # Reuse the connection after an error: opening another needs disk space, and the disk may be full.
            if connection is not None and _is_stuck(connection):
                connection.close()
                connection = None
        # The loop is closed when the program did not wait for its work.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, future, result, error)
        return connection

    def _check_committed(self, connection: Connection) -> None:
        """Raise ``Unavailable`` if what was just committed is in a file that the path does not lead to."""
        self._file.check()
        log = self._file.log_identity()
        # SQLite never replaces the log of an open connection: it is reset, or truncated, in place.
        known = connection.info.get("log")
        if known is None:
            # Some file systems have none: SQLite then keeps the journal mode that they support.
            connection.info["log"] = log
        elif known != log:
            self._file.fail("write-ahead log")


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
