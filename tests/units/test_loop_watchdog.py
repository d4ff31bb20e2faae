from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.loop_watchdog import LoopWatchdog
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
        # The loop itself waits here: it goes on only if the report comes while it is blocked.
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
    assert ended.__dict__["seconds"] >= blocked.__dict__["seconds"] > 0.25
    assert b"loop_blocked_total " in metrics.exposition()
    assert b"loop_blocked_total 0.0" not in metrics.exposition()


async def test_one_block_is_one_report(log: _Log) -> None:
    counted = threading.Event()
    watchdog = LoopWatchdog(on_blocked=counted.set)
    watchdog.start()
    try:
        assert block_until(counted, "still blocked")
        # The block goes on for several checks of the thread.
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
        assert await asyncio.to_thread(log.ended.wait, LONG)
    finally:
        watchdog.close()

    messages = [record.getMessage() for record in log.records[:2]]
    assert messages == ["the event loop is blocked", "the event loop is no longer blocked"]
    assert log.records[1].__dict__["seconds"] > 0.7


async def test_close_ends_the_thread_and_the_heartbeat() -> None:
    watchdog = LoopWatchdog()
    before = threading.active_count()
    watchdog.start()
    assert threading.active_count() == before + 1

    watchdog.close()

    assert "loop watchdog" not in [thread.name for thread in threading.enumerate()]
