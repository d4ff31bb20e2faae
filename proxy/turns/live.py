"""A turn under way: one task writes its log, any number of readers follow it.

The log is kept whole until the turn is forgotten, because readers may join late or come back.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, Self

from proxy.errors import LogMemoryExhausted
from proxy.events import (
    ClientToolArguments,
    Entry,
    Event,
    Failed,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    is_closing,
)
from proxy.messages import Usage

StopReason = Literal["client_left", "requested", "shutting_down"]
HIGH_WATER = 1024 * 1024
"""Characters that the writer may be ahead of the slowest reader."""
ENTRY_WEIGHT = 256
"""Estimated memory of an entry without its text, in bytes."""
LOST = 1_000_000_000
"""Position of a closing event that is sent without the events before it."""


class LogMemory:
    """Estimated bytes of all logs that are registered or read. ``limit`` is None for no limit."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the logs take as much memory as they may."""
        return self.limit is not None and self.used >= self.limit


class Follower:
    """One reader of a turn. Use it in a ``with`` block; leaving it ends the reading.

    An observer only looks on: the turn neither waits for it nor lives for it.
    """

    __slots__ = ("_given", "_live", "_loop", "_wake", "is_observer", "position")

    def __init__(self, live: LiveTurn, after: int, *, is_observer: bool) -> None:
        self.is_observer = is_observer
        self.position = after
        """Everything up to here was read and dealt with."""
        self._given = after
        self._live = live
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._live.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.leave(self)

    async def next(self) -> Sequence[Entry]:
        """Return everything logged since the last call, waiting while there is nothing.

        Empty only after ``wake``, or when nothing more will be logged and all of it was read. A reader that
        entered after entries were trimmed gets a closing event with an error.

        Raises:
            LogMemoryExhausted: The same, for an observer: the turn itself did not fail.
        """
        live = self._live
        self.position = self._given
        live.make_room()
        live.trim()
        if self._given >= live.length and not live.is_over:
            self._wake = self._loop.create_future()
            await self._wake
        start, self._given = self._given, live.length
        entries = live.entries_after(start)
        if entries is None:
            if self.is_observer:
                raise LogMemoryExhausted
            return (Entry(LOST, _discarded(), time.time()),)
        return entries

    def wake(self) -> None:
        """Let a waiting ``next`` return."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class LiveTurn:
    """The log of one turn, its writer's task and its readers."""

    def __init__(
        self,
        turn_id: str,
        *,
        conversation_id: str = "",
        stops_when_left: bool = False,
        high_water: int = HIGH_WATER,
        began: float | None = None,
        memory: LogMemory | None = None,
    ) -> None:
        """``began`` is when the first event happened (seconds since the epoch), if not when it is logged."""
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.stops_when_left = stops_when_left
        self.stop_reason: StopReason | None = None
        self.task: asyncio.Task[None] | None = None
        self.listener: Callable[[Entry], None] | None = None
        """Is told each entry before any reader."""
        self._log: list[Entry] = []
        self._sizes: list[int] = []
        self._size = 0
        self._readers: set[Follower] = set()
        self._room: asyncio.Future[None] | None = None
        self._high_water = high_water
        self._began = began
        self._memory = memory or LogMemory()
        self._holds = 0
        self._dropped = 0
        self._weight = 0
        self._is_retained = True
        self._is_stoppable = True
        self._is_abandoned = False

    # --- the writer's side ---

    def emit(self, event: Event, *, at: float | None = None, position: int | None = None) -> None:
        """Append to the log and wake the readers; ``at`` is when it happened, if not now."""
        if at is None:
            at = time.time() if self.length or self._began is None else self._began
        entry = Entry(self.length + 1 if position is None else position, event, at)
        self._log.append(entry)
        if self.listener is not None:
            self.listener(entry)
        match event:
            case TextDelta() | ReasoningDelta() | RefusalDelta():
                self._size += len(event.text)
            case ClientToolArguments():
                self._size += len(event.arguments)
            case _:
                pass
        self._sizes.append(self._size)
        weight = self._size + ENTRY_WEIGHT * len(self._log)
        if self._holds:
            self._memory.used += weight - self._weight
        self._weight = weight
        for reader in self._readers:
            reader.wake()

    async def room(self) -> None:
        """Wait while a reader is too far behind; a turn without readers never waits."""
        while self._is_crowded():
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _is_crowded(self) -> bool:
        # Nobody can be further behind than all that was said: so it is for nearly every turn.
        if self._size <= self._high_water or not self.has_readers:
            return False
        slowest = min(reader.position for reader in self._readers if not reader.is_observer)
        read = self._sizes[slowest - 1] if slowest else 0
        return self._size - read > self._high_water

    def seal(self) -> None:
        """From here on the turn can no longer be stopped: its end is being written."""
        self._is_stoppable = False

    def abandon(self) -> None:
        """Nothing more will be logged here, although the turn goes on elsewhere."""
        self._is_abandoned = True
        for reader in self._readers:
            reader.wake()

    # --- the readers' side ---

    @property
    def is_finished(self) -> bool:
        """Whether the closing event is in the log."""
        return bool(self._log) and is_closing(self._log[-1].event)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be logged."""
        return self._is_abandoned or self.is_finished

    @property
    def entries(self) -> Sequence[Entry]:
        """What was logged so far; it grows."""
        return self._log

    @property
    def length(self) -> int:
        """Number of entries logged so far, including those that were trimmed."""
        return self._dropped + len(self._log)

    def entries_after(self, position: int) -> Sequence[Entry] | None:
        """Return the entries after ``position``; None if some of them were trimmed."""
        return self._log[position - self._dropped :] if position >= self._dropped else None

    @property
    def weight(self) -> int:
        """Estimated memory of the log, in bytes."""
        return self._weight

    @property
    def has_readers(self) -> bool:
        """Whether anyone but observers follows the turn."""
        return any(not reader.is_observer for reader in self._readers)

    def follower(self, after: int = 0, *, is_observer: bool = False) -> Follower:
        """Return a reader that begins behind position ``after``."""
        return Follower(self, min(after, self.length), is_observer=is_observer)

    def enter(self, reader: Follower) -> None:
        """Count a reader in."""
        self._readers.add(reader)
        self.hold()

    def leave(self, reader: Follower) -> None:
        """Count a reader out."""
        self._readers.discard(reader)
        self.release()
        self.make_room()

    def hold(self) -> None:
        """Count the log in the memory of all logs until ``release`` is called as often."""
        self._holds += 1
        if self._holds == 1:
            self._memory.used += self._weight

    def release(self) -> None:
        """Undo one ``hold``."""
        self._holds -= 1
        if self._holds == 0:
            self._memory.used -= self._weight

    def evict(self) -> None:
        """The log is no longer registered: from here on, entries that every reader has sent are dropped."""
        self._is_retained = False
        self.release()
        self.trim()

    def trim(self) -> None:
        """Drop the entries of an evicted log that every reader has sent."""
        if self._is_retained or not self._readers or not self.is_over:
            return
        count = min(reader.position for reader in self._readers) - self._dropped
        # The closing entry stays, so that the log still shows that it is finished.
        count = min(count, len(self._log) - 1)
        if count <= 0:
            return
        del self._log[:count]
        self._dropped += count
        rest = self._size - self._sizes[self._dropped - 1]
        weight = rest + ENTRY_WEIGHT * len(self._log)
        if self._holds:
            self._memory.used += weight - self._weight
        self._weight = weight

    def make_room(self) -> None:
        """Let a waiting writer go on if the readers have caught up."""
        if self._room is not None and not self._room.done() and not self._is_crowded():
            self._room.set_result(None)

    def left(self, *, grace: float = 0.0) -> None:
        """A reader has gone. If the turn stops when it is left, it does ``grace`` seconds later, unless others read."""
        if not self.stops_when_left or self.has_readers:
            return
        if grace > 0 and not self.is_finished:
            asyncio.get_running_loop().call_later(grace, self.left)
        else:
            self.stop("client_left")

    def stop(self, reason: StopReason) -> bool:
        """Ask the writer to stop; its closing event says why. False when it is too late for that."""
        if not self._is_stoppable or self.task is None or self.task.done():
            return False
        self._is_stoppable = False
        self.stop_reason = reason
        # A task that is cancelled before its first step never takes it, and could not log how it ended. So a writer
        # that has logged nothing yet looks for the reason itself when it begins.
        if self._log:
            self.task.cancel()
        return True


def _discarded() -> Failed:
    message = "The answer was not read in time and is no longer in memory; retrieve it from the stored turn."
    return Failed("log_discarded", message, Usage())


class LiveTurns:
    """The turns of this process: those running, and the newest finished ones, for readers who come late.

    Whatever is no longer kept is read from the store. ``keep_weight`` bounds the kept logs together, in characters.
    """

    def __init__(
        self,
        *,
        keep_finished: int = 256,
        keep_weight: int = 16 * 1024 * 1024,
        memory: LogMemory | None = None,
    ) -> None:
        self.memory = memory or LogMemory()
        self._running: dict[str, LiveTurn] = {}
        self._finished: OrderedDict[str, LiveTurn] = OrderedDict()
        self._keep_finished = keep_finished
        self._keep_weight = keep_weight
        self._weight = 0

    def __len__(self) -> int:
        return len(self._running)

    def add(self, live: LiveTurn) -> None:
        """Keep a turn that is about to run."""
        self._running[live.turn_id] = live
        live.hold()

    def has_memory(self) -> bool:
        """Evict finished logs while all logs together reach their limit; return whether they are below it."""
        while self.memory.is_exhausted and self._finished:
            self._evict_oldest()
        return not self.memory.is_exhausted

    def _evict_oldest(self) -> None:
        _, oldest = self._finished.popitem(last=False)
        self._weight -= oldest.weight
        oldest.evict()

    def retire(self, live: LiveTurn) -> None:
        """The turn has finished: keep it among the newest, and forget the oldest."""
        if self._running.pop(live.turn_id, None) is None:
            live.hold()
        self._finished[live.turn_id] = live
        self._weight += live.weight
        while len(self._finished) > self._keep_finished or self._weight > self._keep_weight:
            self._evict_oldest()
        self.has_memory()

    def get(self, turn_id: str) -> LiveTurn | None:
        """Return the turn, running or lately finished."""
        return self._running.get(turn_id) or self._finished.get(turn_id)

    def running(self) -> list[LiveTurn]:
        """Return the turns under way."""
        return list(self._running.values())
