"""Polling queries of event readers: running turns, newest turns, and later turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, bindparam, func, select

from proxy.store.sql.dialects import IS_RUNNING, for_each, is_given, listed
from proxy.store.sql.tables import conversations, turns
from proxy.turns.records import PollResult

_HAS_EVENTS = (turns.c.worker != "", turns.c.caller != "")


class TurnPolling:
    """Polling queries of event readers, for one dialect: running turns, newest turns, and later turns."""

    def __init__(self, dialect: str) -> None:
        of, wanted = turns.c, listed(dialect, "wanted", BigInteger)
        self._running = for_each(
            dialect, wanted.c.value, of.key, select(of.key, of.lease_until, of.worker).where(IS_RUNNING)
        )
        there = conversations.c.key
        self._there = for_each(dialect, wanted.c.value, there, select(there))
        # Grouped, although PostgreSQL runs it for each conversation: without GROUP BY, a plan may read the turns of all
        # conversations from the largest key on.
        newest = select(of.conversation, func.max(of.key)).where(*_HAS_EVENTS).group_by(of.conversation)
        self._newest = for_each(dialect, wanted.c.value, of.conversation, newest)
        self._behind: Select[Any] = (
            _of_conversation(of.key, of.id)
            .where(of.key > bindparam("after"), *_HAS_EVENTS)
            .order_by(of.key)
            .limit(bindparam("at_most"))
        )
        self._key = _of_conversation(of.key).where(of.id == bindparam("turn_id", type_=of.id.type))

    def poll(
        self, connection: Connection, turn_keys: Sequence[int], conversation_keys: Sequence[int]
    ) -> PollResult:
        """Return which of the turns run, and the newest turn of each conversation that exists."""
        running: dict[int, float] = {}
        newest: dict[int, int] = {}
        workers: dict[int, str] = {}
        if turn_keys:
            found = connection.execute(self._running, {"wanted": turn_keys}).all()
            running = {row[0]: row[1] for row in found}
            workers = {row[0]: row[2] for row in found}
        if conversation_keys:
            wanted = {"wanted": conversation_keys}
            newest = dict.fromkeys(connection.scalars(self._there, wanted), 0)
            newest |= {row[0]: row[1] for row in connection.execute(self._newest, wanted)}
        return PollResult(running, newest, workers)

    def behind(
        self, connection: Connection, caller: str, conversation_id: str, after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (key, id) of the turns of a conversation that began after the turn ``after``."""
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
        .where(is_given(of.caller))
        .where(of.id == bindparam("of_conversation", type_=of.id.type))
        .scalar_subquery()
    )
    return select(*columns).where(turns.c.conversation == key)
