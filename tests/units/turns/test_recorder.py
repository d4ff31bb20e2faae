"""``Recorder``: usage of a turn, and calls that the team leaves open."""

from __future__ import annotations

from proxy.events import (
    ContextCompacted,
    Event,
    ModelCalled,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import Usage
from proxy.turns.live import LiveTurn
from proxy.turns.recorder import Recorder
from proxy.turns.records import ModelUse


def test_usage_is_summed_by_agent_and_model_in_the_order_of_first_use() -> None:
    recorder = Recorder(LiveTurn("t"))
    summary = ModelCalled("sales", "small", Usage(prompt=100, completion=10), 0.1)
    for event in (
        ModelCalled("triage", "large", Usage(prompt=1, completion=2), 0.1),
        ModelCalled("sales", "large", None, 0.1),
        ContextCompacted("sales", "summarised", 900, 90, calls=(summary,)),
        ModelCalled("triage", "large", Usage(prompt=10, completion=20), 0.1),
    ):
        recorder.emit(event)

    assert recorder.uses == [
        ModelUse("triage", "large", 2, Usage(prompt=11, completion=22)),
        ModelUse("sales", "large", 1, Usage()),
        ModelUse("sales", "small", 1, Usage(prompt=100, completion=10)),
    ]
    assert recorder.usage == Usage(prompt=111, completion=32)


def test_events_are_forwarded_and_open_calls_are_closed_once() -> None:
    live = LiveTurn("t")
    recorder = Recorder(live)
    events: list[Event] = [
        ToolStarted("c1", "look_up", "{}", "sales"),
        ToolStarted("c2", "look_up", "{}", "sales"),
        ToolStarted("c3", "pay", "{}", "sales"),
        ToolCompleted("c1", "look_up", "a rocket", 0.1),
        ToolFailed("c2", "look_up", "error: none", 0.1),
        TextDelta("Hi"),
    ]
    for event in events:
        recorder.emit(event)

    recorder.close_open_calls()
    recorder.close_open_calls()

    closed = ToolFailed("c3", "pay", "the turn ended before the tool did", 0.0)
    assert [entry.event for entry in live.entries] == [*events, closed]
