"""Turn leases: which worker runs a turn, when its lease expires, and whether cancellation was requested."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, or_, select, true, update

from proxy.store.sql.dialects import IS_RUNNING, is_given, listed
from proxy.store.sql.interruption import Interruption
from proxy.store.sql.tables import turns


class LeaseStatements:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        worker = is_given(turns.c.worker)
        self._renew = update(turns).where(worker, IS_RUNNING).values(lease_until=bindparam("lease_until"))
        self._to_stop = select(turns.c.id).where(worker, IS_RUNNING, turns.c.cancel_requested)
        self._request_cancel = (
            update(turns)
            .where(is_given(turns.c.caller))
            .where(is_given(turns.c.id), IS_RUNNING)
            .values(cancel_requested=true())
        )
        dead = listed(dialect, "dead")
        self._interruption = Interruption(
            dialect, or_(turns.c.lease_until < bindparam("now"), turns.c.worker.in_(select(dead.c.value)))
        )

    def renew(self, connection: Connection, worker: str, lease_until: float) -> list[str]:
        """Extend the worker's leases; return the ids of its turns for which cancellation was requested."""
        connection.execute(self._renew, {"of_worker": worker, "lease_until": lease_until})
        return list(connection.scalars(self._to_stop, {"of_worker": worker}))

    def request_cancel(self, connection: Connection, caller: str, turn_id: str) -> bool:
        """Request cancellation of a running turn; return whether the turn is running."""
        return connection.execute(self._request_cancel, {"of_caller": caller, "of_id": turn_id}).rowcount > 0

    def interrupt(self, connection: Connection, now: float, dead_workers: Sequence[str]) -> int:
        """Mark turns as interrupted whose lease expired or whose worker is dead; return the count."""
        return self._interruption.run(connection, {"now": now, "dead": list(dead_workers)}, now)
