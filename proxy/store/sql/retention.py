"""Delete expired conversations in batches.

The search reads the table in pieces, without locks; the delete statement checks each conversation again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    BindParameter,
    Connection,
    bindparam,
    cast,
    delete,
    exists,
    func,
    or_,
    select,
)

from proxy.store.sql.dialects import IS_RUNNING, listed
from proxy.store.sql.tables import conversations, turns

LOOKED_AT = 1000
"""Number of conversations scanned in one transaction."""
TURNS_AT_ONCE = 200
"""Number of turns after which a delete transaction ends."""


class Old(Struct, frozen=True):
    """An expired conversation: its key and its number of turns."""

    key: int
    turns: int


class Retention:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        of = conversations.c
        before: BindParameter[float] = bindparam("before")
        piece = select(of.key, of.created_at).where(of.key > bindparam("after"))
        self._last = select(func.max(piece.order_by(of.key).limit(LOOKED_AT).subquery().c.key))
        size = select(func.count()).where(turns.c.conversation == of.key).scalar_subquery()
        is_used = exists().where(
            turns.c.conversation == of.key,
            or_(turns.c.created_at >= before, turns.c.finished_at >= before, IS_RUNNING),
        )
        self._old = (
            select(of.key, size)
            .where(of.key > bindparam("after"), of.key <= bindparam("last"))
            .where(of.created_at < before, ~is_used)
            .order_by(of.key)
        )
        keys = listed(dialect, "keys")
        # Concurrent workers skip rows that another worker locked.
        self._lock = (
            select(of.key)
            .where(of.key.in_(select(cast(keys.c.value, BigInteger))))
            .order_by(of.key)
            .with_for_update(skip_locked=True)
        )
        self._delete = delete(conversations).where(
            of.key.in_(select(cast(keys.c.value, BigInteger))), of.created_at < before, ~is_used
        )

    def find(self, connection: Connection, before: float, after: int) -> tuple[Sequence[Old], int | None]:
        """Return the old ones of the next piece behind key ``after``, and its last key; None when there is none."""
        last = connection.scalar(self._last, {"after": after})
        if last is None:
            return [], None
        found = connection.execute(self._old, {"before": before, "after": after, "last": last})
        return [Old(key, count) for key, count in found], last

    def delete(self, connection: Connection, before: float, keys: Sequence[int]) -> int:
        """Delete those that are still expired; return the count."""
        locked = list(connection.scalars(self._lock, {"keys": [str(key) for key in keys]}))
        # A separate statement, so that its snapshot includes turns that began before the rows were locked.
        return connection.execute(
            self._delete, {"keys": [str(key) for key in locked], "before": before}
        ).rowcount


def batches(old: Sequence[Old]) -> Iterator[list[int]]:
    """Divide into batches of one transaction each."""
    batch: list[int] = []
    count = 0
    for one in old:
        batch.append(one.key)
        count += one.turns + 1
        if count >= TURNS_AT_ONCE:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
