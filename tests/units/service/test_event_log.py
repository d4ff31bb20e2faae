from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from proxy.events import (
    ClientToolArguments,
    ClientToolCall,
    Event,
    Failed,
    Handoff,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.log_config import configure_logging
from proxy.messages import Usage
from proxy.service.event_log import EventLog
from proxy.turns.live import LiveTurn

SECRET = "my secret\nline"
EVENTS: list[Event] = [
    Started("t1", "triage"),
    TextDelta(SECRET),
    ReasoningDelta(SECRET),
    RefusalDelta(SECRET),
    ToolStarted("c1", "look_up", SECRET, "triage"),
    ToolCompleted("c1", "look_up", SECRET, 0.25),
    ToolFailed("c2", "look_up", SECRET, 0.25),
    Handoff("triage", "sales", SECRET),
    ClientToolCall(0, "c3", "weather"),
    ClientToolArguments(0, SECRET),
    Failed("internal_error", SECRET, Usage()),
]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, stream = logging.getLogger(), logging.getLogger("stream_events")
    before = [(one, one.handlers[:], one.level, one.propagate) for one in (root, stream)]
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:] = handlers
        one.setLevel(level)
        one.propagate = propagate


async def logged(
    log: EventLog, level: str, capsys: pytest.CaptureFixture[str], *, is_enabled: bool = False
) -> list[str]:
    configure_logging(level, stream_events=is_enabled)
    live = LiveTurn("t1")
    live.listener = log.listener(live)
    for event in EVENTS:
        live.emit(event)
    return capsys.readouterr().err.splitlines()


async def test_every_event_is_a_line_without_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    lines = await logged(EventLog(), "DEBUG", capsys)

    form = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - STREAM - DEBUG - t1 (.+)")
    reported = [found[1] for line in lines if (found := form.fullmatch(line))]
    assert len(reported) == len(lines) == len(EVENTS) + 1
    assert reported[:3] == [
        "1.0 turn.started agent=triage {}",
        "2.0 agent.speaking agent=triage {}",
        '2.1 text.delta agent=triage {"text_length":14}',
    ]
    assert (
        '6.0 tool.completed agent=triage {"call_id":"c1","name":"look_up","result_length":14,"seconds":0.25}'
        in reported
    )
    assert "secret" not in "".join(lines)


async def test_text_is_logged_if_enabled(capsys: pytest.CaptureFixture[str]) -> None:
    lines = await logged(EventLog(with_text=True), "DEBUG", capsys)

    assert sum(r"my secret\nline" in line for line in lines) == 9
    assert len(lines) == len(EVENTS) + 1


async def test_nothing_is_written_at_other_levels(capsys: pytest.CaptureFixture[str]) -> None:
    assert await logged(EventLog(), "INFO", capsys) == []


@pytest.mark.parametrize("level", ["INFO", "WARNING", "ERROR"])
async def test_event_log_does_not_depend_on_the_log_level_if_enabled(
    capsys: pytest.CaptureFixture[str], level: str
) -> None:
    lines = await logged(EventLog(level=logging.INFO), level, capsys, is_enabled=True)

    assert len(lines) == len(EVENTS) + 1
    assert all(" - STREAM - INFO - t1 " in line for line in lines)
