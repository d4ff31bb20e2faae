"""The running turns of this process, and the newest finished ones."""

from __future__ import annotations

from collections import OrderedDict

from proxy.turns.live import LiveTurn
from proxy.turns.log_memory import LogMemory


class LiveTurns:
    """The running turns of this process, and the newest finished ones for late readers.

    Older turns are read from the store. ``keep_bytes`` limits what is counted of all retained finished logs together.
    """

    def __init__(
        self,
        *,
        keep_finished: int = 256,
        keep_bytes: int = 16 * 1024 * 1024,
        memory: LogMemory | None = None,
    ) -> None:
        self.memory = memory or LogMemory()
        self.memory.on_exhausted = self._relieve
        self._running: dict[str, LiveTurn] = {}
        self._turns_of: dict[str, int] = {}
        """The number of running turns by conversation id."""
        self._finished: OrderedDict[str, LiveTurn] = OrderedDict()
        self._keep_finished = keep_finished
        self._keep_bytes = keep_bytes
        self._counted = 0
        """Bytes of the finished logs that are counted in ``memory``."""

    def __len__(self) -> int:
        return len(self._running)

    def add(self, live: LiveTurn) -> None:
        """Register a turn that is about to run."""
        if live.turn_id not in self._running:
            self._turns_of[live.conversation_id] = self._turns_of.get(live.conversation_id, 0) + 1
        self._running[live.turn_id] = live
        live.register()

    def remove(self, live: LiveTurn) -> None:
        """Remove a turn that could not begin."""
        if self._end(live):
            live.unregister()

    def _end(self, live: LiveTurn) -> bool:
        """Remove a turn from the running ones; return whether it was one of them."""
        if self._running.pop(live.turn_id, None) is None:
            return False
        left = self._turns_of[live.conversation_id] - 1
        if left:
            self._turns_of[live.conversation_id] = left
        else:
            del self._turns_of[live.conversation_id]
        return True

    def has_turn_of(self, conversation_id: str) -> bool:
        """Whether a turn of a conversation with this id is running in this process."""
        return conversation_id in self._turns_of

    def has_memory(self) -> bool:
        """Free memory if all logs together have reached their limit; return whether they are below it afterwards."""
        if not self.memory.is_exhausted:
            return True
        self._relieve()
        return self._is_relieved()

    def _is_relieved(self) -> bool:
        return not self.memory.is_exhausted

    def _relieve(self) -> None:
        """Evict finished logs, cut those of the slowest readers to what is stored, and let a waiting turn finish.

        A running turn is not stored yet, so its log cannot be cut. Its writer stops waiting for its readers, one turn
        at a time: when the turn is stored, its log is cut and the next one follows.
        """
        while self._finished and not self._is_relieved():
            self._evict_oldest()
        if self._is_relieved():
            return
        slowest_first = sorted(self.memory.logs, key=lambda live: live.unread, reverse=True)
        for live in slowest_first:
            live.cut()
            if self._is_relieved():
                return
        if not any(live.ignores_readers for live in self._running.values()):
            waiting = next((live for live in slowest_first if live.is_waiting), None)
            if waiting is not None:
                waiting.ignore_readers()

    def _evict_oldest(self) -> None:
        _, oldest = self._finished.popitem(last=False)
        self._counted -= oldest.log.counted
        oldest.evict()

    def retire(self, live: LiveTurn) -> None:
        """Move a turn that has ended to the finished ones, and evict the oldest of these."""
        if not self._end(live):
            live.register()
        self._finished[live.turn_id] = live
        self._counted += live.log.counted
        while len(self._finished) > self._keep_finished or self._counted > self._keep_bytes:
            self._evict_oldest()
        if self.memory.is_exhausted:
            self._relieve()

    def get(self, turn_id: str) -> LiveTurn | None:
        """Return a turn that runs or is retained; None for any other."""
        return self._running.get(turn_id) or self._finished.get(turn_id)

    def running(self) -> list[LiveTurn]:
        """Return the running turns."""
        return list(self._running.values())
