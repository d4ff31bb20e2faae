"""Cache of the fingerprints of long lists, so that a list that continues is hashed from its new messages on.

A client sends the whole conversation with each request: nearly all of it is what it sent before. Fingerprints are a
function of the scope and the messages, which are compared, so that an entry is never wrong or out of date. The size of
the texts that it holds is limited.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from sys import getsizeof

from msgspec import Struct

from proxy.message_lists import TextMessages
from proxy.messages import Message

MIN_MESSAGES = 32
"""Shorter lists are hashed in about the time that the comparison takes."""
_SAME = 8
"""Number of texts by which an entry is found. Of lists that begin with the same ones, the newest has the entry."""
_BYTES_PER_MESSAGE = 150
"""Of an entry, in addition to the characters: an object, its places in the lists, and half a fingerprint with its
index."""


class Beginning(Struct, frozen=True):
    """The first messages of a list, the last of which has a fingerprint, and all their fingerprints with indexes."""

    kinds: Sequence[type[Message]]
    texts: Sequence[str]
    boundaries: Sequence[tuple[int, bytes]]
    size: int
    """Bytes of memory."""


class KnownBeginnings:
    """The newest long lists that have only text, within ``max_bytes``."""

    def __init__(self, max_bytes: int = 8 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[bytes, int], Beginning] = OrderedDict()
        self.size = 0
        """Bytes of all entries."""

    def find(self, scope: bytes, messages: Sequence[Message], limit: int) -> Beginning | None:
        """Return what is known of the first messages, of at most ``limit`` of them; None if that is nothing."""
        if type(messages) is not TextMessages:
            return None
        known = self._entries.get(_key(scope, messages))
        return known if known is not None and _is_beginning(known, messages, limit) else None

    def add(
        self,
        scope: bytes,
        messages: Sequence[Message],
        limit: int,
        boundaries: Sequence[tuple[int, bytes]],
        known: Beginning | None,
    ) -> None:
        """Add the messages up to the last one within ``limit`` that has a fingerprint.

        ``boundaries`` are the fingerprints of all messages, ``known`` what ``find`` returned.
        """
        if type(messages) is not TextMessages:
            return
        end = len(boundaries)
        while end > 0 and boundaries[end - 1][0] >= limit:
            end -= 1
        length = boundaries[end - 1][0] + 1 if end > 0 else 0
        if length < MIN_MESSAGES:
            return
        before = len(known.texts) if known is not None else 0
        kinds, texts = messages.kinds[:length], messages.texts[:length]
        # Of all texts at once: the size of each would take as long as hashing it.
        size = getsizeof("".join(texts[before:])) + _BYTES_PER_MESSAGE * (length - before)
        if known is not None:
            size += known.size
        if size > self._max_bytes:
            return
        key = _key(scope, messages)
        if (replaced := self._entries.pop(key, None)) is not None:
            self.size -= replaced.size
        self._entries[key] = Beginning(kinds, texts, boundaries[:end], size)
        self.size += size
        while self.size > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.size -= oldest.size


def _key(scope: bytes, messages: TextMessages) -> tuple[bytes, int]:
    return scope, hash(tuple(messages.texts[:_SAME]))


def _is_beginning(known: Beginning, messages: TextMessages, limit: int) -> bool:
    length = len(known.texts)
    return (
        length <= limit and messages.texts[:length] == known.texts and messages.kinds[:length] == known.kinds
    )
