"""Inserts the items of turns; a long list of a client takes one statement with all its messages as one parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, bindparam, null, select, true

from proxy.store.sql.dialects import elements, insert_into
from proxy.store.sql.prepared_statement import Insertion, PreparedStatement
from proxy.store.sql.stored_items import MessageList, StoredItems
from proxy.store.sql.tables import items

Added = tuple[int, int, StoredItems]
"""The key of a turn, the position of its first new item, and the items."""


class ItemInsertion:
    """Statements for one dialect. With ``skips_existing``, items that are there already are left as they are."""

    def __init__(self, dialect: str, *, skips_existing: bool = False) -> None:
        insert = insert_into(dialect, items)
        position, message, messages = elements(dialect, "messages")
        of_list = insert.from_select(
            [column.name for column in items.columns],
            # SQLite needs the condition to distinguish ON CONFLICT from a join (sqlite.org/lang_upsert.html, "Parsing
            # Ambiguity").
            select(
                bindparam("of_turn", type_=BigInteger),
                bindparam("first", type_=Integer) + position,
                true(),
                null(),
                true(),
                message,
            )
            .select_from(messages)
            .where(true()),
        )
        if skips_existing:
            insert, of_list = insert.on_conflict_do_nothing(), of_list.on_conflict_do_nothing()
        self._insert = Insertion(insert, items)
        self._insert_list = PreparedStatement(of_list)

    def run(self, connection: Connection, added: Iterable[Added]) -> None:
        """Insert the items of several turns, if there are any."""
        single: list[tuple[Any, ...]] = []
        for turn, first, stored in added:
            if type(stored) is MessageList:
                self.add(connection, turn, first, stored)
                continue
            for place, row in enumerate(stored, first):
                single.append((turn, place, *row))
        self._insert.run(connection, single)

    def add(self, connection: Connection, turn: int, first: int, stored: StoredItems) -> None:
        """Insert the items of one turn."""
        if type(stored) is MessageList:
            values = {"of_turn": turn, "first": first, "messages": stored.messages}
            self._insert_list.run_once(connection, values)
        else:
            self._insert.run(connection, [(turn, place, *row) for place, row in enumerate(stored, first)])
