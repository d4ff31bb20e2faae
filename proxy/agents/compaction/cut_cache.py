"""Compactions of other turns with the same beginning, found by a digest of the messages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from proxy.agents.compaction.plan import KnownCuts, Plan, group_starts
from proxy.messages import Item, text_of

Scope = tuple[str, str]
"""The caller, and the model that writes the summaries."""
_MAX_ENTRIES = 256


class CutCache:
    """The newest compactions by a digest of the messages before them.

    Branches with the same beginning share a summary, and requests of a client that stores nothing do not need another
    one each time.
    """

    def __init__(self, max_entries: int = _MAX_ENTRIES) -> None:
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        self._max_entries = max_entries

    def known(self, items: Sequence[Item], scope: Scope) -> KnownCuts:
        """Return the compactions of beginnings of these items."""
        places = group_starts(items)
        digests = list(zip(places, _digests_at(items, places, scope), strict=True))
        found = {place: self._get(_summary_key(digest)) for place, digest in digests}
        shortened = [place for place, digest in digests if self._get(_shortened_key(digest)) is not None]
        return KnownCuts({place: text for place, text in found.items() if text}, shortened)

    def add(self, items: Sequence[Item], plan: Plan, summary: str, scope: Scope) -> tuple[bytes, bytes]:
        """Add a compaction of these items; return the digests of what it replaces and of what it shortens."""
        places = sorted({plan.retained_from, plan.whole})
        digests = dict(zip(places, _digests_at(items, places, scope), strict=True))
        replaced, shortened = digests[plan.retained_from], digests[plan.whole]
        if summary:
            self._put(_summary_key(replaced), summary)
        self._put(_shortened_key(shortened), "")
        return replaced, shortened

    def add_stored(self, items: Sequence[Item], stored: Sequence[Item], scope: Scope) -> bool:
        """Add the stored compactions of beginnings of these items; return whether there are any."""
        beginnings = {digest.hex(): digest for digest in _digests_at(items, group_starts(items), scope)}
        has_any = False
        for item in stored:
            compaction = item.compaction
            assert compaction is not None
            if (digest := beginnings.get(compaction.summary_digest)) is not None:
                self._put(_summary_key(digest), text_of(item.message))
                has_any = True
            if (digest := beginnings.get(compaction.shortened_digest)) is not None:
                self._put(_shortened_key(digest), "")
                has_any = True
        return has_any

    def _get(self, key: bytes) -> str | None:
        if key in self._texts:
            self._texts.move_to_end(key)
        return self._texts.get(key)

    def _put(self, key: bytes, text: str) -> None:
        self._texts[key] = text
        self._texts.move_to_end(key)
        while len(self._texts) > self._max_entries:
            self._texts.popitem(last=False)


def _summary_key(digest: bytes) -> bytes:
    return b"summary" + digest


def _shortened_key(digest: bytes) -> bytes:
    return b"shortened" + digest


def _digests_at(items: Sequence[Item], places: Sequence[int], scope: Scope) -> list[bytes]:
    """Return a digest of the items before each of the places, which are in order, and of the scope."""
    digest = blake2b(digest_size=16)
    for part in scope:
        digest.update(b"%d:%b" % (len(part), part.encode(errors="replace")))
    digests = []
    done = 0
    for place in places:
        for item in items[done:place]:
            if item.compaction is None or item.agent is None:
                digest.update(_encoded(item))
        done = place
        digests.append(digest.digest())
    return digests


def _encoded(item: Item) -> bytes:
    try:
        return msgspec.json.encode(item.message)
    except ValueError:
        # Half of a surrogate pair.
        return repr(item.message).encode(errors="replace")
