"""Changes of stored conversations: create, append and delete.

Each first locks the row of the conversation, as beginning a turn does, and does nothing while a turn runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, select, update

from proxy.conversations.repository import Rest
from proxy.messages import ForeignItem, Item
from proxy.store.sql import rows, stored_items
from proxy.store.sql.dialects import IS_RUNNING, insert_into, is_given
from proxy.store.sql.interruption import Interruption
from proxy.store.sql.prepared_statement import Insertion
from proxy.store.sql.stored_completions import FORGOTTEN, storable_pairs
from proxy.store.sql.tables import (
    approvals,
    conversations,
    encode_json,
    foreign_items,
    indexable,
    items,
    pending_calls,
    turns,
)
from proxy.turns.records import Conversation

Done = Literal["done", "missing", "busy", "moved"]


class Addition(msgspec.Struct, frozen=True):
    """Items that become a turn behind ``head``, which is what the writer of them has seen."""

    turn_id: str
    head: int | None
    agent: str
    items: Sequence[Item | ForeignItem]
    fingerprint: bytes | None
    pending: tuple[str, ...]


class ConversationChanges:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        self._insert_items = Insertion(insert_into(dialect, items), items)
        self._make = insert_into(dialect, conversations).on_conflict_do_nothing()
        self._by_id = select(conversations).where(
            is_given(conversations.c.caller), is_given(conversations.c.id)
        )
        self._locked = self._by_id.with_for_update()
        key = self._by_id.with_only_columns(conversations.c.key)
        self._interruption = Interruption(
            dialect,
            and_(turns.c.conversation == key.scalar_subquery(), turns.c.lease_until < bindparam("now")),
        )
        self._running = select(turns.c.key).where(turns.c.conversation == bindparam("of_key"), IS_RUNNING)

    def create(
        self,
        connection: Connection,
        caller: str,
        end_user: str,
        conversation_id: str,
        metadata: Mapping[str, str],
        first: Addition,
        now: float,
    ) -> Conversation:
        """Create the conversation with its first items if it does not exist; return the stored conversation."""
        who = {"caller": caller, "id": conversation_id, "end_user": end_user, "team": ""}
        row = {**who, "metadata": storable_pairs(metadata), "created_at": now}
        connection.execute(self._make, [row])
        if first.items:
            self.add(connection, caller, conversation_id, first, now)
        made = connection.execute(self._by_id, {"of_caller": caller, "of_id": conversation_id}).one()
        return rows.to_conversation(made)

    def update(
        self, connection: Connection, caller: str, conversation_id: str, metadata: Mapping[str, str]
    ) -> Conversation | None:
        """Replace the metadata; return the conversation, or None."""
        row = connection.execute(self._by_id, {"of_caller": caller, "of_id": conversation_id}).first()
        if row is None:
            return None
        pairs = storable_pairs(metadata)
        connection.execute(update(conversations).where(conversations.c.key == row.key).values(metadata=pairs))
        return rows.to_conversation(
            connection.execute(self._by_id, {"of_caller": caller, "of_id": conversation_id}).one()
        )

    def delete(self, connection: Connection, caller: str, conversation_id: str, now: float) -> Done:
        """Delete the conversation with everything in it."""
        row = self._lock(connection, caller, conversation_id, now)
        if row is None or self._is_busy(connection, row.key):
            return "missing" if row is None else "busy"
        connection.execute(delete(conversations).where(conversations.c.key == row.key))
        return "done"

    def add(
        self, connection: Connection, caller: str, conversation_id: str, new: Addition, now: float
    ) -> Done:
        """Append items. Doing it again changes nothing."""
        if connection.scalar(select(turns.c.key).where(turns.c.id == new.turn_id)) is not None:
            return "done"
        conversation = self._lock(connection, caller, conversation_id, now)
        if conversation is None:
            return "missing"
        if self._is_busy(connection, conversation.key):
            return "busy"
        if conversation.head != new.head:
            return "moved"
        turn = connection.scalar(insert(turns).returning(turns.c.key), _turn_row(conversation, new, now))
        self._add_items(connection, conversation, turn, new)
        connection.execute(
            update(conversations).where(conversations.c.key == conversation.key).values(head=turn)
        )
        return "done"

    def delete_item(
        self, connection: Connection, caller: str, turn_id: str, position: int, rest: Rest | None, now: float
    ) -> Done:
        """Delete an item, or leave the rest of it."""
        turn = connection.execute(
            select(turns.c.key, turns.c.parent, conversations.c.id)
            .join(conversations, conversations.c.key == turns.c.conversation)
            .where(turns.c.id == turn_id, conversations.c.caller == caller)
        ).first()
        conversation = None if turn is None else self._lock(connection, caller, turn.id, now)
        if turn is None or conversation is None:
            return "missing"
        if self._is_busy(connection, conversation.key):
            return "busy"
        here = (items.c.turn == turn.key, items.c.position == position)
        row = connection.execute(select(items).where(*here)).first()
        if row is None:
            gone = delete(foreign_items).where(
                foreign_items.c.turn == turn.key, foreign_items.c.position == position
            )
            return "done" if connection.execute(gone).rowcount else "missing"
        item = stored_items.to_item(row.message, row.agent, row.visible)
        left = rest(item.message) if rest is not None else None
        if left is None:
            connection.execute(delete(items).where(*here))
        else:
            message = stored_items.item_rows([Item(left)], is_input=row.is_input)[0][-1]
            connection.execute(update(items).where(*here).values(message=message))
        # Summaries of the conversation contain what is deleted.
        self._delete_compactions(connection, conversation.key, turn.key)
        if not row.is_input:
            # The journal also contains the messages.
            connection.execute(
                update(turns).where(turns.c.key == turn.key, ~turns.c.is_listed).values(FORGOTTEN)
            )
            # So do approvals: of those that it requested, the calls, and of those that it ran, the results.
            connection.execute(delete(approvals).where(approvals.c.turn == turn.key))
            ran = (approvals.c.turn == turn.parent, approvals.c.run_in == turn_id)
            connection.execute(update(approvals).where(*ran).values(result=None))
        return "done"

    def _delete_compactions(self, connection: Connection, conversation: int, first_turn: int) -> None:
        """Delete the compactions of a turn and of all later ones of the conversation."""
        candidates = connection.execute(
            select(items.c.turn, items.c.position, items.c.message, items.c.agent, items.c.visible).where(
                items.c.turn.in_(select(turns.c.key).where(turns.c.conversation == conversation)),
                items.c.turn >= first_turn,
                items.c.visible.is_(False),
                items.c.message.contains(stored_items.COMPACTION_MEMBER, autoescape=True),
            )
        )
        for turn, position, *columns in candidates.all():
            # The state of a provider or an external agent can have a member of this name.
            if stored_items.to_item(*columns).compaction is not None:
                connection.execute(delete(items).where(items.c.turn == turn, items.c.position == position))

    def _lock(self, connection: Connection, caller: str, conversation_id: str, now: float) -> Row[Any] | None:
        """Lock and return the conversation; interrupt its running turn if the lease expired."""
        given = {"of_caller": caller, "of_id": conversation_id}
        self._interruption.run(connection, given | {"now": now}, now)
        return connection.execute(self._locked, given).first()

    def _is_busy(self, connection: Connection, key: int) -> bool:
        return connection.execute(self._running, {"of_key": key}).first() is not None

    def _add_items(
        self, connection: Connection, conversation: Row[Any], turn: int | None, new: Addition
    ) -> None:
        said = [
            (turn, position, *stored_items.item_rows([item], is_input=True)[0])
            for position, item in enumerate(new.items)
            if isinstance(item, Item)
        ]
        foreign = [
            {"turn": turn, "position": position, "body": encode_json(item.body)}
            for position, item in enumerate(new.items)
            if isinstance(item, ForeignItem)
        ]
        pending = [
            {
                "caller": conversation.caller,
                "call_id": call_id,
                "turn": turn,
                "conversation": conversation.key,
            }
            for call_id in dict.fromkeys(map(indexable, new.pending))
        ]
        self._insert_items.run(connection, said)
        for table, added in ((foreign_items, foreign), (pending_calls, pending)):
            if added:
                connection.execute(insert(table), added)


def _turn_row(conversation: Row[Any], new: Addition, now: float) -> dict[str, Any]:
    return {
        "id": new.turn_id,
        "conversation": conversation.key,
        "parent": conversation.head,
        "caller": conversation.caller,
        "end_user": conversation.end_user,
        "team": conversation.team,
        "model": "",
        "status": "completed",
        "is_history": True,
        "agent": new.agent,
        "is_stored": True,
        "is_listed": False,
        "metadata": {},
        "options": b"",
        "worker": "",
        "lease_until": 0.0,
        "created_at": now,
        "finished_at": now,
        "fingerprint": new.fingerprint,
        "inputs": len(new.items),
        "pending": msgspec.json.encode(new.pending).decode() if new.pending else None,
    }
