"""Messages between workers through a table that is polled: for SQLite, and for PostgreSQL behind a pooler.

A worker polls only while it expects messages. A worker that is alone as far as it knows polls rarely until another one
uses the database: most SQLite databases have one worker, and each poll is a query in another thread. There is no query
while the log of the database is unchanged. Rows are deleted after a minute.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select

from proxy.loop_ticks import next_tick
from proxy.store.engine.database import Database
from proxy.store.engine.group_commit import OtherWrite
from proxy.store.engine.writer import Writer
from proxy.store.messages.channel import TO_ALL, MessageChannel, Outgoing, run_both
from proxy.store.sql.dialects import statements
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.tables import worker_messages

POLL_SECONDS = 0.05
FAMILIAR_SECONDS = 60.0
"""Time without messages to or from another worker, after which a worker that is alone polls rarely (``next_tick``)."""
RETAIN_SECONDS = 60.0
_PER_READ = 500


class MessageQueries:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        of = worker_messages.c
        self._newest = select(func.max(of.key))
        self._add = insert(worker_messages)
        self._after = PreparedStatement(
            select(of.key, of.sender, of.message)
            .where(
                or_(of.recipient == bindparam("worker"), of.recipient == TO_ALL), of.key > bindparam("after")
            )
            .order_by(of.key)
            .limit(_PER_READ)
        )
        self._delete_old = delete(worker_messages).where(of.sent_at < bindparam("before"))

    def newest(self, connection: Connection) -> int:
        """Return the key of the newest message; 0 without messages."""
        found: int | None = connection.scalar(self._newest)
        return found or 0

    def add(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Add messages."""
        connection.execute(self._add, list(rows))

    def after(self, connection: Connection, worker: str, key: int) -> list[tuple[int, str, bytes]]:
        """Return key, sender and text of the messages for a worker after a key."""
        rows = self._after.run_once(connection, {"worker": worker, "after": key})
        return [(row[0], row[1], row[2]) for row in rows]

    def delete_old(self, connection: Connection, before: float) -> None:
        """Delete messages that were sent before a time."""
        connection.execute(self._delete_old, {"before": before})


class TableMessages(MessageChannel):
    """``WorkerMessages`` in a table of the database."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        *,
        interval: float = POLL_SECONDS,
        is_alone: bool = True,
    ) -> None:
        """``interval`` is the time between two polls in seconds; ``is_alone``: no other workers are known."""
        super().__init__()
        self._database = database
        self._writer = writer
        self._queries = statements(MessageQueries, database.dialect)
        self._interval = interval
        self._is_alone = is_alone
        self._sender = secrets.token_hex(4)
        self._next_deletion = 0.0
        self._familiar_until = 0.0
        """Until when another worker is assumed to answer soon; by the clock of the event loop."""
        self._loop: asyncio.AbstractEventLoop
        self._check: Callable[[], None] | None = None
        """What the timer calls."""
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self) -> None:
        """Poll, and write what is queued, until the database does not answer."""
        self._loop = asyncio.get_running_loop()
        after = await self._database.read(self._queries.newest)
        self.opened()
        await run_both(self._poll(after), self._write())

    async def _poll(self, after: int) -> None:
        seen: object = None
        while True:
            state = await self._change(seen)
            before, after = after, await self._read(after)
            # There may be more messages than one query returns.
            seen = state if after == before else None

    async def _change(self, seen: object) -> object:
        """Wait until messages are expected and the database may have another state; return its state.

        A timer checks it, and not this task: nearly always there is nothing, and a task that wakes up costs more.
        """
        changed: asyncio.Future[object] = self._loop.create_future()

        def check() -> None:
            if changed.done():
                # This task was cancelled, and has not run yet.
                return
            # Before the query: a commit in between is found by the next one.
            if self.is_expecting() and ((state := self._database.state()) is None or state != seen):
                changed.set_result(state)
            else:
                self._check_later(check)

        self._check_later(check)
        try:
            return await changed
        finally:
            self._cancel_check()

    async def _read(self, after: int) -> int:
        """Pass on the messages after a key; return the key of the last one."""
        found = await self._database.read(lambda on: self._queries.after(on, self.worker, after))
        for _, sender, message in found:
            if sender != self._sender:
                self._expect_more()
                self.received(message)
        return found[-1][0] if found else after

    async def _write(self) -> None:
        while True:
            await self._add(await self.next_group())

    async def _add(self, group: Sequence[Outgoing]) -> None:
        self._expect_more()
        now = time.time()
        rows = [self._row(outgoing, now) for outgoing in group]
        await self._writer.write(OtherWrite(lambda on: self._queries.add(on, rows), is_durable=False))
        if now >= self._next_deletion:
            self._next_deletion = now + RETAIN_SECONDS / 4
            old = now - RETAIN_SECONDS
            await self._writer.write(
                OtherWrite(lambda on: self._queries.delete_old(on, old), is_durable=False)
            )

    def _check_later(self, check: Callable[[], None]) -> None:
        """Call a function once: later while this worker is alone, but not after it has sent a message."""
        now = self._loop.time()
        is_rare = self._is_alone and now >= self._familiar_until
        self._timer = self._loop.call_at(next_tick(now) if is_rare else now + self._interval, check)
        self._check = check

    def _cancel_check(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._check = None

    def _expect_more(self) -> None:
        was_familiar = self._loop.time() < self._familiar_until
        self._familiar_until = self._loop.time() + FAMILIAR_SECONDS
        if not was_familiar and (check := self._check) is not None:
            self._cancel_check()
            self._check_later(check)

    def _row(self, outgoing: Outgoing, now: float) -> dict[str, Any]:
        recipient, message = outgoing
        return {"recipient": recipient, "sender": self._sender, "message": message, "sent_at": now}
