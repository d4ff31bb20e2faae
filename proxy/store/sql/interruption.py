"""Interrupt running turns whose worker died, except those that another worker takes over.

A turn with stored progress becomes history with its items.

Rows are locked in key order, so that two workers cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    not_,
    or_,
    select,
    true,
    update,
)

from proxy.store.sql import stored_items
from proxy.store.sql.dialects import IS_RUNNING, insert_into, listed
from proxy.store.sql.prepared_statement import Insertion
from proxy.store.sql.tables import checkpoints, conversations, items, turns
from proxy.turns.checkpoints import MAX_TAKEOVERS


def can_be_taken_over() -> ColumnElement[bool]:
    """Return the condition of a running turn that is not interrupted when its worker dies."""
    return and_(turns.c.fence < MAX_TAKEOVERS, exists().where(checkpoints.c.turn == turns.c.key))


class Interruption:
    """SQL statements for one dialect. ``condition`` selects turns; its parameters are those of ``run``."""

    def __init__(self, dialect: str, condition: ColumnElement[bool]) -> None:
        of, keys = turns.c, listed(dialect, "keys")
        self._lost = (
            select(of.key, of.conversation, of.progress, of.inputs, of.is_stored)
            .where(condition, IS_RUNNING, not_(can_be_taken_over()))
            .order_by(of.key)
            .with_for_update()
        )
        has_ran = or_(of.ran_effects, of.progress.is_not(None))
        self._interrupt = (
            update(turns)
            .where(of.key.in_(select(cast(keys.c.value, BigInteger))))
            .values(
                status="interrupted",
                idempotency_key=case((of.ran_effects, of.idempotency_key)),
                input_fingerprint=case((has_ran, of.input_fingerprint)),
                finished_at=bindparam("now"),
            )
        )
        self._add_items = Insertion(insert_into(dialect, items), items)
        self._add_result = (
            update(turns)
            .where(of.key == bindparam("turn"))
            .values(is_history=true(), progress=None, agent=bindparam("active", type_=Text))
        )
        self._move_head = (
            update(conversations)
            .where(conversations.c.key == bindparam("of_conversation"))
            .where(or_(conversations.c.head.is_(None), conversations.c.head < bindparam("turn")))
            .values(head=bindparam("turn"))
        )

    def run(self, connection: Connection, given: Mapping[str, Any], now: float) -> int:
        """Interrupt the selected turns; return their number."""
        lost = connection.execute(self._lost, given).all()
        if not lost:
            return 0
        connection.execute(self._interrupt, {"keys": [str(row.key) for row in lost], "now": now})
        for row in lost:
            if row.progress is not None and row.is_stored:
                agent, said = stored_items.to_progress(row.progress)
                placed = [(row.key, row.inputs + place, *item) for place, item in enumerate(said)]
                self._add_items.run(connection, placed)
                connection.execute(self._add_result, {"turn": row.key, "active": agent})
                connection.execute(self._move_head, {"of_conversation": row.conversation, "turn": row.key})
        return len(lost)
