"""Classify driver errors as transient, permanent, or specific to one statement."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import DBAPIError, InterfaceError

from proxy.errors import StoreUnavailable

logger = logging.getLogger(__name__)

Settle = Callable[[Any, BaseException | None], None]
"""Gets the result of some work, or the error, in the event loop."""

# Result codes of SQLite (sqlite.org/rescode.html); the low byte is the kind.
_SQLITE_TRANSIENT = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_INTERRUPT,
}
_SQLITE_PERMANENT = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}

# Classes and codes of PostgreSQL (postgresql.org/docs/current/errcodes-appendix.html).
READ_ONLY = "25006"  # read-only transaction: the server is a standby at present
# asyncpg: the server at the address does not accept writes (``target_session_attrs`` of libpq).
_NO_PRIMARY = "TargetServerAttributeNotMatched"
_POSTGRES_TRANSIENT = (
    "08",  # connection exception
    READ_ONLY,
    "40",  # transaction rollback: serialization, deadlock
    "53300",  # too many connections
    "55P03",  # lock not available
    "57",  # operator intervention: shutting down, starting up, query cancelled
)
_POSTGRES_PERMANENT = (
    "28",  # invalid credentials
    "3D000",  # no such database
    "53",  # disk full, out of memory
    "58",  # system error
    "XX",  # internal error, corruption
)


class Unavailable(Exception):
    """The database failed, not a single statement.

    ``is_permanent``: a retry will not help soon (disk full, invalid credentials). ``outcome_unknown``: the connection
    failed during commit; the write may have been applied. ``is_standby``: the server does not accept writes.
    """

    def __init__(self, cause: str, *, is_permanent: bool = False, outcome_unknown: bool = False) -> None:
        super().__init__(cause)
        self.is_standby = cause in (READ_ONLY, _NO_PRIMARY)
        self.is_permanent = is_permanent
        self.outcome_unknown = outcome_unknown


def unavailability(error: BaseException) -> Unavailable | None:
    """Return the error as ``Unavailable``, or None if it concerns one statement only."""
    if isinstance(error, Unavailable):
        return error
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    name = type(cause).__name__
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        name = getattr(cause, "sqlite_errorname", name)
        return _classify(name, is_transient=code in _SQLITE_TRANSIENT, is_permanent=code in _SQLITE_PERMANENT)
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        is_transient = state.startswith(_POSTGRES_TRANSIENT)
        return _classify(
            state,
            is_transient=is_transient,
            is_permanent=not is_transient and state.startswith(_POSTGRES_PERMANENT),
        )
    is_gone = isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, InterfaceError)
    )
    is_transient = is_gone or name == _NO_PRIMARY or isinstance(cause, OSError | EOFError)
    return _classify(name, is_transient=is_transient, is_permanent=False)


def cause_of(error: BaseException) -> str:
    """Return the error code for the log. Driver messages are not logged, because they can contain message contents."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (
        getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None) or type(cause).__name__
    )


def refused_read(error: Exception) -> StoreUnavailable:
    """Log the failure of one read statement (a defect in the proxy) and return the error to raise."""
    logger.error("store read failed", extra={"cause": cause_of(error)})
    return StoreUnavailable()


def _classify(name: str, *, is_transient: bool, is_permanent: bool) -> Unavailable | None:
    return Unavailable(name, is_permanent=is_permanent) if is_transient or is_permanent else None
