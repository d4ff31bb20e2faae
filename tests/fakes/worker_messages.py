"""``WorkerMessages`` in memory, between workers of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.turns.worker_messages import MAX_MESSAGE_BYTES, Receive


class MemoryBus:
    """The workers that receive, by name; ``sent`` are all messages in order."""

    def __init__(self) -> None:
        self.workers: dict[str, Receive] = {}
        self.sent: list[bytes] = []


class MemoryMessages:
    """The messages of one worker."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._worker = ""

    async def start(self, worker: str, receive: Receive, *, is_expecting: Callable[[], bool]) -> None:
        self._worker = worker
        self._bus.workers[worker] = receive

    def send(self, worker: str, message: bytes) -> None:
        if len(message) > MAX_MESSAGE_BYTES:
            return
        self._bus.sent.append(message)
        receive = self._bus.workers.get(worker)
        if receive is not None:
            asyncio.get_running_loop().call_soon(receive, message)

    def broadcast(self, message: bytes) -> None:
        for worker in self._bus.workers:
            if worker != self._worker:
                self.send(worker, message)

    async def close(self) -> None:
        self._bus.workers.pop(self._worker, None)
