"""Compactions that are found by the messages before them."""

from __future__ import annotations

from proxy.agents.compaction.cut_cache import CutCache
from proxy.agents.compaction.plan import KnownCuts, Plan
from proxy.messages import Compaction, Item, UserMessage
from tests.units.agents.compaction.test_context_view import answer, user

SCOPE = ("caller", "model")
ITEMS = [item for n in range(4) for item in (user(str(n)), answer("ok"))]
PLAN = Plan(retained_from=4, whole=6, shortened_to=1000, tokens_after=10)
NONE = KnownCuts({}, [])


def test_a_compaction_is_known_to_branches_with_the_same_beginning() -> None:
    cache = CutCache()
    cache.add(ITEMS, PLAN, "summary", SCOPE)

    assert cache.known([*ITEMS[:7], user("another branch")], SCOPE) == KnownCuts({4: "summary"}, [6])
    assert cache.known([user("another beginning"), *ITEMS[1:]], SCOPE) == NONE


def test_a_compaction_belongs_to_its_caller_and_model() -> None:
    cache = CutCache()
    cache.add(ITEMS, PLAN, "summary", SCOPE)

    assert cache.known(ITEMS, ("another caller", "model")) == NONE
    assert cache.known(ITEMS, ("caller", "another model")) == NONE


def test_stored_compactions_are_found_by_their_digests() -> None:
    replaced, shortened = CutCache().add(ITEMS, PLAN, "summary", SCOPE)
    compaction = Compaction(summary_digest=replaced.hex(), shortened_digest=shortened.hex())
    stored = [Item(UserMessage("summary"), agent="triage", visible=False, compaction=compaction)]
    cache = CutCache()

    assert not cache.add_stored([user("another beginning"), *ITEMS[1:]], stored, SCOPE)
    assert cache.known(ITEMS, SCOPE) == NONE
    assert cache.add_stored(ITEMS, stored, SCOPE)
    assert cache.known(ITEMS, SCOPE) == KnownCuts({4: "summary"}, [6])


def test_the_entry_that_was_not_used_for_the_longest_time_is_removed() -> None:
    cache, other = CutCache(max_entries=4), [user("x"), answer("y"), *ITEMS]
    cache.add(ITEMS, PLAN, "first", SCOPE)
    cache.add(other, PLAN, "second", SCOPE)
    cache.known(ITEMS, SCOPE)

    cache.add([user("z"), *other], PLAN, "third", SCOPE)

    assert cache.known(ITEMS, SCOPE) == KnownCuts({4: "first"}, [6])
    assert cache.known(other, SCOPE) == NONE
