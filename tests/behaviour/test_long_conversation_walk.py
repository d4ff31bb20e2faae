"""A short random walk over a long conversation; ``make walk`` runs one of 2,000 turns."""

from __future__ import annotations

from pathlib import Path

from tests.behaviour.long_walk import walk


async def test_a_random_walk_keeps_calls_facts_and_most_of_each_prompt(tmp_path: Path) -> None:
    measured, provider = await walk(tmp_path, turns=40, window=2500, branches=3)

    assert measured.compactions > 3
    assert provider.rejected == []
    assert provider.violations == []
    assert measured.missing_facts == 0
    assert min(measured.shares) >= 0.8
