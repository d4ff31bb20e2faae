from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.loop_watchdog import INTERVAL, THRESHOLD, LoopWatchdog
from proxy.metrics import Metrics

LONG = 30.0


class _Log(logging.Handler):
    """Records what the watchdog logs, and lets the loop wait for its end of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.ended = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if "no longer" in record.getMessage():
            self.ended.set()


@pytest.fixture
def log() -> _Log:
    return _Log()


@pytest.fixture(autouse=True)
def logging_to_it(log: _Log) -> Iterator[None]:
    logger = logging.getLogger("proxy.loop_watchdog")
    logger.addHandler(log)
    yield
    logger.removeHandler(log)


def block_until(event: threading.Event, text: str) -> bool:
    """Block the event loop; the text stands for a message that must not be logged."""
    return bool(text) and event.wait(LONG)


async def test_a_block_is_reported_while_it_lasts_with_its_stack(log: _Log) -> None:
    metrics = Metrics(teams=(), models=(), tools=())
    counted = threading.Event()

    def on_blocked() -> None:
        metrics.loop_blocked()
        counted.set()

    watchdog = LoopWatchdog(on_blocked=on_blocked)
    watchdog.start()
    try:
        # This blocks the loop: it continues only if the report arrives in the meantime.
        assert block_until(counted, "a private message")
        assert await asyncio.to_thread(log.ended.wait, LONG)
    finally:
        watchdog.close()

    blocked, ended = log.records[:2]
    assert (blocked.levelname, blocked.getMessage()) == ("WARNING", "the event loop is blocked")
    stack: list[str] = blocked.__dict__["stack"]
    here = Path(__file__).name
    assert any(here in line and line.endswith(" block_until") for line in stack)
    assert stack.index(next(line for line in stack if "block_until" in line)) > stack.index(
        next(line for line in stack if "test_a_block_is_reported" in line)
    )
    assert "a private message" not in str(blocked.__dict__)
    assert ended.__dict__["seconds"] >= blocked.__dict__["seconds"] >= 0.25
    assert b"loop_blocked_total " in metrics.exposition()
    assert b"loop_blocked_total 0.0" not in metrics.exposition()


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Driven:
    """A watchdog whose heartbeats and checks come at the times that a test sets."""

    def __init__(self) -> None:
        self.count = 0
        self.clock = _Clock()
        self.watchdog = LoopWatchdog(on_blocked=self._counted, clock=self.clock)
        self.watchdog.beat()
        self.watchdog.check()

    def _counted(self) -> None:
        self.count += 1

    def after(self, seconds: float) -> LoopWatchdog:
        self.clock.now += seconds
        return self.watchdog


@pytest.fixture
def driven(log: _Log) -> _Driven:
    created = _Driven()
    # The first heartbeat comes after a start that this test did not time.
    created.count = 0
    log.records.clear()
    return created


def test_one_block_is_one_report_however_often_it_is_checked(driven: _Driven, log: _Log) -> None:
    for _ in range(5):
        driven.after(0.26).check()
    driven.after(0).beat()
    driven.after(0).check()
    driven.after(INTERVAL).beat()
    driven.after(0).check()

    messages = [record.getMessage() for record in log.records]
    assert messages == ["the event loop is blocked", "the event loop is no longer blocked"]
    assert [record.__dict__["seconds"] for record in log.records] == [0.26, 1.3]
    assert driven.count == 1


@pytest.mark.parametrize("seconds", [0.251, 0.26, 0.3, 2.0])
def test_a_block_is_reported_even_if_the_thread_could_not_check_before_its_end(
    driven: _Driven, log: _Log, seconds: float
) -> None:
    driven.after(seconds).beat()
    driven.after(INTERVAL).beat()
    driven.after(0).check()

    assert [record.__dict__["seconds"] for record in log.records] == [seconds, seconds]
    assert log.records[0].__dict__["stack"] == []
    assert driven.count == 1


def test_shorter_delays_are_not_reported(driven: _Driven, log: _Log) -> None:
    for _ in range(3):
        driven.after(THRESHOLD - 0.001).check()
        driven.after(0).beat()

    assert (log.records, driven.count) == ([], 0)


@pytest.mark.parametrize("since_heartbeat", [0.0, 0.01, 0.2])
def test_the_next_check_comes_when_a_block_can_have_reached_the_threshold(
    driven: _Driven, since_heartbeat: float
) -> None:
    driven.after(0).beat()

    wait = driven.after(since_heartbeat).check()

    assert THRESHOLD < since_heartbeat + wait < THRESHOLD + 0.01


def test_two_blocks_are_two_reports(driven: _Driven, log: _Log) -> None:
    for _ in range(2):
        driven.after(0.3).check()
        driven.after(0.1).beat()
    driven.after(0).check()

    assert driven.count == 2
    assert [record.__dict__["seconds"] for record in log.records] == [0.3, 0.4, 0.3, 0.4]


async def test_close_ends_the_thread_and_the_heartbeat() -> None:
    watchdog = LoopWatchdog()
    before = threading.active_count()
    watchdog.start()
    assert threading.active_count() == before + 1

    watchdog.close()

    assert "loop watchdog" not in [thread.name for thread in threading.enumerate()]
