"""Progress of a turn, and the working times of its agents."""

from __future__ import annotations

import pytest

from proxy.events import (
    Completed,
    Entry,
    Event,
    Failed,
    Handoff,
    ModelCalled,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import Usage
from proxy.wire.events.feed import Feed
from proxy.wire.turn_summary import TurnSummary

STEPS = ("plan", "figures", "report")


def log(*events: tuple[float, Event]) -> list[Entry]:
    return [Entry(position, event, time) for position, (time, event) in enumerate(events, 1)]


def figures(*events: Event) -> list[int | None]:
    feed = Feed("t")
    frames = [frame for entry in log(*((0.0, event) for event in events)) for frame in feed.frames(entry)]
    return [frame.data.get("progress") for frame in frames]


DONE = Completed("report", "stop", Usage())


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (
            [Started("t", "plan", STEPS), Handoff("plan", "figures"), Handoff("figures", "report"), DONE],
            [0, 25, 50, 100],
        ),
        ([Started("t", "report", STEPS), TextDelta("More"), DONE], [0, 0, None, 100]),
        (
            [
                Started("t", "report", STEPS),
                Handoff("report", "figures"),
                Handoff("figures", "report"),
                Handoff("report", "figures"),
                Handoff("figures", "report"),
                DONE,
            ],
            [0, 25, 50, 50, 50, 100],
        ),
        ([Started("t", "desk", STEPS), Handoff("desk", "plan"), DONE], [0, 0, 100]),
        ([Started("t", "plan", STEPS), Handoff("plan", "figures"), Failed("x", "y", Usage())], [0, 25, None]),
        ([Started("t", "plan"), Handoff("plan", "figures"), DONE], [None, None, None]),
    ],
    ids=[
        "a report",
        "a question about it",
        "to and fro",
        "by an agent that is not a step",
        "a failure",
        "no steps",
    ],
)
def test_a_step_is_done_when_its_agent_hands_over(events: list[Event], expected: list[int | None]) -> None:
    assert figures(*events) == expected


WORK = log(
    (10.0, Started("t", "triage", ("triage", "sales"))),
    (11.0, ModelCalled("triage", "quick", Usage(5, 1), 0.9, cost=0.5)),
    (11.5, Handoff("triage", "sales")),
    (12.0, ModelCalled("sales", "large", Usage(7, 2), 0.4)),
    (12.1, ToolStarted("c1", "find", "{}", "sales")),
    (12.1, ToolStarted("c2", "find", "{}", "sales")),
    (12.6, ToolCompleted("c1", "find", "x", 0.5)),
    (13.1, ToolFailed("c2", "find", "x", 1.0)),
    (14.0, TextDelta("There")),
    (15.0, TextDelta(" it is")),
    (16.0, ModelCalled("sales", "large", Usage(9, 3), 2.5, cost=1.0)),
    (16.5, Completed("sales", "stop", Usage(21, 6))),
)


def test_a_log_has_the_working_time_of_each_agent() -> None:
    course = TurnSummary(WORK, now=99.0)

    assert course.agents == [
        {
            "agent": "triage",
            "seconds": 1.5,
            "model_calls": 1,
            "model_seconds": 0.9,
            "tool_calls": 0,
            "tool_seconds": 0.0,
        },
        {
            "agent": "sales",
            "seconds": 5.0,
            "model_calls": 2,
            "model_seconds": 2.9,
            "tool_calls": 2,
            "tool_seconds": 1.5,
        },
    ]
    assert (course.agent, course.first_text_at, course.progress.percent) == ("sales", 14.0, 100)
    uses = {names: (use.calls, use.usage, use.seconds, use.cost) for names, use in course.uses.items()}
    assert uses == {
        ("triage", "quick"): (1, Usage(5, 1), 0.9, 0.5),
        ("sales", "large"): (2, Usage(16, 5), 2.9, None),
    }


def test_the_active_agent_has_worked_until_now() -> None:
    course = TurnSummary(WORK[:4], now=20.0)

    assert [did["seconds"] for did in course.agents] == [1.5, 8.5]
    assert (course.first_text_at, course.progress.percent) == (None, 33)
    assert TurnSummary([], now=20.0).agents == []
