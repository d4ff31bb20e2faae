"""The entries of one turn in memory: their positions and sizes, batches for readers, and the memory they take.

Readers, tasks and the end of a turn belong to ``live``. An index counts the entries from 0, trimmed ones included.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from proxy.events import (
    Cancelled,
    Completed,
    Entry,
    Event,
    ModelCalled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
)
from proxy.turns.log_memory import ENTRY_WEIGHT, LogMemory

BATCH_SIZE = 256 * 1024
"""Characters after which a batch for a reader ends. A slow reader holds one batch in memory."""
_BATCH_ENTRIES = 4096
COUNTED_BYTES = 4096
"""The memory of a log that grows is counted in multiples of this number, so that a short turn is counted once."""
_WITHOUT_TEXT: frozenset[type[Event]] = frozenset((Started, ModelCalled, Completed, Cancelled))
"""Events whose texts are only names."""


class TurnLog:
    """Entries in the order in which they were logged; the oldest ones may be dropped."""

    __slots__ = ("_memory", "_sizes", "counted", "dropped", "entries", "length", "offset", "size", "weight")

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
        self.weight = 0
        """Estimated memory of the entries, in bytes."""
        self.counted = 0
        """Bytes of it that are counted in the memory of all logs; 0 while it is not counted there."""
        self._sizes: list[int] = []
        """By index of an entry: the characters up to its end."""
        self._memory = memory

    def extend(
        self, events: Iterable[Event], times: Iterable[float], position: int | None = None
    ) -> list[Entry]:
        """Append events with their times; return their entries. ``position`` is that of the first one."""
        added: list[Entry] = []
        size, sizes = self.size, self._sizes
        if position is None:
            position = self.length + self.offset
        # The times may be endless.
        for event, at in zip(events, times, strict=False):
            added.append(Entry(position, event, at))
            position += 1
            # Not a ``match``: each class that is not the event's takes as long as a call.
            if type(event) is TextDelta or type(event) is ReasoningDelta or type(event) is RefusalDelta:
                size += len(event.text)
            elif type(event) not in _WITHOUT_TEXT:
                size += _text_size(event)
            sizes.append(size)
        self.entries += added
        self.length += len(added)
        self.weight += size - self.size + ENTRY_WEIGHT * len(added)
        self.size = size
        if self.weight > self.counted > 0:
            self.count()
        return added

    def read(self, index: int) -> Sequence[Entry] | None:
        """Return the next batch from ``index`` on; None if some of it was dropped."""
        start = index - self.dropped
        if start < 0:
            return None
        if self.length - index <= 1 or (self.size <= BATCH_SIZE and self.length <= _BATCH_ENTRIES):
            # Nearly always: the reader keeps up with the writer, or the whole log is less than a batch.
            return self.entries[start:]
        return self.entries[start : self.batch_end(index) - self.dropped]

    def batch_end(self, index: int) -> int:
        """Return the index after the batch that begins at ``index``."""
        end = bisect_right(self._sizes, self.size_until(index) + BATCH_SIZE, lo=index)
        return min(max(end, index + 1), index + _BATCH_ENTRIES, self.length)

    def size_until(self, index: int) -> int:
        """Return the number of characters of the entries before ``index``."""
        return self._sizes[index - 1] if index else 0

    def position_before(self, index: int) -> int | None:
        """Return the position of the entry before the one at ``index``: 0 for the first, None if it was dropped."""
        place = index - 1 - self.dropped
        if index == 0:
            return 0
        return self.entries[place].position if place >= 0 else None

    def drop(self, count: int) -> None:
        """Drop the ``count`` oldest of the entries in memory."""
        if count <= 0:
            return
        before = self.size_until(self.dropped)
        del self.entries[:count]
        self.dropped += count
        self.weight -= self.size_until(self.dropped) - before + ENTRY_WEIGHT * count
        if self.counted:
            # Exactly, because a log that can be cut does not grow any more.
            change, self.counted = self.weight - self.counted, self.weight
            self._memory.add(change)

    def count(self) -> None:
        """Count the log in the memory of all logs, until ``stop_counting`` is called."""
        counted = (self.weight // COUNTED_BYTES + 1) * COUNTED_BYTES
        change, self.counted = counted - self.counted, counted
        self._memory.add(change)

    def stop_counting(self) -> None:
        """Do not count the log any more."""
        change, self.counted = -self.counted, 0
        self._memory.add(change)


def _text_size(event: Event) -> int:
    size = 0
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, str):
            size += len(value)
    return size
