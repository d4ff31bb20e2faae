"""In-memory event log of a turn: one writer, any number of readers.

Entries are retained until the turn is evicted, so a reader can start at any position.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from proxy.events import (
    TAKEOVER_POSITIONS,
    Cancelled,
    Completed,
    Entry,
    Event,
    ModelCalled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextBatch,
    TextDelta,
    is_closing,
)
from proxy.turns.log_memory import ENTRY_WEIGHT, LogMemory
from proxy.turns.log_reader import EventLogReader
from proxy.turns.text_relay import TextRelay

StopReason = Literal["client_left", "requested", "shutting_down"]
HIGH_WATER = 1024 * 1024
"""Characters that the writer may be ahead of the slowest reader."""
_BATCH = 256 * 1024
"""Characters after which a batch for a reader ends. A slow reader holds one batch in memory."""
_BATCH_ENTRIES = 4096
_WITHOUT_TEXT: frozenset[type[Event]] = frozenset((Started, ModelCalled, Completed, Cancelled))
"""Events whose texts are only names."""


class Watcher(Protocol):
    """Decides what happens to a turn whose clients have left."""

    def left(self, *, can_return: bool) -> None:
        """Handle that the last client left."""
        ...

    def returned(self) -> None:
        """Handle that the turn has a reader again."""
        ...

    async def store_departure(self) -> None:
        """Write that the last client left, if that is not written, before the end of the turn is."""
        ...

    def missed_end(self) -> None:
        """Handle that the last client left a finished turn before it had the end."""
        ...


class LiveTurn:
    """The log of one turn, its writer's task and its readers."""

    # With 30 attributes, a dictionary would take a kilobyte more (CPython, dictobject.c: SHARED_KEYS_MAX_SIZE).
    __slots__ = (
        "_began",
        "_continued",
        "_dropped",
        "_high_water",
        "_holds",
        "_ignores_readers",
        "_is_stoppable",
        "_log",
        "_memory",
        "_next",
        "_readers",
        "_relay",
        "_room",
        "_size",
        "_sizes",
        "_weight",
        "cancel_on_disconnect",
        "conversation_id",
        "conversation_key",
        "is_evicted",
        "is_finished",
        "is_followed",
        "is_over",
        "is_paused",
        "length",
        "listener",
        "load",
        "stop_reason",
        "takeovers",
        "task",
        "turn_id",
        "watcher",
    )

    def __init__(
        self,
        turn_id: str,
        *,
        conversation_id: str = "",
        cancel_on_disconnect: bool = False,
        high_water: int = HIGH_WATER,
        began: float | None = None,
        memory: LogMemory | None = None,
    ) -> None:
        """``began`` is the time of the first event in seconds since the epoch; by default the time of logging.

        ``cancel_on_disconnect`` applies to turns without a ``watcher``.
        """
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.conversation_key: int | None = None
        """The key of the conversation in the store, once the turn is stored."""
        self.cancel_on_disconnect = cancel_on_disconnect
        self.stop_reason: StopReason | None = None
        self.task: asyncio.Task[None] | None = None
        self.watcher: Watcher | None = None
        self.is_followed = False
        """Whether the turn has, or had, a reader besides the request that began it."""
        self.takeovers: list[int] = []
        """Numbers of entries before each takeover by another worker."""
        self.is_paused = False
        """Whether the writer starts nothing new, because no client reads."""
        self.listener: Callable[[Entry], None] | None = None
        """Called with each entry, before any reader gets it."""
        self.load: Callable[[], Awaitable[Sequence[Entry]]] | None = None
        """Returns all entries from the store; None until they are stored."""
        # The next four are read for every chunk: attributes, because a property costs a call.
        self.length = 0
        """Number of entries logged so far, including those that were trimmed."""
        self.is_finished = False
        """Whether the closing event was logged."""
        self.is_over = False
        """Whether nothing more will be logged."""
        self.is_evicted = False
        """Whether the log was removed from the registry."""
        self._next = 1
        """Position of the next entry, less the length of the log."""
        self._log: list[Entry] = []
        self._sizes: list[int] = []
        self._size = 0
        self._readers: tuple[EventLogReader, ...] = ()
        self._room: asyncio.Future[None] | None = None
        self._continued: asyncio.Future[None] | None = None
        self._high_water = high_water
        self._began = began
        self._memory = memory or LogMemory()
        self._holds = 0
        self._dropped = 0
        self._weight = 0
        self._is_stoppable = True
        self._ignores_readers = False
        self._relay: TextRelay | None = None
        """Has text that is not logged yet. It is closed before anything else is logged, or the log is read."""

    # --- writer ---

    def emit(self, event: Event, *, at: float | None = None, position: int | None = None) -> None:
        """Append to the log and wake the readers; ``at`` is the time of the event, by default now."""
        if self._relay is not None:
            self.close_relay()
        before = self._size
        if at is None:
            at = time.time() if self.length or self._began is None else self._began
        self._append(event, at, position)
        for reader in self._readers:
            # Of several events, the first one wakes the reader.
            if reader.waiter is not None:
                reader.wake()
        self._add_weight(self._size - before + ENTRY_WEIGHT)

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Append events that arrived together, and pass them to the readers at once; see ``Sink``."""
        if self._relay is not None:
            self.close_relay()
        if not events:
            return not self._is_crowded()
        before = self._size
        now = time.time() if self.length or self._began is None else self._began
        if type(events) is TextBatch and self.listener is None:
            entries = self._append_texts(events, [now] * len(events))
        else:
            entries = [self._append(event, now, None) for event in events]
        for reader in self._readers:
            if reader.waiter is not None:
                reader.receive(entries)
        change = self._size - before + ENTRY_WEIGHT * len(entries)
        self._weight += change
        if self._holds:
            self._memory.add(change)
        return self._size <= self._high_water or not self._is_crowded()

    def _append(self, event: Event, at: float, position: int | None) -> Entry:
        entry = Entry(self.length + self._next if position is None else position, event, at)
        self._log.append(entry)
        self.length += 1
        # Not a ``match``: each class that is not the event's takes as long as a call.
        if type(event) is TextDelta or type(event) is ReasoningDelta or type(event) is RefusalDelta:
            self._size += len(event.text)
        else:
            if type(event) not in _WITHOUT_TEXT:
                self._size += _text_size(event)
            if is_closing(event):
                self.is_finished = self.is_over = True
        self._sizes.append(self._size)
        if self.listener is not None:
            self.listener(entry)
        return entry

    def _append_texts(self, deltas: Iterable[TextDelta], times: Sequence[float]) -> list[Entry]:
        """Do what ``_append`` does for each delta, without a listener."""
        size, position = self._size, self.length + self._next
        sizes, entries = self._sizes, []
        for event, at in zip(deltas, times, strict=True):
            entries.append(Entry(position, event, at))
            position += 1
            size += len(event.text)
            sizes.append(size)
        self._log += entries
        self._size = size
        self.length += len(entries)
        return entries

    def open_relay(self) -> TextRelay | None:
        """Implement ``Sink``: there is a relay if the only reader has all entries and offers one."""
        self.close_relay()
        if self.listener is not None or len(self._readers) != 1:
            return None
        relay = self._relay = self._readers[0].open_relay()
        if relay is not None:
            relay.add_record(self._log_texts)
        return relay

    def close_relay(self) -> None:
        """Log the text of an open relay."""
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.close()

    def _log_texts(self, texts: Sequence[str], times: Sequence[float]) -> None:
        """Log what the relay has passed on to the reader."""
        self._relay = None
        offset = time.time() - asyncio.get_running_loop().time()
        before = self._size
        entries = self._append_texts(map(TextDelta, texts), [at + offset for at in times])
        if self.listener is not None:
            # It came after the relay was opened.
            for entry in entries:
                self.listener(entry)
        for reader in self._readers:
            reader.skip()
        self._add_weight(self._size - before + ENTRY_WEIGHT * len(texts))

    def _add_weight(self, change: int) -> None:
        """Count new entries: the change that ``_set_weight`` would find, without looking at the whole log."""
        self._weight += change
        if self._holds:
            self._memory.add(change)

    def restore(self, entries: Sequence[Entry], takeovers: Sequence[int]) -> None:
        """Begin with the log of another worker, which this one has taken over."""
        for entry in entries:
            self.emit(entry.event, at=entry.time, position=entry.position)
        self.takeovers = [*takeovers, self.length]
        self._next = 1 + TAKEOVER_POSITIONS * len(self.takeovers)

    def _set_weight(self) -> None:
        dropped = self._sizes[self._dropped - 1] if self._dropped else 0
        weight = self._size - dropped + ENTRY_WEIGHT * len(self._log)
        change, self._weight = weight - self._weight, weight
        if self._holds:
            self._memory.add(change)

    async def drain(self) -> None:
        """Wait until the slowest reader is within the high-water mark (backpressure). Without readers, do not wait."""
        while self._is_crowded():
            self._room = asyncio.get_running_loop().create_future()
            self._memory.relieve()
            await self._room

    async def attended(self) -> None:
        """Wait while the turn is paused."""
        while self.is_paused:
            self._continued = asyncio.get_running_loop().create_future()
            await self._continued

    def pause(self) -> None:
        """Let ``attended`` wait until ``resume`` is called."""
        self.is_paused = True

    def resume(self) -> None:
        """End a pause."""
        self.is_paused = False
        if self._continued is not None and not self._continued.done():
            self._continued.set_result(None)

    def _is_crowded(self) -> bool:
        # The common case: the whole log is below the mark, so no reader can be too far behind.
        if self._size <= self._high_water or self._ignores_readers or not self.has_readers:
            return False
        slowest = min(reader.position for reader in self._readers if not reader.is_observer)
        return self._size - self._size_until(slowest) > self._high_water

    def _size_until(self, position: int) -> int:
        return self._sizes[position - 1] if position else 0

    @property
    def unread(self) -> int:
        """Characters that the slowest reader has not read; 0 without readers."""
        slowest = min((reader.position for reader in self._readers), default=self.length)
        return self._size - self._size_until(min(slowest, self.length))

    @property
    def is_waiting(self) -> bool:
        """Whether the writer waits for a slow reader."""
        return self._room is not None and not self._room.done() and not self.is_over

    @property
    def ignores_readers(self) -> bool:
        """Whether the writer does not wait for readers any more."""
        return self._ignores_readers

    def ignore_readers(self) -> None:
        """Let the writer finish without waiting: readers get the rest from the store after the turn has ended."""
        self._ignores_readers = True
        self.wake_writer()

    def seal(self) -> None:
        """Reject later calls of ``stop``: the end of the turn is being stored."""
        self._is_stoppable = False

    def abandon(self) -> None:
        """End the log without a closing event. The turn continues in another worker."""
        self.close_relay()
        self.is_over = True
        for reader in self._readers:
            reader.wake()

    # --- readers ---

    @property
    def entries(self) -> Sequence[Entry]:
        """The entries in memory; the sequence grows while the turn runs."""
        if self._relay is not None:
            self.close_relay()
        return self._log

    def position_before(self, index: int) -> int | None:
        """Return the position of the entry before the one with this index: 0 for the first, None if it was trimmed."""
        place = index - 1 - self._dropped
        if index == 0:
            return 0
        return self._log[place].position if place >= 0 else None

    def entries_after(self, position: int) -> Sequence[Entry] | None:
        """Return the entries after ``position``; None if some of them were trimmed."""
        if self._relay is not None:
            self.close_relay()
        return self._log[position - self._dropped :] if position >= self._dropped else None

    async def stored_after(self, position: int) -> Sequence[Entry] | None:
        """Return the entries after ``position`` from the store; None if the turn is not stored.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        entries = await self.load() if self.load is not None else ()
        return entries[position:] if len(entries) == self.length else None

    def batch_end(self, position: int) -> int:
        """Return the position up to which a reader at ``position`` gets entries at once."""
        length = self.length
        if length - position <= 1:
            # Nearly always: the reader keeps up with the writer.
            return length
        end = bisect_right(self._sizes, self._size_until(position) + _BATCH, lo=position)
        return min(max(end, position + 1), position + _BATCH_ENTRIES, length)

    @property
    def weight(self) -> int:
        """Estimated memory of the log, in bytes."""
        return self._weight

    @property
    def is_read(self) -> bool:
        """Whether the turn has a reader, observers included."""
        return bool(self._readers)

    @property
    def has_readers(self) -> bool:
        """Whether the turn has a reader that is not an observer."""
        return any(not reader.is_observer for reader in self._readers)

    def reader(self, after: int = 0, *, is_observer: bool = False) -> EventLogReader:
        """Return a reader of the entries after position ``after``."""
        if self._relay is not None:
            self.close_relay()
        return EventLogReader(self, min(after, self.length), is_observer=is_observer)

    def enter(self, reader: EventLogReader) -> None:
        """Register a reader."""
        if self._relay is not None:
            self.close_relay()
        self._readers += (reader,)
        self.hold()
        if self.watcher is not None and not reader.is_observer:
            self.watcher.returned()

    def leave(self, reader: EventLogReader) -> None:
        """Remove a reader."""
        if self._relay is not None:
            self.close_relay()
        self._readers = tuple(one for one in self._readers if one is not reader)
        self.release()
        self.wake_writer()

    def hold(self) -> None:
        """Count the log in the memory of all logs, until each ``hold`` has its ``release``."""
        self._holds += 1
        if self._holds == 1:
            self._memory.logs.add(self)
            self._memory.add(self._weight)

    def release(self) -> None:
        """Undo one ``hold``."""
        self._holds -= 1
        if self._holds == 0:
            self._memory.logs.discard(self)
            self._memory.add(-self._weight)

    @contextmanager
    def count(self, size: int) -> Iterator[None]:
        """Count ``size`` bytes of an encoded response in the memory of all logs."""
        self._memory.add(size)
        try:
            yield
        finally:
            self._memory.add(-size)

    def evict(self) -> None:
        """Handle the removal from the registry: entries that every reader has sent are dropped from now on."""
        self.is_evicted = True
        # It refers to this log: as a part of a cycle, each turn would wait for the garbage collector.
        self.watcher = None
        self.release()
        self.trim()

    def trim(self) -> None:
        """Drop the entries of an evicted log that every reader has sent."""
        if not self.is_evicted or not self._readers or not self.is_over:
            return
        count = min(reader.position for reader in self._readers) - self._dropped
        # Keep the closing entry: its position is read from ``entries``.
        count = min(count, len(self._log) - 1)
        self._drop(count)

    def _drop(self, count: int) -> None:
        if count > 0:
            del self._log[:count]
            self._dropped += count
            self._set_weight()

    def cut(self) -> None:
        """Drop the entries of a stored log; its readers get the rest from the store."""
        if self.is_finished and self.load is not None:
            self._drop(len(self._log) - 1)

    def wake_writer(self) -> None:
        """Let a waiting writer continue if the slowest reader is within the high-water mark."""
        if self._room is not None and not self._room.done() and not self._is_crowded():
            self._room.set_result(None)

    def on_client_disconnect(self, *, can_return: bool = True) -> None:
        """Handle a client disconnect, if no other client reads the turn here. Observers do not count.

        A client whose API key is not valid any more cannot return.
        """
        if self.has_readers:
            return
        if self.is_finished:
            if self.watcher is not None:
                self.watcher.missed_end()
        elif self.watcher is not None:
            self.watcher.left(can_return=can_return)
        elif self.cancel_on_disconnect:
            self.stop("client_left")

    def stop(self, reason: StopReason) -> bool:
        """Cancel the turn; its closing event has the reason. Return False if its end is stored or being stored."""
        if not self._is_stoppable or self.task is None or self.task.done():
            return False
        self._is_stoppable = False
        self.stop_reason = reason
        # asyncio does not start a task that is cancelled before its first step, so it could not log its end. A writer
        # that has logged nothing yet reads ``stop_reason`` when it starts.
        if self._log:
            self.task.cancel()
        return True


def _text_size(event: Event) -> int:
    size = 0
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, str):
            size += len(value)
    return size
