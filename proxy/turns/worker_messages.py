"""Messages between the workers of one installation.

Every implementation passes ``tests/contracts/test_worker_messages.py``. Guarantees:

- Messages of one worker to another arrive in the order in which they were sent, each at most once.
- A message to all workers reaches those that have started, the sender excepted.
- A message can be lost: when the database or Redis does not answer, or the recipient has ended. A worker that needs a
  reply sends again, and reads the state of turns from the store in any case.
- Sending neither blocks nor fails. Without messages, no implementation writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Maximum size of a message. Larger ones are dropped, which is logged."""

Receive = Callable[[bytes], None]


class WorkerMessages(Protocol):
    """Sends and receives messages; one instance per worker. Messages are UTF-8 text without NUL."""

    async def start(self, worker: str, receive: Receive, *, is_expecting: Callable[[], bool]) -> None:
        """Begin to receive the messages for ``worker``.

        Returns when messages are received, or after a short time if the database or Redis does not answer; then
        receiving begins later. ``receive`` must not raise. An implementation that polls does so only while
        ``is_expecting`` returns true.
        """
        ...

    def send(self, worker: str, message: bytes) -> None:
        """Send a message to a worker."""
        ...

    def broadcast(self, message: bytes) -> None:
        """Send a message to all other workers."""
        ...

    async def close(self) -> None:
        """Send what is waiting, for a short time, and stop."""
        ...


class NoWorkerMessages:
    """Sends nothing: for a worker that is alone."""

    async def start(self, worker: str, receive: Receive, *, is_expecting: Callable[[], bool]) -> None:
        """Receive nothing."""

    def send(self, worker: str, message: bytes) -> None:
        """Drop the message."""

    def broadcast(self, message: bytes) -> None:
        """Drop the message."""

    async def close(self) -> None:
        """Do nothing."""


class LocalMessages:
    """Delivers messages of a worker to itself directly, and all others over another channel."""

    def __init__(self, others: WorkerMessages, worker: str, receive: Receive) -> None:
        self._others = others
        self._worker = worker
        self._receive = receive

    async def start(self, worker: str, receive: Receive, *, is_expecting: Callable[[], bool]) -> None:
        """Begin to receive the messages of other workers."""
        await self._others.start(worker, receive, is_expecting=is_expecting)

    def send(self, worker: str, message: bytes) -> None:
        """Send a message to a worker."""
        if worker == self._worker:
            asyncio.get_running_loop().call_soon(self._receive, message)
        else:
            self._others.send(worker, message)

    def broadcast(self, message: bytes) -> None:
        """Send a message to all other workers."""
        self._others.broadcast(message)

    async def close(self) -> None:
        """Stop."""
        await self._others.close()
