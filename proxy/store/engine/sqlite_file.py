"""The file of a SQLite database: its creation, the free space of a start, and its replacement while it is open."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from pathlib import Path

from sqlalchemy.engine import URL

from proxy.errors import ConfigurationError
from proxy.store.engine.errors import Unavailable

logger = logging.getLogger(__name__)

Identity = tuple[int, int]
"""Device and inode of a file."""
START_BYTES = 1024 * 1024
"""Free space that a start needs: an empty database, its write-ahead log and the index of that."""
_SETTLED_SECONDS = 0.1


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
        # SQLite resolves a link to the database before it opens the log next to it.
        self._log = f"{os.path.realpath(path)}-wal"
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

    def check_with_log(self, log: Identity | None) -> Identity | None:
        """Compare the file, and the write-ahead log with the given one; return the log, None if there is none.

        SQLite never replaces the log of an open connection: it is reset, or truncated, in place. Some file systems have
        none: SQLite then keeps the journal mode that they support.

        Raises:
            Unavailable: One of them is another one, or missing.
        """
        if self._is_replaced or _identity(self._path) != self._identity:
            self.fail("file")
        found = _identity(self._log)
        if log is not None and log != found:
            self.fail("write-ahead log")
        return found

    def log_state(self) -> tuple[int, int] | None:
        """Return time and size of the write-ahead log, which a commit changes; None if a commit might not.

        The clock of file times is coarse: soon after a commit, the next one can have the same time.
        """
        try:
            found = os.stat(self._log)
        except OSError:
            return None
        # Some file systems store whole seconds.
        is_settled = time.time() - found.st_mtime > _SETTLED_SECONDS and found.st_mtime_ns % 10**9
        return (found.st_mtime_ns, found.st_size) if is_settled else None

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


def _identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
