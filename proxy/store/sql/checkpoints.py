"""SQL statements of checkpoints and of turns that are taken over."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Connection,
    bindparam,
    cast,
    delete,
    or_,
    select,
    update,
)

from proxy.store.sql import rows
from proxy.store.sql.dialects import IS_RUNNING, insert_into, listed, statements
from proxy.store.sql.interruption import Interruption, can_be_taken_over
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.tables import checkpoints, turns
from proxy.store.sql.turn_queries import TurnQueries
from proxy.turns.checkpoints import Checkpoint, TakenOver

AT_ONCE = 20
"""Turns that a worker takes over in one transaction."""


class CheckpointStatements:
    """Statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        self._queries = statements(TurnQueries, dialect)
        of, dead, keys = turns.c, listed(dialect, "dead"), listed(dialect, "keys")
        self._owned = PreparedStatement(
            select(of.key)
            .where(of.key == bindparam("turn"), of.fence == bindparam("fence"), IS_RUNNING)
            .with_for_update()
        )
        add = insert_into(dialect, checkpoints)
        # The outcome of the write before can be unknown, and the items since may be more.
        changed = {name: add.excluded[name] for name in ("state", "items", "journal")}
        self._add = PreparedStatement(
            add.on_conflict_do_update(index_elements=["turn", "number"], set_=changed)
        )
        self._interruption = Interruption(dialect, of.key == bindparam("turn"))
        self._lost = (
            select(of.key, of.caller, of.id, of.fence, of.conversation)
            .where(IS_RUNNING, can_be_taken_over())
            .where(or_(of.lease_until < bindparam("now"), of.worker.in_(select(dead.c.value))))
            .order_by(of.key)
            .limit(AT_ONCE)
            # Another worker may be taking over the same turns.
            .with_for_update(skip_locked=True)
        )
        self._take = (
            update(turns)
            .where(of.key.in_(select(cast(keys.c.value, BigInteger))))
            .values(worker=bindparam("of_worker", type_=of.worker.type), lease_until=bindparam("until"))
            .values(fence=of.fence + 1)
        )
        self._of_turn = (
            select(checkpoints).where(checkpoints.c.turn == bindparam("turn")).order_by(checkpoints.c.number)
        )
        self._delete = delete(checkpoints).where(checkpoints.c.turn == bindparam("of_turn"))

    def save(self, connection: Connection, checkpoint: Checkpoint, said: str, journal: bytes | None) -> bool:
        """Add a checkpoint, whose items and journal are in the stored format, if its worker owns the turn."""
        if not self._is_owned(connection, checkpoint.turn, checkpoint.fence):
            return False
        self.add(connection, checkpoint.turn, checkpoint.number, checkpoint.state, said, journal)
        return True

    def add(
        self,
        connection: Connection,
        turn: int,
        number: int,
        state: bytes,
        said: str = "[]",
        journal: bytes | None = None,
    ) -> None:
        """Add a checkpoint."""
        row = {"turn": turn, "number": number, "state": state, "items": said, "journal": journal}
        self._add.run_once(connection, row)

    def take_over(
        self, connection: Connection, worker: str, now: float, lease_until: float, dead: Sequence[str]
    ) -> list[TakenOver]:
        """Give lost turns to a worker."""
        lost = connection.execute(self._lost, {"now": now, "dead": list(dead)}).all()
        if not lost:
            return []
        keys = [str(row.key) for row in lost]
        connection.execute(self._take, {"keys": keys, "of_worker": worker, "until": lease_until})
        taken = []
        for row in lost:
            record = self._queries.by_id(connection, row.caller, row.id)
            if record is not None:
                fence = row.fence + 1
                found = connection.execute(self._of_turn, {"turn": row.key}).all()
                saved = [rows.to_checkpoint(one, fence) for one in found]
                taken.append(TakenOver(record, row.conversation, fence, saved))
        return taken

    def interrupt(self, connection: Connection, turn: int, fence: int, now: float) -> None:
        """Interrupt a turn if its worker owns it."""
        self.discard(connection, turn, fence)
        if self._is_owned(connection, turn, fence):
            self._interruption.run(connection, {"turn": turn}, now)

    def discard(self, connection: Connection, turn: int, fence: int) -> None:
        """Delete the checkpoints of a turn if its worker owns it."""
        if self._is_owned(connection, turn, fence):
            connection.execute(self._delete, {"of_turn": turn})

    def _is_owned(self, connection: Connection, turn: int, fence: int) -> bool:
        return bool(self._owned.run_once(connection, {"turn": turn, "fence": fence}))
