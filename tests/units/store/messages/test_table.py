"""The timer that looks for messages in a table; what all channels have in common is in ``tests/contracts``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import Connection

from proxy.store.engine.database import Database
from proxy.store.engine.writer import Writer
from proxy.store.messages.table import TableMessages

INTERVAL = 0.01


class ChangingDatabase:
    """A database without messages that another process writes to all the time."""

    dialect = "sqlite"

    def __init__(self) -> None:
        self.is_polled = asyncio.Event()

    async def read(self, query: Callable[[Connection], Any]) -> Any:
        return 0 if query.__name__ == "newest" else []

    def state(self) -> object:
        self.is_polled.set()
        return object()


async def test_a_timer_that_is_due_when_the_poll_is_cancelled_does_nothing() -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    database = ChangingDatabase()
    messages = TableMessages(
        cast("Database", database), cast("Writer", None), interval=INTERVAL, is_alone=False
    )
    messages.is_expecting = lambda: True
    serving = asyncio.create_task(messages.serve())
    async with asyncio.timeout(5):
        await database.is_polled.wait()
    # The next wait begins.
    await asyncio.sleep(0)

    serving.cancel()
    time.sleep(2 * INTERVAL)  # noqa: ASYNC251 - the timer is due in the iteration in which the poll is cancelled
    await asyncio.wait([serving])

    assert failures == []
