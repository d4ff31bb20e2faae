"""The turns that a process remembers."""

from __future__ import annotations

from proxy.events import Completed, Started, TextDelta
from proxy.messages import Usage
from proxy.turns.live import LiveTurn, LiveTurns


def finished(turn_id: str, *, characters: int = 1) -> LiveTurn:
    live = LiveTurn(turn_id)
    live.emit(Started(turn_id, "triage"))
    live.emit(TextDelta("x" * characters))
    live.emit(Completed("triage", "stop", Usage()))
    return live


async def test_only_the_newest_finished_turns_are_kept() -> None:
    turns = LiveTurns(keep_finished=2)

    for turn_id in ("a", "b", "c"):
        live = finished(turn_id)
        turns.add(live)
        turns.retire(live)

    assert [turn_id for turn_id in "abc" if turns.get(turn_id)] == ["b", "c"]
    assert len(turns) == 0


async def test_long_answers_are_kept_for_as_long_as_there_is_room() -> None:
    turns = LiveTurns(keep_weight=10_000)

    for turn_id, characters in (("a", 4_000), ("b", 4_000), ("c", 100), ("d", 50_000)):
        turns.retire(finished(turn_id, characters=characters))
        if turn_id == "c":
            assert [one for one in "abc" if turns.get(one)] == ["b", "c"]

    # One that is too large for the whole room is not kept either; all of them are in the store.
    assert [one for one in "abcd" if turns.get(one)] == []
    turns.retire(finished("e", characters=4_000))
    assert turns.get("e") is not None
