"""Stored completions: completed turns of requests with ``store: true``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Select,
    Table,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.sql.expression import literal_column

from proxy.conversations.repository import CompletionQuery
from proxy.store.sql import rows
from proxy.store.sql.dialects import is_given, statements
from proxy.store.sql.tables import conversations, storable, turns
from proxy.store.sql.turn_queries import TurnQueries
from proxy.turns.records import Page, TurnRecord

FORGOTTEN: Mapping[str, Any] = {
    "caller": "",
    "is_listed": False,
    "metadata": {},
    "options": b"",
    "journal": None,
    # Keep whether the turn requested approvals.
    "circumstances": case((turns.c.circumstances.is_not(None), b"{}")),
    "idempotency_key": None,
    "body_digest": None,
}
"""Column values of a turn whose completion was deleted; the turn remains part of its conversation."""

# Written out, not bound: a partial index is used only where the database sees its condition.
_IS_COMPLETION: tuple[ColumnElement[bool], ...] = (
    literal_column("turns.is_listed"),
    turns.c.status == literal_column("'completed'"),
)


class Completions:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        self._reading = statements(TurnQueries, dialect)
        self._has_metadata = has_metadata(dialect, turns)
        self._all: Select[Any] = (
            select(*turns.c, conversations.c.id.label("conversation_id"))
            .join(conversations, conversations.c.key == turns.c.conversation)
            .where(is_given(turns.c.caller), *_IS_COMPLETION)
        )
        of_id = is_given(turns.c.id)
        # By the conversation's caller: a completion that was deleted since has none.
        self._key = (
            select(turns.c.key)
            .join(conversations, conversations.c.key == turns.c.conversation)
            .where(of_id, is_given(conversations.c.caller))
        )
        change = update(turns).where(is_given(turns.c.caller), of_id, *_IS_COMPLETION)
        self._update = change.values(metadata=bindparam("pairs", type_=turns.c.metadata.type))
        self._delete = change.values(FORGOTTEN)
        self._forget = (
            update(turns)
            .where(is_given(turns.c.caller), of_id)
            .where(turns.c.is_stored, turns.c.status != literal_column("'running'"))
            .values(FORGOTTEN)
        )

    def page(self, connection: Connection, caller: str, wanted: CompletionQuery) -> Page[TurnRecord] | None:
        """Return a part of the list; None if no turn has the id ``page.after``."""
        after, limit, order = wanted.page.after, wanted.page.limit, wanted.page.order
        query = self._all
        given: dict[str, Any] = {"of_caller": caller}
        if after is not None:
            key = connection.scalar(self._key, {"of_caller": caller, "of_id": after})
            if key is None:
                return None
            query = query.where(turns.c.key > key if order == "asc" else turns.c.key < key)
        if wanted.model is not None:
            of_model = bindparam("of_model", wanted.model, type_=turns.c.model.type)
            query = query.where(turns.c.model == of_model)
        query = query.where(visible_to(turns.c.end_user, wanted.end_user))
        if wanted.metadata:
            query = query.where(self._has_metadata)
            given["wanted"] = storable_pairs(wanted.metadata)
        query = query.order_by(turns.c.key if order == "asc" else turns.c.key.desc()).limit(limit + 1)
        found = connection.execute(query, given).all()
        return Page([rows.to_record(row, ()) for row in found[:limit]], has_more=len(found) > limit)

    def update(
        self, connection: Connection, caller: str, completion_id: str, metadata: Mapping[str, str]
    ) -> TurnRecord | None:
        """Replace the metadata; return the completion, or None."""
        given = {"of_caller": caller, "of_id": completion_id, "pairs": storable_pairs(metadata)}
        if not connection.execute(self._update, given).rowcount:
            return None
        return self._reading.by_id(connection, caller, completion_id)

    def delete(self, connection: Connection, caller: str, completion_id: str) -> bool:
        """Delete the completion; return whether it existed."""
        return connection.execute(self._delete, {"of_caller": caller, "of_id": completion_id}).rowcount > 0

    def forget(self, connection: Connection, caller: str, turn_id: str) -> bool:
        """Delete the completion of a finished turn, listed or not; return whether it existed."""
        return connection.execute(self._forget, {"of_caller": caller, "of_id": turn_id}).rowcount > 0


def storable_pairs(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return metadata in a form that both databases accept."""
    return {storable(key): storable(value) for key, value in pairs.items()}


def visible_to(column: ColumnElement[str], end_user: str) -> ColumnElement[bool]:
    """Return the rule of ``auth.may_access`` in SQL: ``column`` is the owner of the row."""
    return or_(column == "", column == storable(end_user)) if end_user else true()


def has_metadata(dialect: str, table: Table) -> ColumnElement[bool]:
    """Return the condition that a row of the table has all of the metadata bound to ``wanted``."""
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import JSONB

        return type_coerce(table.c.metadata, JSONB).contains(bindparam("wanted", type_=JSONB))
    wanted = func.json_each(bindparam("wanted", type_=JSON)).table_valued("key", "value", name="wanted")
    has = func.json_each(table.c.metadata).table_valued("key", "value", name="has")
    is_there = exists().where(has.c.key == wanted.c.key, has.c.value == wanted.c.value)
    return ~exists(select(literal_column("1")).select_from(wanted).where(~is_there.correlate(wanted, table)))
