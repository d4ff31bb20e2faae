"""An event that takes little memory: a waiting stream has two, and each of asyncio's has a deque of 760 bytes."""

from __future__ import annotations

import asyncio


class ConnectionEvent:
    """``asyncio.Event`` without a queue of waiters while no task waits."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self, *, is_set: bool = False) -> None:
        self._is_set = is_set
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        """Whether ``wait`` returns at once."""
        return self._is_set

    def set(self) -> None:
        """Wake all waiters."""
        self._is_set = True
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Let later waiters wait."""
        self._is_set = False

    async def wait(self) -> bool:
        """Wait until the event is set."""
        if self._is_set:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters = self._waiters or []
        waiters.append(waiter)
        try:
            await waiter
        finally:
            waiters.remove(waiter)
        return True
