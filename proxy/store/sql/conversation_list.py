"""Queries for conversation summaries (first text, active agent), text search, and the tree of turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Connection, Select, Text, bindparam, cast, func, or_, select

from proxy.conversations.repository import ConversationSummary, excerpt_of, is_about
from proxy.messages import Item, UserMessage, text_of
from proxy.store.sql import rows, stored_items
from proxy.store.sql.dialects import for_each, is_given, listed
from proxy.store.sql.tables import conversations, items, turns
from proxy.turns.records import TurnRecord


class Outlines:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        of, wanted = turns.c, listed(dialect, "wanted", BigInteger).c.value
        turns_of = (
            select(of.conversation, func.count(), func.max(func.coalesce(of.finished_at, of.created_at)))
            .where(of.worker != "")
            .group_by(of.conversation)
        )
        self._of_turns = for_each(dialect, wanted, of.conversation, turns_of)
        head = select(of.conversation, of.agent, of.team).join(conversations, conversations.c.head == of.key)
        self._of_heads = for_each(dialect, wanted, conversations.c.key, head)
        first = select(func.min(of.key).label("key")).where(of.inputs > 0).group_by(of.conversation)
        firsts = for_each(dialect, wanted, of.conversation, first).subquery("firsts")
        words = (
            select(of.conversation, items.c.message, items.c.agent, items.c.visible)
            .add_columns(items.c.turn, items.c.position)
            .join(items, items.c.turn == of.key)
            .where(items.c.is_input)
        )
        first_words = for_each(dialect, firsts.c.key, of.key, words)
        self._first_words = first_words.order_by(*first_words.selected_columns[4:])
        self._visible = (
            select(items.c.message, items.c.agent, items.c.visible)
            .join(turns, items.c.turn == of.key)
            .where(of.conversation == bindparam("of_key"), items.c.visible)
            .order_by(items.c.turn, items.c.position)
        )
        key = (
            select(conversations.c.key)
            .where(is_given(conversations.c.caller))
            .where(is_given(conversations.c.id))
            .scalar_subquery()
        )
        self._tree: Select[Any] = (
            select(*of, conversations.c.id.label("conversation_id"))
            .join(conversations, conversations.c.key == of.conversation)
            .where(of.conversation == key)
            .order_by(of.key)
        )
        self._said = (
            select(items)
            .join(turns, of.key == items.c.turn)
            .where(of.conversation == key)
            .order_by(items.c.turn, items.c.position)
        )

    def outlines(self, connection: Connection, keys: Sequence[int]) -> Mapping[int, ConversationSummary]:
        """Return the summaries of the conversations with these keys; a conversation without turns has none."""
        given = {"wanted": list(keys)}
        words: dict[int, str] = {}
        for key, message, agent, visible, *_ in connection.execute(self._first_words, given):
            said = stored_items.to_item(message, agent, visible).message
            if key not in words and isinstance(said, UserMessage):
                words[key] = text_of(said)
        heads = {row[0]: (row[1], row[2]) for row in connection.execute(self._of_heads, given)}
        found = {}
        for key, count, at in connection.execute(self._of_turns, given):
            agent, team = heads.get(key, ("", ""))
            found[key] = ConversationSummary.of(
                words.get(key, ""), team=team, agent=agent, turns=count, updated_at=at
            )
        return found

    def tree(self, connection: Connection, caller: str, conversation_id: str) -> list[TurnRecord]:
        """Return all turns of a conversation with their items, the oldest first."""
        given = {"of_caller": caller, "of_id": conversation_id}
        said: dict[int, list[Any]] = {}
        for item in connection.execute(self._said, given):
            said.setdefault(item.turn, []).append(item)
        return [rows.to_record(row, said.get(row.key, ())) for row in connection.execute(self._tree, given)]

    def is_about(self, connection: Connection, row: Any, words: str) -> bool:
        """Whether a conversation that matched ``may_be_about`` contains the text."""
        return is_about(words, row.metadata, self._said_in(connection, row.key))

    def excerpts(self, connection: Connection, keys: Sequence[int], words: str) -> Mapping[int, str]:
        """Return for each conversation where its messages contain the words."""
        return {key: excerpt_of(words, self._said_in(connection, key)) for key in keys}

    def _said_in(self, connection: Connection, key: int) -> Iterator[Item]:
        return (stored_items.to_item(*one) for one in connection.execute(self._visible, {"of_key": key}))


def may_be_about(words: str) -> ColumnElement[bool]:
    """Return a condition that every conversation with the text meets, and few others.

    On SQLite, case counts beyond ASCII.
    """
    # Messages are stored as JSON, which escapes quotes and line breaks.
    written = msgspec.json.encode(words).decode()[1:-1]
    said = (
        select(items.c.turn)
        .join(turns, turns.c.key == items.c.turn)
        .where(turns.c.conversation == conversations.c.key, items.c.visible)
        .where(items.c.message.icontains(written, autoescape=True))
        .correlate(conversations)
    )
    return or_(said.exists(), cast(conversations.c.metadata, Text).icontains(written, autoescape=True))
