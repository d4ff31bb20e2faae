from __future__ import annotations

from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns


def test_conversation_has_a_turn_until_the_last_one_has_ended_or_could_not_begin() -> None:
    lives = LiveTurns()
    first, second = LiveTurn("a", conversation_id="chat"), LiveTurn("b", conversation_id="chat")
    other = LiveTurn("c", conversation_id="other")
    for live in (first, second, other):
        lives.add(live)

    lives.remove(first)
    assert lives.has_turn_of("chat")
    lives.retire(second)
    assert not lives.has_turn_of("chat")
    lives.remove(second)
    assert lives.has_turn_of("other")
    lives.retire(other)
    assert not lives.has_turn_of("other")


def test_turn_that_is_registered_again_counts_once() -> None:
    lives = LiveTurns()
    lives.add(LiveTurn("a", conversation_id="chat"))
    again = LiveTurn("a", conversation_id="chat")
    lives.add(again)

    lives.retire(again)

    assert not lives.has_turn_of("chat")
