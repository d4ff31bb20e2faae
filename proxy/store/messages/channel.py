"""The part that all implementations of ``WorkerMessages`` share: the queue of messages to send, and reconnection.

A subclass opens a connection, receives with it, and sends the queue. When the connection fails, it is opened again
after a pause; what was in the queue is lost.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from proxy.turns.worker_messages import MAX_MESSAGE_BYTES, Receive

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
START_WITHIN = 2.0
CLOSE_WITHIN = 1.0
MAX_WAITING = 10_000
"""Messages in the queue; the oldest are dropped."""
TO_ALL = ""
"""The recipient of a message to all workers."""

Outgoing = tuple[str, bytes]
"""Recipient and message."""


class MessageChannel(ABC):
    """Implements ``WorkerMessages`` over a connection that a subclass opens."""

    def __init__(self) -> None:
        self.worker = ""
        self.is_expecting: Callable[[], bool] = lambda: False
        self._receive: Receive = lambda message: None
        self._waiting: deque[Outgoing] = deque(maxlen=MAX_WAITING)
        self._has_waiting = asyncio.Event()
        self._is_sent = asyncio.Event()
        self._is_sent.set()
        self._is_open = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, worker: str, receive: Receive, *, is_expecting: Callable[[], bool]) -> None:
        """Implement ``WorkerMessages.start``."""
        self.worker, self._receive, self.is_expecting = worker, receive, is_expecting
        self._task = asyncio.create_task(self._run(), name="worker messages")
        with suppress(TimeoutError):
            async with asyncio.timeout(START_WITHIN):
                await self._is_open.wait()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that sends and receives; it ends only when the channel is closed."""
        return self._task

    def send(self, worker: str, message: bytes) -> None:
        """Queue a message for a worker."""
        if len(message) > MAX_MESSAGE_BYTES:
            logger.error("message to another worker is too large", extra={"bytes": len(message)})
            return
        self._waiting.append((worker, message))
        self._is_sent.clear()
        self._has_waiting.set()

    def broadcast(self, message: bytes) -> None:
        """Queue a message for all other workers."""
        self.send(TO_ALL, message)

    async def close(self) -> None:
        """Send what is queued, for a short time, and stop."""
        if self._task is None:
            return
        if self._is_open.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN):
                    await self._is_sent.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # --- for subclasses ---

    @abstractmethod
    async def serve(self) -> None:
        """Open a connection, call ``opened``, and send and receive until the connection fails.

        Raises:
            Exception: The connection failed, or could not be opened.
        """

    def opened(self) -> None:
        """Note that messages are received now."""
        self._is_open.set()

    def received(self, message: bytes) -> None:
        """Pass on a message."""
        try:
            self._receive(message)
        except Exception:
            # One message must not end the reception of the others.
            logger.exception("failed to handle a message of another worker")

    async def next_group(self) -> Sequence[Outgoing]:
        """Wait for messages to send and return all that are waiting."""
        while not self._waiting:
            self._is_sent.set()
            self._has_waiting.clear()
            await self._has_waiting.wait()
        group = list(self._waiting)
        self._waiting.clear()
        return group

    async def _run(self) -> None:
        pause = 0.0
        while True:
            try:
                await self.serve()
            except Exception as error:  # noqa: BLE001 - whatever the driver raises: the connection is opened again
                if self._is_open.is_set() or not pause:
                    logger.warning("messages between workers failed", extra={"cause": type(error).__name__})
                pause = (
                    FIRST_PAUSE if self._is_open.is_set() else min(2 * pause or FIRST_PAUSE, LONGEST_PAUSE)
                )
            self._is_open.clear()
            self._waiting.clear()
            self._is_sent.set()
            await asyncio.sleep(pause)


async def run_both(*works: Coroutine[Any, Any, None]) -> None:
    """Run coroutines that do not end by themselves, until one fails; the others are cancelled and awaited."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
