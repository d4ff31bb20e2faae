"""State of an HTTP connection that uvicorn creates for each one, in a form that takes little memory.

A waiting stream has two events and a queue of pipelined requests, each with a deque of 760 bytes that stays empty.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


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


class Pipeline:
    """The pipelined requests of a connection: the methods of a deque that are used, created with the first request."""

    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: deque[Any] | None = None

    def __len__(self) -> int:
        return len(self._requests) if self._requests is not None else 0

    def appendleft(self, request: Any) -> None:
        """Add the newest request."""
        if self._requests is None:
            self._requests = deque()
        self._requests.appendleft(request)

    def pop(self) -> Any:
        """Remove and return the oldest request."""
        return self._of_requests().pop()

    def popleft(self) -> Any:
        """Remove and return the newest request."""
        return self._of_requests().popleft()

    def clear(self) -> None:
        """Remove all requests."""
        self._requests = None

    def _of_requests(self) -> deque[Any]:
        if self._requests is None:
            raise IndexError("the pipeline is empty")
        return self._requests
