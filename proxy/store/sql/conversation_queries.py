"""Queries for stored conversations: the list, and the items of one from the root to the head."""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import CTE, ColumnElement, Connection, Row, func, select, tuple_

from proxy.conversations.repository import ConversationQuery, StoredItem
from proxy.messages import ForeignItem
from proxy.store.sql import rows, stored_items
from proxy.store.sql.conversation_list import Outlines, may_be_about
from proxy.store.sql.dialects import is_given, statements
from proxy.store.sql.stored_completions import has_metadata, storable_pairs, visible_to
from proxy.store.sql.tables import conversations, foreign_items, items, newest_turns, turns
from proxy.store.sql.turn_statements import of_each
from proxy.turns.records import Conversation, Page

_UPDATED_AT: ColumnElement[float] = func.coalesce(
    select(newest_turns.c.created_at)
    .where(
        # The newest key is in an index on the conversation; the newest time is not.
        newest_turns.c.key
        == select(func.max(turns.c.key))
        .where(turns.c.conversation == conversations.c.key)
        .correlate(conversations)
        .scalar_subquery()
    )
    .correlate(conversations)
    .scalar_subquery(),
    conversations.c.created_at,
)
"""When the last turn of a conversation began."""


class ConversationQueries:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        self._of_caller = select(conversations).where(is_given(conversations.c.caller))
        self._by_id = self._of_caller.where(is_given(conversations.c.id))
        path = _path(dialect, self._by_id.with_only_columns(conversations.c.head))
        turn, of, of_foreign = (path.c.key, path.c.id, path.c.pending), items.c, foreign_items.c
        item = select(*turn, of.position, of.agent, of.visible, of.message).select_from(items)
        found = of_each(dialect, path, of.turn == path.c.key, item)
        self._items = found.order_by(found.selected_columns.key, found.selected_columns.position)
        foreign = select(*turn, of_foreign.position, of_foreign.body).select_from(foreign_items)
        self._foreign = of_each(dialect, path, of_foreign.turn == path.c.key, foreign)
        self._turn_ids = select(path.c.id).order_by(path.c.key)
        self._outlines = statements(Outlines, dialect)
        self._has_metadata = has_metadata(dialect, conversations)

    def page(
        self, connection: Connection, caller: str, wanted: ConversationQuery
    ) -> Page[Conversation] | None:
        """Return a part of the list; None when no conversation has the id ``page.after``."""
        after, limit, order = wanted.page.after, wanted.page.limit, wanted.page.order
        query, of = self._of_caller, conversations.c
        places = [of.key] if wanted.sort == "created_at" else [_UPDATED_AT, of.key]
        if after is not None:
            start = self._by_id.with_only_columns(*places)
            row = connection.execute(start, {"of_caller": caller, "of_id": after}).first()
            if row is None:
                return None
            query = query.where(
                tuple_(*places) > tuple(row) if order == "asc" else tuple_(*places) < tuple(row)
            )
        query = query.where(visible_to(of.end_user, wanted.end_user))
        query = query.order_by(*(place if order == "asc" else place.desc() for place in places))
        given: dict[str, Any] = {"of_caller": caller}
        if wanted.metadata:
            query = query.where(self._has_metadata)
            given["wanted"] = storable_pairs(wanted.metadata)
        if wanted.search:
            candidates = connection.execute(query.where(may_be_about(wanted.search)), given).all()
            holding = (row for row in candidates if self._outlines.is_about(connection, row, wanted.search))
            found = list(islice(holding, limit + 1))
        else:
            found = list(connection.execute(query.limit(limit + 1), given))
        return Page([rows.to_conversation(row) for row in found[:limit]], has_more=len(found) > limit)

    def items(self, connection: Connection, caller: str, conversation_id: str) -> list[StoredItem] | None:
        """Return the items on the way to the head, or None."""
        given = {"of_caller": caller, "of_id": conversation_id}
        if connection.execute(self._by_id, given).first() is None:
            return None
        found = [
            ((row.key, row.position), _stored_item(row)) for row in connection.execute(self._items, given)
        ]
        foreign = [
            ((row.key, row.position), _foreign(row)) for row in connection.execute(self._foreign, given)
        ]
        if foreign:
            found = sorted([*found, *foreign], key=lambda one: one[0])
        return [item for _, item in found]

    def turn_ids(self, connection: Connection, caller: str, conversation_id: str) -> list[str]:
        """Return the ids of the turns on the way to the head."""
        return list(connection.scalars(self._turn_ids, {"of_caller": caller, "of_id": conversation_id}))


def _path(dialect: str, head: Any) -> CTE:
    """The turns from the head to the root."""
    columns = [turns.c.key, turns.c.parent, turns.c.id, turns.c.pending]
    path = select(*columns).where(turns.c.key == head.scalar_subquery()).cte("path", recursive=True)
    return path.union_all(of_each(dialect, path, turns.c.key == path.c.parent, select(*columns)))


def _stored_item(row: Row[Any]) -> StoredItem:
    item = stored_items.to_item(row.message, row.agent, row.visible)
    return StoredItem(row.id, row.position, item, tuple(rows.to_names(row.pending)))


def _foreign(row: Row[Any]) -> StoredItem:
    return StoredItem(
        row.id, row.position, ForeignItem(msgspec.json.decode(row.body)), tuple(rows.to_names(row.pending))
    )
