"""The share of chunks in time, of which the benchmark computes how many streams a server holds."""

from __future__ import annotations

from collections.abc import Sequence

from bench.capacity import share_in_time
from bench.client import Answer

PAUSE = 0.5


def answer(times: Sequence[float]) -> Answer:
    """Return an answer with a word at each of the times, in seconds."""
    return Answer(words=len(times), arrivals=[(at, number + 1) for number, at in enumerate(times)])


def on_schedule(start: float, count: int = 10) -> list[float]:
    return [start + number * PAUSE for number in range(count)]


def test_streams_on_schedule_are_in_time() -> None:
    assert share_in_time([answer(on_schedule(0.0)), answer(on_schedule(1.0))], PAUSE) == 1.0


def test_only_the_time_in_which_all_streams_run_counts() -> None:
    # The second stream begins at 2.0, and the first ends at 4.5.
    late_before, late_after = on_schedule(0.0), on_schedule(2.0)
    late_before[1] += 0.25
    late_after[-1] += 0.25
    assert share_in_time([answer(late_before), answer(late_after)], PAUSE) == 1.0


def test_late_chunks_count_in_that_time() -> None:
    late = on_schedule(0.0)
    late[4] += 0.25
    # Five words of each stream are due between 2.0 and 4.5, and one more at each of the limits.
    assert share_in_time([answer(late), answer(on_schedule(2.0))], PAUSE) == 11 / 12


def test_words_that_arrive_together_are_late_but_for_the_last() -> None:
    together = Answer(words=4, arrivals=[(0.0, 1), (1.5, 4)])
    assert share_in_time([together], PAUSE) == 2 / 4


def test_no_chunk_is_in_time_if_the_streams_never_ran_together() -> None:
    assert share_in_time([answer(on_schedule(0.0)), answer(on_schedule(10.0))], PAUSE) == 0.0
