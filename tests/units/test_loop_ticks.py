from __future__ import annotations

import pytest

from proxy.loop_ticks import TICK, next_tick


@pytest.mark.parametrize("early", [0.0, 0.0005, 0.001])
def test_a_timer_that_rings_early_does_not_ring_again_for_the_same_tick(early: float) -> None:
    due = next_tick(1_000.0)

    assert next_tick(due - early) == due + TICK


@pytest.mark.parametrize("ticks", [1, 4])
def test_the_wait_is_no_longer_than_the_ticks(ticks: int) -> None:
    for step in range(1_000):
        now = 5_000.0 + step * 0.0007

        assert (ticks - 1) * TICK < next_tick(now, ticks) - now <= ticks * TICK + 0.0021


def test_work_with_other_intervals_has_common_times() -> None:
    now = 77.7

    assert next_tick(next_tick(now), 3) == next_tick(now, 4)
