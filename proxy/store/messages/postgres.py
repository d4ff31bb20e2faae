"""Messages between workers over ``LISTEN`` and ``NOTIFY`` of PostgreSQL, with one connection per worker.

A notification carries less than 8,000 bytes (PostgreSQL documentation, NOTIFY), so a larger message is sent in parts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from proxy.store.messages.channel import TO_ALL, MessageChannel, Outgoing, run_both

PART_CHARACTERS = 1900
"""A character has up to four bytes."""
PING_SECONDS = 10.0
"""Between two checks that the connection still works: a server that vanishes closes nothing."""
TIMEOUT = 5.0


class PostgresMessages(MessageChannel):
    """``WorkerMessages`` over PostgreSQL; ``url`` has the driver asyncpg."""

    def __init__(self, url: URL) -> None:
        super().__init__()
        self._url = url
        self._sender = secrets.token_hex(4)
        self._sent = 0
        self._parts: dict[str, list[str]] = {}
        """The parts of an incomplete message, by sender."""

    async def serve(self) -> None:
        """Listen and notify over a new connection."""
        # Imported here: it takes a tenth of the start.
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(
            self._url,
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={"timeout": TIMEOUT, "server_settings": {"application_name": "handoff-proxy"}},
        )
        async with asyncio.timeout(TIMEOUT):
            connection = await engine.connect()
        try:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            await self._use(driver)
        finally:
            await connection.invalidate()
            await engine.dispose()

    async def _use(self, driver: Any) -> None:
        lost = asyncio.Event()
        driver.add_termination_listener(lambda _: lost.set())
        self._parts.clear()
        for name in (_channel(self.worker), _channel(TO_ALL)):
            await driver.add_listener(name, self._notified)
        self.opened()
        await run_both(self._notify(driver), _fail_when(lost))

    async def _notify(self, driver: Any) -> None:
        while True:
            group: list[tuple[str, str]] = []
            try:
                async with asyncio.timeout(PING_SECONDS):
                    waiting = await self.next_group()
            except TimeoutError:
                waiting = []
            for outgoing in waiting:
                group += self._notifications(outgoing)
            # asyncpg prepares this once for the connection.
            statement = (
                "SELECT pg_notify(channel, part) FROM unnest($1::text[], $2::text[]) AS n (channel, part)"
            )
            await driver.execute(
                statement, [name for name, _ in group], [part for _, part in group], timeout=TIMEOUT
            )

    def _notifications(self, outgoing: Outgoing) -> Iterator[tuple[str, str]]:
        recipient, message = outgoing
        text = message.decode()
        self._sent += 1
        count = max(-(-len(text) // PART_CHARACTERS), 1)
        for index in range(count):
            # PostgreSQL drops a notification that repeats one of the same transaction: the number makes each unique.
            head = f"{self._sender}:{self._sent}:{index}:{count}:"
            yield _channel(recipient), head + text[index * PART_CHARACTERS : (index + 1) * PART_CHARACTERS]

    def _notified(self, _driver: Any, _pid: int, _channel: str, payload: str) -> None:
        sender, _, index, count, text = payload.split(":", 4)
        if sender == self._sender:
            return
        if count == "1":
            self.received(text.encode())
            return
        parts = self._parts.setdefault(sender, [])
        if index == "0":
            parts.clear()
        if len(parts) == int(index):
            parts.append(text)
        if len(parts) == int(count):
            del self._parts[sender]
            self.received("".join(parts).encode())


async def _fail_when(lost: asyncio.Event) -> None:
    await lost.wait()
    raise ConnectionError


def _channel(worker: str) -> str:
    """Return the channel of a worker: names of workers can be longer than those of channels (63 bytes)."""
    if worker == TO_ALL:
        return "handoff_workers"
    return f"handoff_worker_{blake2b(worker.encode(), digest_size=12).hexdigest()}"
