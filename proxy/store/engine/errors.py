"""What an error of a driver means for what was to be done."""

from __future__ import annotations

import logging
import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError

from proxy.errors import StoreUnavailable

logger = logging.getLogger(__name__)

# Result codes of SQLite (sqlite.org/rescode.html); the low byte is the kind.
_SQLITE_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_INTERRUPT,
}
_SQLITE_LASTING = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}

# Classes and codes of PostgreSQL (postgresql.org/docs/current/errcodes-appendix.html).
_POSTGRES_PASSING = (
    "08",  # connection exception
    "25006",  # read-only transaction: the server is a standby just now
    "40",  # transaction rollback: serialization, deadlock
    "53300",  # too many connections
    "55P03",  # lock not available
    "57",  # operator intervention: shutting down, starting up, query cancelled
)
_POSTGRES_LASTING = (
    "28",  # refused credentials
    "3D000",  # no such database
    "53",  # disk full, out of memory
    "58",  # system error
    "XX",  # internal error, corruption
)


class Unavailable(Exception):
    """The database as a whole did not do what it was asked.

    ``is_lasting``: waiting does not mend it soon. ``is_in_doubt``: the answer to a commit was lost, what it was to
    write may be there.
    """

    def __init__(self, cause: str, *, is_lasting: bool = False, is_in_doubt: bool = False) -> None:
        super().__init__(cause)
        self.is_lasting = is_lasting
        self.is_in_doubt = is_in_doubt


def unavailability(error: BaseException) -> Unavailable | None:
    """Return the error as ``Unavailable``, or None when it is about one statement."""
    if isinstance(error, Unavailable):
        return error
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    name = type(cause).__name__
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        name = getattr(cause, "sqlite_errorname", name)
        return _judge(name, is_passing=code in _SQLITE_PASSING, is_lasting=code in _SQLITE_LASTING)
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        is_passing = state.startswith(_POSTGRES_PASSING)
        return _judge(
            state, is_passing=is_passing, is_lasting=not is_passing and state.startswith(_POSTGRES_LASTING)
        )
    is_gone = isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, InterfaceError)
    )
    return _judge(name, is_passing=is_gone or isinstance(cause, OSError | EOFError), is_lasting=False)


def cause_of(error: BaseException) -> str:
    """Return what went wrong in a word for the log: a driver's own sentences may repeat what people wrote."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (
        getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None) or type(cause).__name__
    )


def refused_read(error: Exception) -> StoreUnavailable:
    """Log that one statement failed, which is a defect of ours, and return what the asker is told."""
    logger.error("a read failed", extra={"cause": cause_of(error)})
    return StoreUnavailable()


def _judge(name: str, *, is_passing: bool, is_lasting: bool) -> Unavailable | None:
    return Unavailable(name, is_lasting=is_lasting) if is_passing or is_lasting else None
