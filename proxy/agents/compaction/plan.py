"""Plan a compaction: which tool results are shortened, and which messages a summary replaces.

The mildest plan that frees enough is taken. Tool results before the newest messages are shortened first. Then a summary
replaces the oldest whole turns, then results of the current turn are shortened, then its oldest steps are summarised.
After a plan the context has room for many turns, because every compaction changes the beginning of the prompt, and
providers cache the beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate

from msgspec import Struct

from proxy.agents.compaction.context_view import Cut, is_group_start, shortened
from proxy.agents.compaction.size import item_tokens, text_tokens
from proxy.messages import Compaction, Item, UserMessage

SHORT = 1000
"""Characters of a shortened tool result."""
_NEWEST_CAPS = (16_000, 4_000, SHORT)
"""Characters of tool results if even the newest ones have to be shortened."""
_WHOLE_SHARE = 0.3
"""Part of the limit up to which the newest tool results stay complete."""
_SUMMARY_SHARE = 0.1
_MAX_SUMMARY_TOKENS = 4_000
_MIN_SUMMARY_TOKENS = 100
_LEAST_GAIN = 0.95
"""A plan has to reduce the context at least to this part."""


class Plan(Struct, frozen=True):
    """A compaction to carry out. ``retained_from`` and ``whole`` are positions in the list of all items."""

    retained_from: int
    whole: int
    shortened_to: int
    tokens_after: int
    covered: Sequence[Item] = ()
    """The items that a new summary has to replace, together with the present one; empty for no new summary."""
    summary: str = ""
    """A known summary of everything before ``retained_from``, instead of a new one."""


class _Candidate(Struct, frozen=True):
    retained_from: int
    whole: int
    share: float
    """It is taken if its size is at most this part of the limit."""
    cap: int = SHORT
    summary: str = ""


def summary_tokens(limit: int) -> int:
    """Return how long a summary may be."""
    return max(_MIN_SUMMARY_TOKENS, min(int(limit * _SUMMARY_SHARE), _MAX_SUMMARY_TOKENS))


def compaction_of(items: Sequence[Item], plan: Plan, *, has_summary: bool) -> Compaction:
    """Return the stored form of a plan, for an item behind all ``items``."""
    starts = group_starts(items)
    return Compaction(
        retained_from=sum(start >= plan.retained_from for start in starts) if has_summary else None,
        whole=sum(start >= plan.whole for start in starts),
        shortened_to=plan.shortened_to,
    )


class KnownCuts(Struct, frozen=True):
    """Compactions of other turns with the same beginning, by the position of a group."""

    summaries: Mapping[int, str]
    shortened: Collection[int]


def plan_compaction(
    items: Sequence[Item], cut: Cut | None, known: KnownCuts, *, fixed: int, before: int, limit: int
) -> Plan | None:
    """Return the plan that brings the context below ``limit`` tokens, or as close as possible; None if none helps.

    ``fixed`` is the size of instructions and tools, ``before`` the present size of the whole context. A known
    compaction that fits is preferred to a new one.
    """
    groups = _Groups(items, cut or Cut(), fixed=fixed, before=before, limit=limit)
    if (candidate := groups.known(known)) is not None:
        size = groups.size(candidate)
        if size <= candidate.share * limit:
            return groups.plan(candidate, size)
    best: tuple[int, _Candidate] | None = None
    for candidate in groups.candidates():
        size = groups.size(candidate)
        if size <= candidate.share * limit:
            best = size, candidate
            break
        if best is None or size < best[0]:
            best = size, candidate
    if best is None or best[0] > before * _LEAST_GAIN:
        return None
    return groups.plan(best[1], best[0])


def group_starts(items: Sequence[Item]) -> list[int]:
    """Return where the groups begin."""
    starts = [at for at in range(len(items)) if is_group_start(items, at)]
    if starts:
        # Results and instructions at the beginning belong to the first group.
        starts[0] = 0
    return starts


class _Groups:
    """The items in groups, with the sizes that they have complete and shortened."""

    def __init__(self, items: Sequence[Item], cut: Cut, *, fixed: int, before: int, limit: int) -> None:
        self._items = items
        self._cut = cut
        self._fixed = fixed
        self._limit = limit
        self._starts = group_starts(items)
        self._count = len(self._starts)
        self._ends = [*self._starts[1:], len(items)][: self._count]
        users = [at for at, start in enumerate(self._starts) if self._is_user(start)]
        self._users = users
        self._turn = users[-1] if users else 0
        self._retained_from = self._group_at(cut.retained_from) if cut.summary else 0
        self._whole = self._group_at(cut.whole)
        full = [item_tokens(item) if item.compaction is None else 0 for item in items]
        self._full = self._sums(full)
        self._short: dict[int, list[int]] = {}
        raw = self._raw(self._retained_from, self._whole, cut.shortened_to, text_tokens(cut.summary))
        self._ratio = before / raw if raw else 1.0

    def candidates(self) -> Iterator[_Candidate]:
        """Yield candidates, the mildest first."""
        retained_from, turn, last = self._retained_from, self._turn, self._count - 1
        if last < 0:
            return
        whole = self._first_whole()
        yield _Candidate(retained_from, whole, 0.7)
        for start in self._users:
            if start > retained_from and self._covers_something(start):
                yield _Candidate(start, max(whole, start), 0.5)
        deepest = turn if turn > retained_from and self._covers_something(turn) else retained_from
        yield _Candidate(deepest, max(turn, whole), 0.7)
        yield _Candidate(deepest, max(last, whole), 0.7)
        for start in range(max(turn, retained_from) + 1, self._count):
            if self._covers_something(start):
                yield _Candidate(start, max(whole, start), 0.6)
                deepest = start
        yield _Candidate(deepest, max(last, whole), 0.9)
        for cap in _NEWEST_CAPS:
            yield _Candidate(deepest, self._count, 0.95, cap)

    def known(self, known: KnownCuts) -> _Candidate | None:
        """Return the candidate of the newest known compaction behind the present one."""
        places = {start: group for group, start in enumerate(self._starts)}
        retained_from = max(
            (places[at] for at in known.summaries if places[at] > self._retained_from),
            default=self._retained_from,
        )
        whole = max((places[at] for at in known.shortened), default=0)
        whole = max(whole, retained_from, self._whole)
        if retained_from == self._retained_from and whole == self._whole:
            return None
        summary = known.summaries[self._starts[retained_from]] if retained_from > self._retained_from else ""
        return _Candidate(retained_from, whole, 1.0, summary=summary)

    def size(self, candidate: _Candidate) -> int:
        """Return the estimated size of the whole context after a candidate."""
        summary = text_tokens(candidate.summary or self._cut.summary)
        if candidate.retained_from > self._retained_from and not candidate.summary:
            summary = summary_tokens(self._limit)
        return int(self._raw(candidate.retained_from, candidate.whole, candidate.cap, summary) * self._ratio)

    def plan(self, candidate: _Candidate, size: int) -> Plan:
        """Return the candidate as a plan."""
        has_new_summary = candidate.retained_from > self._retained_from
        begin = self._start_of(self._retained_from) if self._cut.summary else 0
        end = self._start_of(candidate.retained_from)
        pinned = {id(self._items[self._starts[at]]) for at in self._pinned(candidate.retained_from)}
        # The present summary does not have the user message of the turn that it ends in.
        not_summarised = (
            [self._items[self._starts[at]] for at in self._pinned(self._retained_from)] if begin else []
        )
        covered = [
            shortened(item, SHORT)
            for item in (*not_summarised, *self._items[begin:end])
            if item.compaction is None and id(item) not in pinned
        ]
        return Plan(
            retained_from=end if has_new_summary or self._cut.summary else 0,
            whole=self._start_of(candidate.whole),
            shortened_to=candidate.cap,
            tokens_after=size,
            covered=covered if has_new_summary and not candidate.summary else (),
            summary=candidate.summary,
        )

    # --- sizes ---

    def _raw(self, retained_from: int, whole: int, cap: int, summary: int) -> int:
        whole = max(whole, retained_from)
        short = self._short_sums(cap)
        tokens = (
            self._fixed
            + summary
            + (short[whole] - short[retained_from])
            + (self._full[-1] - self._full[whole])
        )
        return tokens + sum(self._full[at + 1] - self._full[at] for at in self._pinned(retained_from))

    def _pinned(self, retained_from: int) -> list[int]:
        """Return the groups before this one that stay: the first user message and that of a turn in progress."""
        before = [at for at in self._users if at < retained_from]
        if not before:
            return []
        is_turn_start = retained_from < self._count and self._is_user(self._starts[retained_from])
        return before[:1] if is_turn_start else sorted({before[0], before[-1]})

    def _covers_something(self, retained_from: int) -> bool:
        """Whether a summary up to this group replaces more than what stays."""
        return retained_from - self._retained_from > len(
            [at for at in self._pinned(retained_from) if at >= self._retained_from]
        )

    def _first_whole(self) -> int:
        """Return the group from which on tool results stay complete, at the latest that of the current turn."""
        budget = self._limit * _WHOLE_SHARE / (self._ratio or 1.0)
        whole = self._turn
        while whole > 0 and self._full[-1] - self._full[whole - 1] <= budget:
            whole -= 1
        return max(whole, self._whole)

    def _short_sums(self, cap: int) -> list[int]:
        if cap not in self._short:
            sizes = [
                item_tokens(shortened(item, cap)) if item.compaction is None else 0 for item in self._items
            ]
            self._short[cap] = self._sums(sizes)
        return self._short[cap]

    def _sums(self, sizes: Sequence[int]) -> list[int]:
        """Return the sums of the sizes up to each group."""
        groups = (sum(sizes[start:end]) for start, end in zip(self._starts, self._ends, strict=True))
        return list(accumulate(groups, initial=0))

    # --- positions ---

    def _is_user(self, at: int) -> bool:
        return type(self._items[at].message) is UserMessage

    def _group_at(self, place: int) -> int:
        return sum(start < place for start in self._starts)

    def _start_of(self, group: int) -> int:
        return self._starts[group] if group < self._count else len(self._items)
