"""The end of a single turn on PostgreSQL: one statement with three changes, because each statement is a round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Boolean,
    Connection,
    Integer,
    Text,
    Update,
    bindparam,
    cast,
    func,
    or_,
    select,
    update,
)

from proxy.store.sql import rows
from proxy.store.sql.dialects import insert_into
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.stored_items import ItemRow
from proxy.store.sql.tables import conversations, items, turns

_ITEM_COLUMNS = {"is_input": Boolean, "agent": Text, "visible": Boolean, "message": Text}
"""The columns of ``ItemRow`` in its order."""


class SingleEnd:
    """Ends a turn, adds its items, and moves the head of its conversation.

    ``end`` is the update of a running turn.
    """

    def __init__(self, end: Update) -> None:
        of = turns.c
        returned = (of.key, of.conversation, of.caller, of.is_stored, of.inputs)
        ended = end.returning(*returned).cte("ended")
        arrays: list[BindParameter[Any]] = [
            bindparam(name, type_=ARRAY(kind)) for name, kind in _ITEM_COLUMNS.items()
        ]
        given = func.unnest(*arrays).table_valued(*_ITEM_COLUMNS, with_ordinality="number")
        item = given.render_derived(name="given").c
        position = cast(ended.c.inputs + item.number - 1, Integer)
        added = insert_into("postgresql", items).from_select(
            [column.name for column in items.columns],
            select(ended.c.key, position, *(item[name] for name in _ITEM_COLUMNS)).where(ended.c.is_stored),
        )
        head = conversations.c.head
        moved = (
            update(conversations)
            .where(bindparam("moves_head", type_=Boolean), conversations.c.key == ended.c.conversation)
            .where(or_(head.is_(None), head < ended.c.key))
            .values(head=ended.c.key)
        )
        self._statement = PreparedStatement(select(*ended.c).add_cte(added.cte("added"), moved.cte("moved")))

    def run(
        self,
        connection: Connection,
        end: Sequence[Any],
        said: Sequence[ItemRow],
        *,
        moves_head: bool,
    ) -> Sequence[Any] | None:
        """Return key, conversation, caller, is_stored and inputs of the turn; None if it is not running.

        ``end`` is the row of ``rows.end_row``.
        """
        columns = zip(*said, strict=True) if said else ((),) * len(_ITEM_COLUMNS)
        values: dict[str, Any] = dict(zip(rows.END_PARAMETERS, end, strict=True))
        values.update(zip(_ITEM_COLUMNS, map(list, columns), strict=True), moves_head=moves_head)
        found = self._statement.run_once(connection, values)
        return found[0] if found else None
