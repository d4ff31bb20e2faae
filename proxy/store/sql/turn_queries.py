"""Queries for conversations and turns, for one dialect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, bindparam, literal_column, select

from proxy.messages import Item
from proxy.store.sql import rows, stored_items, turn_statements
from proxy.store.sql.dialects import IS_RUNNING
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.tables import conversations, indexable, items, turns
from proxy.turns.records import (
    Branch,
    ChainTurn,
    Conversation,
    InputMatch,
    LongestMatch,
    TurnMatch,
    TurnRecord,
)
from proxy.turns.repository import MAX_COMPACTIONS

FIRST_LOOKUP, NEXT_LOOKUPS = 8, 512
"""Number of fingerprints per statement: in the first one, from the end of the list, and in each further one. A list
that continues a stored conversation nearly always has a known one among the first."""
_FINGERPRINT = TurnMatch.__struct_fields__.index("fingerprint")


class TurnQueries:
    """Statements for one dialect, built once so that each is compiled once."""

    def __init__(self, dialect: str) -> None:
        self._conversation = PreparedStatement(turn_statements.conversation())
        self._chain = PreparedStatement(turn_statements.chain(dialect))
        self._chain_items = PreparedStatement(turn_statements.items_of_turns(dialect))
        self._branch = PreparedStatement(turn_statements.branch(dialect))
        self._branch_items = PreparedStatement(turn_statements.items_of_branch(dialect))
        self._last_items = PreparedStatement(
            select(items.c.message, items.c.agent, items.c.visible)
            .where(items.c.turn == bindparam("turn"))
            .order_by(items.c.position.desc())
            .limit(bindparam("at_most"))
        )
        self._compactions = (
            select(items.c.message, items.c.agent, items.c.visible)
            .join(turns, turns.c.key == items.c.turn)
            .where(
                turns.c.conversation == bindparam("conversation"),
                items.c.visible.is_(False),
                items.c.message.contains(stored_items.COMPACTION_MEMBER, autoescape=True),
            )
            .order_by(items.c.turn.desc(), items.c.position.desc())
            .limit(MAX_COMPACTIONS)
        )
        self._places = {
            is_within: PreparedStatement(turn_statements.places(dialect, is_within=is_within))
            for is_within in (False, True)
        }
        self._last_answer = {
            is_within: PreparedStatement(turn_statements.last_answer(is_within=is_within))
            for is_within in (False, True)
        }
        self._pending = {
            is_within: PreparedStatement(turn_statements.pending(dialect, is_within=is_within))
            for is_within in (False, True)
        }
        record = select(*turns.c, conversations.c.id.label("conversation_id")).join(
            conversations, conversations.c.key == turns.c.conversation
        )
        self._by_id = record.where(
            turn_statements.equals("caller", turns), turn_statements.equals("id", turns)
        )
        self._by_key = record.where(
            turn_statements.equals("caller", turns), turn_statements.equals("idempotency_key", turns)
        )
        of_conversation = conversations.c.id == bindparam("id", type_=conversations.c.id.type)
        self._running = (
            record.where(IS_RUNNING, turn_statements.equals("caller", turns), of_conversation)
            .order_by(turns.c.slot)
            .limit(1)
        )
        self._by_input = {
            is_within: PreparedStatement(turn_statements.by_input(dialect, is_within=is_within))
            for is_within in (False, True)
        }
        self._by_body = turn_statements.by_body(record)
        self._items = select(items).where(items.c.turn == bindparam("turn")).order_by(items.c.position)
        self._nothing: Select[Any] = select(literal_column("1"))
        self._workers = PreparedStatement(select(turns.c.worker).where(IS_RUNNING).distinct())

    def conversation(self, connection: Connection, caller: str, conversation_id: str) -> Conversation | None:
        """Return the conversation, or None."""
        found = self._conversation.run_once(connection, {"caller": caller, "id": conversation_id})
        return Conversation(*found[0]) if found else None

    def chain(self, connection: Connection, turn: int) -> list[ChainTurn]:
        """Return the turn and its ancestors, the root first; a parent's key is always the smaller."""
        turn_rows = self._chain.run_once(connection, {"turn": turn})
        item_rows = self._chain_items.run_once(connection, {"turns": [row[0] for row in turn_rows]})
        said: dict[int, list[Item]] = {row[0]: [] for row in turn_rows}
        for row, item in zip(item_rows, stored_items.to_items(item_rows), strict=True):
            said[row[3]].append(item)
        return [rows.to_chain_turn(row[0], said[row[0]], *row[1:]) for row in turn_rows]

    def branch(self, connection: Connection, turn: int) -> Branch | None:
        """Return the branch that ends with the turn, or None."""
        found = self._branch.run_once(connection, {"turn": turn})
        if not found:
            return None
        *last, keys, is_stored, known, fingerprint = found[0]
        wanted = {"turns": keys, "last": turn, "known": known or 0}
        ((messages, agents, visible, own, unknown),) = self._branch_items.run_once(connection, wanted)
        said = stored_items.items_of_columns(messages, agents, visible) if messages else []
        return Branch(
            last=rows.to_chain_turn(last[0], said[len(said) - own :], *last[1:]),
            items=said,
            is_stored=bool(is_stored),
            fingerprint=fingerprint,
            unknown=unknown,
        )

    def last_items(self, connection: Connection, turn: int, limit: int) -> Sequence[Item]:
        """Return the last items of a turn, oldest first."""
        found = self._last_items.run_once(connection, {"turn": turn, "at_most": limit})
        return stored_items.to_items(found)[::-1]

    def compactions(self, connection: Connection, conversation: int) -> list[Item]:
        """Return the newest items with a compaction of the conversation, oldest first."""
        found = connection.execute(self._compactions, {"conversation": conversation}).all()
        # The state of a provider or an external agent can have a member of this name.
        stored = stored_items.to_items([tuple(row) for row in reversed(found)])
        return [item for item in stored if item.compaction is not None]

    def longest(
        self,
        connection: Connection,
        boundaries: Sequence[tuple[int, bytes]],
        digest: bytes | None,
        conversation: int | None,
        *,
        with_branch: bool,
    ) -> LongestMatch:
        """Return the turn with the last fingerprint that is known, and its branch; else the one with the answer."""
        statement, within = self._places[conversation is not None], _within(conversation)
        end, size = len(boundaries), FIRST_LOOKUP
        while end > 0:
            begin = end - size if end > size else 0
            part = boundaries[begin:end]
            wanted = [fingerprint.hex() for _, fingerprint in part]
            found = statement.run_once(connection, {"wanted": wanted} | within)
            if found:
                place, index = _last_place(found, part)
                is_wanted = with_branch and place.is_unique
                return LongestMatch(place, index, self.branch(connection, place.turn) if is_wanted else None)
            end, size = begin, NEXT_LOOKUPS
        if digest is None:
            return LongestMatch()
        return LongestMatch(latest=self.last_answer(connection, digest, conversation))

    def last_answer(
        self, connection: Connection, digest: bytes, conversation: int | None
    ) -> TurnMatch | None:
        """Return the newest turn with this last answer, or None."""
        statement = self._last_answer[conversation is not None]
        found = statement.run_once(connection, {"digest": digest} | _within(conversation))
        return TurnMatch(*found[0]) if found else None

    def pending(
        self, connection: Connection, caller: str, call_ids: Sequence[str], conversation: int | None
    ) -> list[tuple[str, int]]:
        """Return (call id, turn) for the ids that are known, the newest first."""
        wanted = {indexable(call_id): call_id for call_id in call_ids}
        found = self._pending[conversation is not None].run_once(
            connection, {"caller": caller, "wanted": list(wanted)} | _within(conversation)
        )
        pairs = [(wanted[call_id], turn) for call_id, waiting in found for turn in waiting or ()]
        return sorted(pairs, key=lambda pair: -pair[1])

    def by_id(self, connection: Connection, caller: str, turn_id: str) -> TurnRecord | None:
        """Return the turn, or None."""
        return self._record(connection, self._by_id, {"caller": caller, "id": turn_id})

    def by_idempotency_key(self, connection: Connection, caller: str, key: str) -> TurnRecord | None:
        """Return the turn that was begun with the key, or None."""
        return self._record(connection, self._by_key, {"caller": caller, "idempotency_key": key})

    def running(self, connection: Connection, caller: str, conversation_id: str) -> TurnRecord | None:
        """Return the running turn of the conversation, or None."""
        return self._record(connection, self._running, {"caller": caller, "id": conversation_id})

    def by_input(
        self, connection: Connection, fingerprints: Sequence[bytes], conversation: int | None
    ) -> list[InputMatch]:
        """Return the newest turns that have these input fingerprints, newest first."""
        wanted = [fingerprint.hex() for fingerprint in fingerprints]
        statement = self._by_input[conversation is not None]
        found = statement.run_once(connection, {"wanted": wanted} | _within(conversation))
        return [InputMatch(*row) for row in found]

    def by_body(self, connection: Connection, caller: str, digest: bytes, since: float) -> TurnRecord | None:
        """Return the newest turn with the body, or None; also None if it failed or has a later turn."""
        return self._record(
            connection, self._by_body, {"caller": caller, "body_digest": digest, "since": since}
        )

    def running_workers(self, connection: Connection) -> list[str]:
        """Return the workers that running turns name."""
        return [worker for (worker,) in self._workers.run_once(connection, {})]

    def ask(self, connection: Connection) -> None:
        """Execute a trivial query to check that the database answers."""
        connection.execute(self._nothing)

    def _record(self, connection: Connection, query: Select[Any], given: dict[str, Any]) -> TurnRecord | None:
        row = connection.execute(query, given).first()
        if row is None:
            return None
        return rows.to_record(row, connection.execute(self._items, {"turn": row.key}).all())


def _within(conversation: int | None) -> dict[str, int]:
    return {} if conversation is None else {"conversation": conversation}


def _last_place(found: Sequence[Sequence[Any]], part: Sequence[tuple[int, bytes]]) -> tuple[TurnMatch, int]:
    """Return the place of the last fingerprint that is among the rows, of which there are some, and its index."""
    known = {row[_FINGERPRINT]: row for row in found}
    index, fingerprint = next(one for one in reversed(part) if one[1] in known)
    return TurnMatch(*known[fingerprint]), index
