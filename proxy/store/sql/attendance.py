"""Clients that left running turns, clients of other workers that read them, and the progress of turns."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Connection, bindparam, or_, select, update

from proxy.store.sql import stored_items
from proxy.store.sql.dialects import IS_RUNNING, listed
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.tables import turns
from proxy.turns.records import Attendance, Progress


class AttendanceStatements:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        of, wanted = turns.c, listed(dialect, "wanted", BigInteger)
        running = update(turns).where(of.key == bindparam("turn"), IS_RUNNING)
        # A turn can be completed before it is stored that its client left: its answer has not been read.
        self._leave = PreparedStatement(
            update(turns)
            .where(of.key == bindparam("turn"), or_(IS_RUNNING, of.status == "completed"))
            .values(left_at=bindparam("left"), cancel_at=bindparam("cancel"))
        )
        self._announce = PreparedStatement(running.values(reader_until=bindparam("until")))
        self._end = (
            running.where(of.cancel_at.is_not(None))
            .where(or_(of.reader_until.is_(None), of.reader_until < bindparam("now")))
            .values(cancel_at=bindparam("now"))
        )
        self._progress = PreparedStatement(
            running.values(progress=bindparam("stored"), ran_effects=or_(of.ran_effects, bindparam("ran")))
        )
        self._attendance = PreparedStatement(
            select(of.key, of.cancel_at, of.reader_until, of.cancel_requested).where(
                of.key.in_(select(wanted.c.value)), IS_RUNNING
            )
        )

    def leave(
        self, connection: Connection, turn: int, left_at: float | None, cancel_at: float | None
    ) -> None:
        """Store that clients left, or returned."""
        self._leave.run_once(connection, {"turn": turn, "left": left_at, "cancel": cancel_at})

    def announce(self, connection: Connection, turn: int, until: float) -> None:
        """Store a reader of another worker."""
        self._announce.run_once(connection, {"turn": turn, "until": until})

    def end(self, connection: Connection, turn: int, now: float) -> bool:
        """Request the cancellation of a turn without readers; return whether it applies."""
        return connection.execute(self._end, {"turn": turn, "now": now}).rowcount > 0

    def progress(self, connection: Connection, turn: int, progress: Progress) -> None:
        """Store the items so far."""
        stored = stored_items.progress_json(progress)
        given = {"turn": turn, "stored": stored, "ran": progress.ran_effects}
        self._progress.run_once(connection, given)

    def attendance(self, connection: Connection, turn_keys: Sequence[int]) -> dict[int, Attendance]:
        """Return the attendance of the running ones of these turns."""
        found = self._attendance.run_once(connection, {"wanted": list(turn_keys)})
        return {key: Attendance(*values) for key, *values in found}
