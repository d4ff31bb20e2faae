"""The log of a turn, compared with a list of its entries."""

from __future__ import annotations

import random
from itertools import repeat

import pytest

from proxy.events import (
    ClientToolArguments,
    Completed,
    Entry,
    Event,
    Handoff,
    ModelCalled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextBatch,
    TextDelta,
    ToolCompleted,
)
from proxy.messages import Usage
from proxy.turns.log_memory import ENTRY_WEIGHT, LogMemory
from proxy.turns.turn_log import BATCH_SIZE, COUNTED_BYTES, TurnLog

SIZES: list[tuple[Event, int]] = [
    (Started("turn", "triage"), 0),
    (TextDelta("ab"), 2),
    (TextDelta("abc", [{"token": "abc"}]), 3),
    (ReasoningDelta("abcd"), 4),
    (RefusalDelta("abcde"), 5),
    (ClientToolArguments(0, "abcdef"), 6),
    (ToolCompleted("c", "tool", "result", 0.5), 11),
    (Handoff("triage", "sales"), 11),
    (ModelCalled("triage", "model", Usage(), 0.5), 0),
    (Completed("triage", "stop", Usage()), 0),
]


@pytest.mark.parametrize(("event", "size"), SIZES)
def test_the_size_of_an_event_is_that_of_its_texts(event: Event, size: int) -> None:
    one, several = TurnLog(LogMemory()), TurnLog(LogMemory())

    assert one.append(event, 5.0) == Entry(1, event, 5.0)
    assert several.extend([event, event], repeat(5.0)) == [Entry(1, event, 5.0), Entry(2, event, 5.0)]

    assert (one.size, one.weight) == (size, size + ENTRY_WEIGHT)
    assert (several.size, several.weight) == (2 * size, 2 * (size + ENTRY_WEIGHT))
    assert [several.size_until(index) for index in range(3)] == [0, size, 2 * size]


@pytest.mark.parametrize("seed", range(20))
def test_sizes_and_batches_are_those_of_the_entries(seed: int) -> None:
    chance = random.Random(seed)
    memory = LogMemory()
    log, logged = TurnLog(memory), list[Entry]()
    log.count()
    ends = [0]

    def check() -> None:
        assert (log.size, log.length) == (ends[-1], len(logged))
        assert log.entries == logged[log.dropped :]
        assert log.weight == ends[-1] - ends[log.dropped] + ENTRY_WEIGHT * len(log.entries)
        assert 0 <= log.counted - log.weight <= COUNTED_BYTES
        assert memory.used == log.counted

    for step in range(chance.randrange(1, 40)):
        texts = ["x" * chance.choice((1, 20, BATCH_SIZE // 3)) for _ in range(chance.randrange(1, 5))]
        match chance.randrange(3):
            case 0:
                del texts[1:]
                logged.append(log.append(TextDelta(texts[0]), step))
            case 1:
                logged += log.extend(TextBatch.of(texts), repeat(step))
            case _:
                logged += log.extend(list(map(ReasoningDelta, texts)), map(float, range(len(texts))))
        for text in texts:
            ends.append(ends[-1] + len(text))
        check()
        # Sometimes only, because sizes are determined when they are needed.
        if chance.random() < 0.3:
            index = chance.randrange(len(ends))
            assert log.size_until(index) == ends[index]

    while len(log.entries) > 1:
        log.drop(chance.randrange(len(log.entries)))
        check()
    assert [entry.position for entry in logged] == list(range(1, len(logged) + 1))
    for index in range(len(logged)):
        end = log.batch_end(index)
        assert index < end <= len(logged)
        assert ends[end] - ends[index] <= BATCH_SIZE or end == index + 1
        assert end == len(logged) or ends[end + 1] - ends[index] > BATCH_SIZE
