"""A reader of the log of a turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from proxy.errors import LogMemoryExhausted, TurnTakenOver
from proxy.events import (
    Entry,
    Failed,
)
from proxy.messages import Usage
from proxy.turns.text_relay import TextRelay
from proxy.turns.turn_log import BATCH_SIZE, TurnLog

TERMINAL_POSITION = 1_000_000_000
"""Position of a closing event that is sent without the events before it."""
Take = Callable[[Sequence[Entry]], bool]
"""Processes entries, or returns False without an effect."""
OpenTextRelay = Callable[[Callable[[], bool]], TextRelay | None]
"""Returns a relay whose argument ``is_reader_gone`` is given; None if the next text cannot be passed on by one."""


class ReadTurn(Protocol):
    """A turn, as its readers need it."""

    # Attributes, because a property costs a call for every chunk.
    log: TurnLog
    is_over: bool
    is_evicted: bool
    relay: TextRelay | None
    """Has text that is not logged yet."""
    room: asyncio.Event | None
    """Set when a writer that waits for the slowest reader may continue; None while no writer waits."""

    def enter(self, reader: EventLogReader) -> None:
        """Register a reader."""
        ...

    def leave(self, reader: EventLogReader) -> None:
        """Remove a reader."""
        ...

    async def stored_after(self, index: int) -> Sequence[Entry] | None:
        """Return the entries from an index on from the store; None if the turn is not stored.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        ...

    def close_relay(self) -> None:
        """Log the text of an open relay."""
        ...

    def wake_writer(self) -> None:
        """Let a waiting writer continue if the slowest reader is close enough."""
        ...

    def trim(self) -> None:
        """Drop the entries of an evicted log that every reader has sent."""
        ...


def without_handover(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return the entries without the closing one of a turn that another worker continues.

    Observers and other workers continue to follow the turn. Its clients have to read it again.
    """
    last = entries[-1].event if entries else None
    return entries[:-1] if isinstance(last, Failed) and last.code == TurnTakenOver.code else entries


class EventLogReader:
    """One reader of a turn. It reads in a ``with`` block.

    The writer does not wait for an observer, and an observer does not prevent the cancellation after a disconnect.
    """

    __slots__ = (
        "_given",
        "_live",
        "_log",
        "_loop",
        "_open_relay",
        "_take",
        "is_observer",
        "position",
        "waiter",
        "wakes_at",
    )

    def __init__(self, live: ReadTurn, after: int, *, is_observer: bool) -> None:
        self.is_observer = is_observer
        self.position = after
        """The number of entries that the reader has processed."""
        self.wakes_at = 0
        """The size of the log, in characters, from which on a new entry wakes the reader. The end does in any case."""
        self._given = after
        self._live = live
        self._log = live.log
        self._loop = asyncio.get_running_loop()
        self._take: Take | None = None
        self._open_relay: OpenTextRelay | None = None
        self.waiter: asyncio.Future[None] | None = None
        """Completed by ``wake``; None while the reader does not wait. While it waits, it has all entries, unless it is
        patient."""

    def __enter__(self) -> Self:
        self._live.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.leave(self)
        # It refers to this reader: as a cycle, both would wait for the garbage collector.
        self._take = self._open_relay = None

    def logged(self) -> Sequence[Entry]:
        """Return the first entries if ``next`` would return them without waiting; otherwise none."""
        entries = self._log.read(self._given) or ()
        self._given += len(entries)
        return entries

    async def next(
        self, take: Take | None = None, open_relay: OpenTextRelay | None = None, *, is_patient: bool = False
    ) -> Sequence[Entry]:
        """Return the next batch of entries, waiting while there are none.

        Empty only after ``wake``, or when nothing more will be logged and all of it was read. Entries that are not in
        memory any more are read from the store. If the turn is not stored, the reader gets a closing event with an
        error.

        Meanwhile, batches of the writer (``LiveTurn.emit_batch``) are passed to ``take``, which processes them at once
        and returns True, or returns False to get them from this method. An exception of ``take`` is raised here. While
        no other reader is there, text may also be passed to a relay that ``open_relay`` returns.

        ``is_patient``, without the others, is for readers that need only the whole log: it waits until the log ends or
        has a full batch.

        Raises:
            LogMemoryExhausted: An observer's entries are gone. It gets no closing event: the turn did not fail.
            StoreUnavailable: The store did not answer.
        """
        live, log = self._live, self._log
        start = self.position = self._given
        if live.room is not None:
            live.wake_writer()
        if live.is_evicted:
            live.trim()
        self.wakes_at = log.size_until(start) + BATCH_SIZE if is_patient else 0
        if not live.is_over and (start >= log.length or log.size < self.wakes_at):
            self.waiter = self._loop.create_future()
            self._take, self._open_relay = take, open_relay
            await self.waiter
            if live.relay is not None:
                live.close_relay()
            # ``take`` and relays have moved it.
            start = self._given
        entries = log.read(start)
        if entries is not None:
            self._given = start = start + len(entries)
            if start < log.length:
                # Encoding a batch takes time, and more entries are ready: let other tasks run first.
                await asyncio.sleep(0)
            return entries
        entries = await live.stored_after(start)
        if entries is not None:
            self._given = log.batch_end(start)
            return entries[: self._given - start]
        if self.is_observer:
            raise LogMemoryExhausted
        self._given = log.length
        return (Entry(TERMINAL_POSITION, _discarded(), time.time()),)

    def receive(self, entries: Sequence[Entry]) -> None:
        """Process entries that the writer has logged, in its task, or let the waiting call of ``next`` return."""
        waiter, take, live = self.waiter, self._take, self._live
        # The task of a reader that was cancelled has not run yet.
        if take is None or waiter is None or waiter.done() or live.is_over:
            self.wake()
            return
        try:
            is_taken = take(entries)
        except Exception as error:  # noqa: BLE001 - raised in the task of the reader
            self.waiter = None
            waiter.set_exception(error)
            return
        if is_taken:
            self.position = self._given = self._log.length
        else:
            self.wake()

    def open_relay(self) -> TextRelay | None:
        """Return a relay for text, if the reader waits for entries and offers one."""
        if self._open_relay is None or self.waiter is None or self.waiter.done() or self._live.is_over:
            return None
        return self._open_relay(self.waiter.done)

    def skip(self) -> None:
        """Skip the entries up to the end of the log, which the reader has got from a relay."""
        self.position = self._given = self._log.length

    def wake(self) -> None:
        """Let a waiting call of ``next`` return."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _discarded() -> Failed:
    message = "The answer was not read in time and is no longer in memory; retrieve it from the stored turn."
    return Failed("log_discarded", message, Usage())
