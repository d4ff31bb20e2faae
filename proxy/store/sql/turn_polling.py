"""What readers of events ask: which turns run, how conversations went on, and which turns come behind one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, bindparam, func, select

from proxy.store.sql.dialects import IS_RUNNING, listed
from proxy.store.sql.tables import conversations, turns
from proxy.turns.repository import Standing

_IS_TOLD = (turns.c.worker != "", turns.c.caller != "")


class Following:
    """Asks in the words of one dialect."""

    def __init__(self, dialect: str) -> None:
        of, wanted = turns.c, listed(dialect, "wanted", BigInteger)
        self._running = select(of.key, of.lease_until).where(of.key.in_(select(wanted.c.value)), IS_RUNNING)
        self._there = select(conversations.c.key).where(conversations.c.key.in_(select(wanted.c.value)))
        # Not one by one: a database may look for the largest key of one conversation among those of all.
        self._newest = (
            select(of.conversation, func.max(of.key))
            .where(of.conversation.in_(select(wanted.c.value)), *_IS_TOLD)
            .group_by(of.conversation)
        )
        self._behind: Select[Any] = (
            _of_conversation(of.key, of.id)
            .where(of.key > bindparam("after"), *_IS_TOLD)
            .order_by(of.key)
            .limit(bindparam("at_most"))
        )
        self._key = _of_conversation(of.key).where(of.id == bindparam("turn_id", type_=of.id.type))

    def standing(
        self, connection: Connection, turn_keys: Sequence[int], conversation_keys: Sequence[int]
    ) -> Standing:
        """Return how they stand."""
        running: dict[int, float] = {}
        newest: dict[int, int] = {}
        if turn_keys:
            running = {row[0]: row[1] for row in connection.execute(self._running, {"wanted": turn_keys})}
        if conversation_keys:
            wanted = {"wanted": conversation_keys}
            newest = dict.fromkeys(connection.scalars(self._there, wanted), 0)
            newest |= {row[0]: row[1] for row in connection.execute(self._newest, wanted)}
        return Standing(running, newest)

    def behind(
        self, connection: Connection, caller: str, conversation_id: str, after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (key, id) of what began behind a turn."""
        given = {"of_caller": caller, "of_conversation": conversation_id, "after": after, "at_most": limit}
        return [(row.key, row.id) for row in connection.execute(self._behind, given)]

    def key(self, connection: Connection, caller: str, conversation_id: str, turn_id: str) -> int | None:
        """Return the key of a turn, or None."""
        given = {"of_caller": caller, "of_conversation": conversation_id, "turn_id": turn_id}
        found: int | None = connection.scalar(self._key, given)
        return found


def _of_conversation(*columns: Any) -> Select[Any]:
    of = conversations.c
    key = (
        select(of.key)
        .where(of.caller == bindparam("of_caller", type_=of.caller.type))
        .where(of.id == bindparam("of_conversation", type_=of.id.type))
        .scalar_subquery()
    )
    return select(*columns).where(turns.c.conversation == key)
