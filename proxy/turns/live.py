"""A turn that runs in this process, or its log if it runs in another worker: one writer, any number of readers.

Entries are retained until the turn is evicted, so a reader can start at any position.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from operator import add
from typing import Literal, Protocol

from proxy.events import CLOSING, TAKEOVER_POSITIONS, Entry, Event, TextBatch
from proxy.turns.log_memory import LogMemory
from proxy.turns.log_reader import EventLogReader
from proxy.turns.text_relay import TextRelay
from proxy.turns.turn_log import TurnLog

CancelReason = Literal["client_left", "requested", "shutting_down"]
StopReason = CancelReason | Literal["timed_out"]
HIGH_WATER = 1024 * 1024
"""Characters that the writer may be ahead of the slowest reader."""
_UNLIMITED = sys.maxsize
"""The high-water mark of a writer that waits for no reader any more."""


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

    # The dictionaries of instances share their keys only up to 30 attributes, and each takes a kilobyte more if they do
    # not (CPython, dictobject.c: SHARED_KEYS_MAX_SIZE).
    __slots__ = (
        "_continued",
        "_has_left",
        "_high_water",
        "_is_registered",
        "_is_stoppable",
        "_readers",
        "cancel_on_disconnect",
        "clients",
        "conversation_id",
        "conversation_key",
        "is_evicted",
        "is_finished",
        "is_followed",
        "is_over",
        "listener",
        "load",
        "log",
        "relay",
        "room",
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
        memory: LogMemory | None = None,
    ) -> None:
        """``cancel_on_disconnect`` applies to turns without a ``watcher``."""
        self.turn_id = turn_id
        self.conversation_id = conversation_id
        self.conversation_key: int | None = None
        """The key of the conversation in the store, once the turn is stored."""
        self.cancel_on_disconnect = cancel_on_disconnect
        self.stop_reason: StopReason | None = None
        self.task: asyncio.Task[object] | None = None
        self.watcher: Watcher | None = None
        self.is_followed = False
        """Whether the turn has, or had, a reader besides the request that began it."""
        self.takeovers: list[int] = []
        """Numbers of entries before each takeover by another worker."""
        self.listener: Callable[[Entry], None] | None = None
        """Called with each entry, before any reader gets it."""
        self.load: Callable[[], Awaitable[Sequence[Entry]]] | None = None
        """Returns all entries from the store; None until they are stored."""
        # The next ones are read for every chunk or request: attributes, because a property costs a call.
        self.is_finished = False
        """Whether the closing event was logged."""
        self.is_over = False
        """Whether nothing more will be logged."""
        self.is_evicted = False
        """Whether the log was removed from the registry."""
        self.clients = 0
        """Number of readers that are not observers."""
        self.relay: TextRelay | None = None
        """Has text that is not logged yet. It is closed before anything else is logged, or the log is read."""
        self.room: asyncio.Event | None = None
        """Set when a writer that waits for the slowest reader may continue; None while no writer waits."""
        self.log = TurnLog(memory or LogMemory())
        self._readers: tuple[EventLogReader, ...] = ()
        self._has_left = False
        """Whether the watcher handles that the last client left."""
        self._continued: asyncio.Event | None = None
        """Set when the writer may start something new; None unless it must not, because no client reads."""
        self._high_water = high_water
        self._is_registered = False
        self._is_stoppable = True

    # --- writer ---

    def emit(self, event: Event, *, at: float | None = None, position: int | None = None) -> None:
        """Append to the log and wake the readers; ``at`` is the time of the event, by default now."""
        if self.relay is not None:
            self.close_relay()
        log = self.log
        entry = log.append(event, time.time() if at is None else at, position)
        if type(event) in CLOSING:
            self.is_finished = self.is_over = True
        if self.listener is not None:
            self.listener(entry)
        for reader in self._readers:
            # Of several events, the first one wakes the reader.
            if reader.waiter is not None and (log.size >= reader.wakes_at or self.is_over):
                reader.wake()

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Append events that arrived together, and pass them to the readers at once; see ``Sink``.

        The closing event is not one of them: a reader gets it from ``next``.
        """
        if self.relay is not None:
            self.close_relay()
        log = self.log
        if len(events) == 1:
            entries = [log.append(events[0], time.time())]
        elif events:
            entries = log.extend(events, repeat(time.time()))
        else:
            return not self._is_crowded()
        if self.listener is not None:
            for entry in entries:
                self.listener(entry)
        for reader in self._readers:
            if reader.waiter is not None and log.size >= reader.wakes_at:
                reader.receive(entries)
        return log.size <= self._high_water or not self._is_crowded()

    def open_relay(self) -> TextRelay | None:
        """Implement ``Sink``: there is a relay if the only reader has all entries and offers one."""
        self.close_relay()
        if self.listener is not None or len(self._readers) != 1:
            return None
        relay = self.relay = self._readers[0].open_relay()
        if relay is not None:
            relay.add_record(self._log_texts)
        return relay

    def close_relay(self) -> None:
        """Log the text of an open relay."""
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.close()

    def _log_texts(self, texts: list[str], times: list[float]) -> None:
        """Log what the relay has passed on to the reader."""
        self.relay = None
        offset = time.time() - asyncio.get_running_loop().time()
        entries = self.log.extend(TextBatch.of(texts), map(add, times, repeat(offset)))
        if self.listener is not None:
            # It came after the relay was opened.
            for entry in entries:
                self.listener(entry)
        for reader in self._readers:
            reader.skip()

    def restore(self, entries: Sequence[Entry], takeovers: Sequence[int]) -> None:
        """Begin with the log of another worker, which this one has taken over."""
        for entry in entries:
            self.emit(entry.event, at=entry.time, position=entry.position)
        self.takeovers = [*takeovers, self.log.length]
        self.log.offset = 1 + TAKEOVER_POSITIONS * len(self.takeovers)

    async def drain(self) -> None:
        """Wait until the slowest reader is within the high-water mark (backpressure). Without readers, do not wait."""
        while self._is_crowded():
            room = self.room = self.room or asyncio.Event()
            for reader in self._readers:
                if reader.wakes_at:
                    # It is patient: it waits for more than there will be.
                    reader.wake()
            self.log.memory.relieve()
            await room.wait()

    def wake_writer(self) -> None:
        """Let waiting writers continue if the slowest reader is within the high-water mark."""
        if self.room is not None and not self._is_crowded():
            self.room.set()
            self.room = None

    async def attended(self) -> None:
        """Wait while the turn is paused."""
        while (continued := self._continued) is not None:
            await continued.wait()

    def pause(self) -> None:
        """Let ``attended`` wait until ``resume`` is called."""
        self._continued = self._continued or asyncio.Event()

    def resume(self) -> None:
        """End a pause."""
        if self._continued is not None:
            self._continued.set()
            self._continued = None

    @property
    def is_paused(self) -> bool:
        """Whether the writer starts nothing new, because no client reads."""
        return self._continued is not None

    def _is_crowded(self) -> bool:
        log = self.log
        # The common case: the whole log is below the mark, so no reader can be too far behind.
        if log.size <= self._high_water or not self.clients:
            return False
        slowest = min(reader.position for reader in self._readers if not reader.is_observer)
        return log.size - log.size_until(slowest) > self._high_water

    @property
    def unread(self) -> int:
        """Characters that the slowest reader has not read; 0 without readers."""
        log = self.log
        slowest = min((reader.position for reader in self._readers), default=log.length)
        return log.size - log.size_until(min(slowest, log.length))

    @property
    def is_waiting(self) -> bool:
        """Whether the writer waits for a slow reader."""
        return self.room is not None and not self.is_over

    @property
    def ignores_readers(self) -> bool:
        """Whether the writer does not wait for readers any more."""
        return self._high_water == _UNLIMITED

    def ignore_readers(self) -> None:
        """Let the writer finish without waiting: readers get the rest from the store after the turn has ended."""
        self._high_water = _UNLIMITED
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
        if self.relay is not None:
            self.close_relay()
        return self.log.entries

    @property
    def length(self) -> int:
        """Number of entries logged so far, including those that were dropped."""
        return self.log.length

    def entries_after(self, index: int) -> Sequence[Entry] | None:
        """Return the entries from an index on; None if some of them were dropped."""
        if self.relay is not None:
            self.close_relay()
        dropped = self.log.dropped
        return self.log.entries[index - dropped :] if index >= dropped else None

    async def stored_after(self, index: int) -> Sequence[Entry] | None:
        """Return the entries from an index on from the store; None if the turn is not stored.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        entries = await self.load() if self.load is not None else ()
        return entries[index:] if len(entries) == self.log.length else None

    @property
    def is_read(self) -> bool:
        """Whether the turn has a reader, observers included."""
        return bool(self._readers)

    def reader(self, after: int = 0, *, is_observer: bool = False) -> EventLogReader:
        """Return a reader of the entries from the index ``after`` on."""
        if after:
            self.close_relay()
            after = min(after, self.log.length)
        return EventLogReader(self, after, is_observer=is_observer)

    def enter(self, reader: EventLogReader) -> None:
        """Register a reader."""
        if self.relay is not None:
            self.close_relay()
        self._readers += (reader,)
        if not self.log.counted:
            self.log.start_counting(self)
        if reader.is_observer:
            return
        self.clients += 1
        if self._has_left and self.watcher is not None:
            self._has_left = False
            self.watcher.returned()

    def leave(self, reader: EventLogReader) -> None:
        """Remove a reader."""
        if self.relay is not None:
            self.close_relay()
        readers = self._readers
        # Nearly always there is one.
        self._readers = () if readers == (reader,) else tuple([one for one in readers if one is not reader])
        if not reader.is_observer:
            self.clients -= 1
        if not self._is_registered and not self._readers:
            self.log.stop_counting(self)
        if self.room is not None:
            self.wake_writer()

    def on_client_disconnect(self, *, can_return: bool = True) -> None:
        """Handle a client disconnect, if no other client reads the turn here. Observers do not count.

        A client whose API key is not valid any more cannot return.
        """
        if self.clients:
            return
        if self.is_finished:
            if self.watcher is not None:
                self.watcher.missed_end()
        elif self.watcher is not None:
            self._has_left = True
            self.watcher.left(can_return=can_return)
        elif self.cancel_on_disconnect:
            self.stop("client_left")

    # --- memory ---

    def register(self) -> None:
        """Count the log in the memory of all logs, as while it is read, until ``unregister`` is called."""
        self._is_registered = True
        if not self.log.counted:
            self.log.start_counting(self)

    def unregister(self) -> None:
        """Do not count the log any more, unless it is read."""
        self._is_registered = False
        if not self._readers:
            self.log.stop_counting(self)

    @contextmanager
    def count(self, size: int) -> Iterator[None]:
        """Count ``size`` bytes of an encoded response in the memory of all logs."""
        self.log.memory.add(size)
        try:
            yield
        finally:
            self.log.memory.add(-size)

    def evict(self) -> None:
        """Handle the removal from the registry: entries that every reader has sent are dropped from now on."""
        self.is_evicted = True
        # It refers to this log: as a part of a cycle, each turn would wait for the garbage collector.
        self.watcher = None
        self._is_registered = False
        if self._readers:
            self.trim()
        else:
            self.log.stop_counting(self)

    def trim(self) -> None:
        """Drop the entries of an evicted log that every reader has sent."""
        if not self.is_evicted or not self._readers or not self.is_over:
            return
        log = self.log
        count = min(reader.position for reader in self._readers) - log.dropped
        # Keep the closing entry: its position is read from ``entries``.
        log.drop(min(count, len(log.entries) - 1))

    def cut(self) -> None:
        """Drop the entries of a stored log; its readers get the rest from the store."""
        if self.is_finished and self.load is not None:
            self.log.drop(len(self.log.entries) - 1)

    # --- end ---

    def stop(self, reason: StopReason) -> bool:
        """Cancel the turn; its closing event has the reason. Return False if its end is stored or being stored."""
        if not self._is_stoppable or self.task is None or self.task.done():
            return False
        self._is_stoppable = False
        self.stop_reason = reason
        # asyncio does not start a task that is cancelled before its first step, so it could not log its end. A writer
        # that has logged nothing yet reads ``stop_reason`` when it starts.
        if self.log.length:
            self.task.cancel()
        return True
