"""The entries of one turn in memory: their positions and sizes, batches for readers, and the memory they take.

Readers, tasks and the end of a turn belong to ``live``. An index counts the entries from 0, trimmed ones included.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, count
from operator import attrgetter

from msgspec.structs import astuple

from proxy.events import (
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
)
from proxy.turns.log_memory import ENTRY_WEIGHT, CountedLog, LogMemory

BATCH_SIZE = 256 * 1024
"""Characters after which a batch for a reader ends. A slow reader holds one batch in memory."""
_BATCH_ENTRIES = 4096
COUNTED_BYTES = 4096
"""The memory of a log that grows is counted in multiples of this number, so that a short turn is counted once."""
_WITHOUT_TEXT: frozenset[type[Event]] = frozenset((Started, ModelCalled, Completed, Cancelled))
"""Events whose texts are only names."""
_NEVER = sys.maxsize
_EVENT = attrgetter("event")


class TurnLog:
    """Entries in the order in which they were logged; the oldest ones may be dropped."""

    __slots__ = (
        "_counted_until",
        "_dropped_weight",
        "_sizes",
        "counted",
        "dropped",
        "entries",
        "length",
        "memory",
        "offset",
        "size",
    )

    def __init__(self, memory: LogMemory) -> None:
        # Attributes, because a property costs a call for every chunk.
        self.entries: list[Entry] = []
        """The entries that were not dropped."""
        self.length = 0
        """Number of entries logged so far, including those that were dropped."""
        self.size = 0
        """Number of characters logged so far."""
        self.dropped = 0
        """Number of entries that were dropped."""
        self.offset = 1
        """Position of the next entry, less the length of the log."""
        self.counted = 0
        """Bytes of ``weight`` that are counted in the memory of all logs; 0 while it is not counted there."""
        self._counted_until = _NEVER
        """Weight of all entries, dropped ones included, above which more bytes have to be counted."""
        self._dropped_weight = 0
        self._sizes: list[int] | None = None
        """By index of an entry: the characters before it. Those of the newest entries are added when one is needed."""
        self.memory = memory

    def append(self, event: Event, at: float, position: int | None = None) -> Entry:
        """Append an event with its time at the next position, or at this one; return its entry."""
        length = self.length
        entry = Entry(length + self.offset if position is None else position, event, at)
        self.entries.append(entry)
        self.length = length = length + 1
        if type(event) not in _WITHOUT_TEXT:
            # The memory of the others, of which there are few, is counted with the next one that has text.
            self.size = size = self.size + (
                len(event.text) if type(event) is TextDelta else _text_size(event)
            )
            if size + ENTRY_WEIGHT * length > self._counted_until:
                self.count()
        return entry

    def extend(self, events: Sequence[Event], times: Iterable[float]) -> list[Entry]:
        """Append several events with their times, which may be endless; return their entries."""
        # No loop: nearly all events of a log are pieces of text.
        entries = list(map(Entry, count(self.length + self.offset), events, times))
        self.entries += entries
        self.length += len(entries)
        self.size += sum(map(len, events.texts) if type(events) is TextBatch else map(_text_size, events))
        if self.size + ENTRY_WEIGHT * self.length > self._counted_until:
            self.count()
        return entries

    @property
    def weight(self) -> int:
        """Estimated memory of the entries, in bytes."""
        return self.size + ENTRY_WEIGHT * self.length - self._dropped_weight

    def read(self, index: int) -> Sequence[Entry] | None:
        """Return the next batch from ``index`` on; None if some of it was dropped."""
        start = index - self.dropped
        if start < 0:
            return None
        if (self.size <= BATCH_SIZE and self.length <= _BATCH_ENTRIES) or self.length - index <= 1:
            # Nearly always: the whole log is less than a batch, or the reader keeps up with the writer.
            return self.entries[start:]
        return self.entries[start : self.batch_end(index) - self.dropped]

    def batch_end(self, index: int) -> int:
        """Return the index after the batch that begins at ``index``."""
        end = bisect_right(self._all_sizes(), self.size_until(index) + BATCH_SIZE, lo=index) - 1
        return min(max(end, index + 1), index + _BATCH_ENTRIES, self.length)

    def size_until(self, index: int) -> int:
        """Return the number of characters of the entries before ``index``."""
        return self._all_sizes()[index] if index else 0

    def _all_sizes(self) -> Sequence[int]:
        # Not maintained by ``extend``: only logs of long texts, and those that are cut, need them.
        sizes = self._sizes
        if sizes is None:
            sizes = self._sizes = [0]
        new = self.length + 1 - len(sizes)
        if new:
            sizes += accumulate(map(_text_size, map(_EVENT, self.entries[-new:])), initial=sizes.pop())
        return sizes

    def position_before(self, index: int) -> int | None:
        """Return the position of the entry before the one at ``index``: 0 for the first, None if it was dropped."""
        place = index - 1 - self.dropped
        if index == 0:
            return 0
        return self.entries[place].position if place >= 0 else None

    def drop(self, number: int) -> None:
        """Drop the oldest entries in memory, ``number`` of them."""
        if number <= 0:
            return
        self._dropped_weight += self.size_until(self.dropped + number) - self.size_until(self.dropped)
        self._dropped_weight += ENTRY_WEIGHT * number
        del self.entries[:number]
        self.dropped += number
        if self.counted:
            # Exactly, because a log that can be cut does not grow any more.
            self.count(self.weight)

    def start_counting(self, owner: CountedLog) -> None:
        """Count the log in the memory of all logs, as one of ``owner``, until ``stop_counting`` is called."""
        self.memory.logs.add(owner)
        self.count()

    def count(self, counted: int | None = None) -> None:
        """Count these bytes in the memory of all logs, by default the weight of the log, rounded up."""
        if counted is None:
            weight = self.size + ENTRY_WEIGHT * self.length - self._dropped_weight
            counted = (weight // COUNTED_BYTES + 1) * COUNTED_BYTES
        change, self.counted = counted - self.counted, counted
        self._counted_until = counted + self._dropped_weight
        # Last, because it can have the log cut.
        self.memory.add(change)

    def stop_counting(self, owner: CountedLog) -> None:
        """Do not count the log any more."""
        self.memory.logs.discard(owner)
        self.memory.add(-self.counted)
        self.counted, self._counted_until = 0, _NEVER


def _text_size(event: Event) -> int:
    # Not a ``match``: each class that is not the event's takes as long as a call.
    if type(event) is TextDelta or type(event) is ReasoningDelta or type(event) is RefusalDelta:
        return len(event.text)
    if type(event) in _WITHOUT_TEXT:
        return 0
    return sum([len(value) for value in astuple(event) if type(value) is str])
