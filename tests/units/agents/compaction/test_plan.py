"""Plans of compactions: the mildest one that frees enough."""

from __future__ import annotations

import random

import pytest

from proxy.agents.compaction.context_view import cut_of, is_group_start, view_of
from proxy.agents.compaction.plan import KnownCuts, Plan, compaction_of, plan_compaction
from proxy.agents.compaction.size import items_tokens
from proxy.messages import Compaction, Item, UserMessage
from tests.units.agents.compaction.test_context_view import answer, call, user

NONE = KnownCuts({}, ())


def plan(items: list[Item], limit: int, *, fixed: int = 0, known: KnownCuts = NONE) -> Plan | None:
    cut = cut_of(items)
    before = fixed + items_tokens(view_of(items, (), cut).items)
    return plan_compaction(items, cut, known, fixed=fixed, before=before, limit=limit)


def applied(items: list[Item], created: Plan, summary: str = "S") -> list[Item]:
    text = summary if created.covered else ""
    compaction = compaction_of(items, created, has_summary=bool(text))
    return [*items, Item(UserMessage(content=text), agent="a", visible=False, compaction=compaction)]


def test_old_results_are_shortened_first() -> None:
    items = [item for n in range(10) for item in (user(str(n)), *call(f"c{n}", "x" * 3000), answer("ok"))]

    created = plan(items, 8000)

    assert created is not None
    assert created.covered == ()
    assert created.tokens_after < 0.7 * 8000


def test_whole_turns_are_summarised_if_results_are_not_enough() -> None:
    items = [item for n in range(20) for item in (user("q" * 600), answer("a" * 600))]

    created = plan(items, 4000)

    assert created is not None
    assert isinstance(items[created.retained_from].message, UserMessage)
    assert created.covered == items[1 : created.retained_from]
    view = view_of(applied(items, created), (), cut_of(applied(items, created)))
    assert items_tokens(view.items) < 0.6 * 4000


def test_nothing_can_be_planned_for_one_long_message() -> None:
    assert plan([user("x" * 90_000)], 4000) is None
    assert plan([], 4000) is None


def test_a_known_summary_that_fits_is_preferred() -> None:
    items = [item for n in range(20) for item in (user("q" * 600), answer("a" * 600))]

    created = plan(items, 4000, known=KnownCuts({30: "known"}, ()))

    assert created is not None
    assert (created.retained_from, created.summary, created.covered) == (30, "known", ())


def test_a_known_summary_that_does_not_fit_is_not_used() -> None:
    items = [item for n in range(20) for item in (user("q" * 600), answer("a" * 600))]

    created = plan(items, 4000, known=KnownCuts({2: "known"}, ()))

    assert created is not None
    assert created.covered


@pytest.mark.parametrize("seed", range(20))
def test_every_plan_keeps_groups_whole_and_is_what_the_stored_form_gives(seed: int) -> None:
    chance = random.Random(seed)
    items: list[Item] = []
    for n in range(chance.randrange(3, 40)):
        items.append(user("q" * chance.randrange(1500)))
        for step in range(chance.randrange(4)):
            items += call(f"c{n}.{step}", "r" * chance.randrange(6000))
        if chance.random() < 0.8:
            items.append(answer("a" * chance.randrange(900)))

    limit = chance.randrange(1500, 6000)
    created = plan(items, limit)

    if created is None:
        return
    stored = applied(items, created)
    cut = cut_of(stored)
    assert cut is not None
    assert cut.whole == created.whole
    if created.covered:
        assert cut.retained_from == created.retained_from
        assert created.retained_from == len(items) or is_group_start(items, created.retained_from)
    after = items_tokens(view_of(stored, (), cut).items)
    assert after < items_tokens(items)


def test_the_user_message_of_a_summarised_turn_is_part_of_the_next_summary() -> None:
    first, turn = user("first"), user("the task")
    items = [first, answer("ok"), turn, *call("c1", "r"), *call("c2", "r")]
    items.append(
        Item(
            UserMessage(content="S"),
            agent="a",
            visible=False,
            compaction=Compaction(retained_from=1, whole=1),
        )
    )
    items += [answer("done"), *(item for n in range(20) for item in (user("q" * 600), answer("a" * 600)))]

    created = plan(items, 4000)

    assert created is not None
    assert created.covered[0] is turn
    assert first not in created.covered
