"""Readers that resume a stream after another worker has taken over the turn."""

from __future__ import annotations

import json

import pytest

from proxy.events import TAKEOVER_POSITIONS, Completed, Entry, Event, Handoff, Started, TextDelta
from proxy.messages import Usage
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.stream import ChunkEncoder
from proxy.wire.events.feed import Feed
from proxy.wire.events.takeover import CLOSING_POSITION, ResumedEncoder, lost_from
from proxy.wire.responses.options import ResponseOptions
from proxy.wire.responses.stream import ResponseEncoder

EVENTS: list[Event] = [
    Started("chatcmpl-1", "triage"),
    Handoff("triage", "sales"),
    TextDelta("Hello "),
    TextDelta("again"),
    Completed("sales", "stop", Usage(1, 1)),
]
LOG = [
    Entry(index + (TAKEOVER_POSITIONS if index > 2 else 0), event, 1_800_000_000.0)
    for index, event in enumerate(EVENTS, 1)
]
"""The second worker has continued after the second event."""


@pytest.mark.parametrize(
    ("position", "seen", "lost"),
    [
        (3, 2, None),
        (TAKEOVER_POSITIONS + 3, 2, None),
        (TAKEOVER_POSITIONS + 3, 1, None),
        (TAKEOVER_POSITIONS + 3, 3, 2),
        (TAKEOVER_POSITIONS + 4, TAKEOVER_POSITIONS + 3, None),
        (2 * TAKEOVER_POSITIONS + 3, TAKEOVER_POSITIONS + 3, 2),
        (CLOSING_POSITION, 7, None),
    ],
)
def test_events_behind_the_checkpoint_are_lost(position: int, seen: int, lost: int | None) -> None:
    assert lost_from(position, seen) == lost


def chunks(after: int) -> str:
    options = AnswerOptions(id="chatcmpl-1", created=0, model="shop")
    encoder = ResumedEncoder(ChunkEncoder(options, after=(after, 0), has_ids=True), after=(after, 0))
    return b"".join(map(encoder.encode, LOG)).decode()


@pytest.mark.parametrize("after", [1, 2, TAKEOVER_POSITIONS + 4])
def test_a_stream_resumed_at_a_valid_event_continues(after: int) -> None:
    text = chunks(after)

    assert '"finish_reason":"stop"' in text
    assert '"error"' not in text
    assert ("Hello " in text) == (after < TAKEOVER_POSITIONS)


def test_a_stream_resumed_at_a_lost_event_ends_with_an_error() -> None:
    text = chunks(5)

    assert '"code":"turn_taken_over"' in text
    assert "Hello" not in text
    assert text.count("data: [DONE]") == 1


def test_the_feed_names_the_last_valid_event() -> None:
    feed = Feed("chatcmpl-1")
    frames = [frame for entry in LOG for frame in feed.frames(entry)]

    (resumed,) = [frame for frame in frames if frame.type == "turn.resumed"]
    assert (resumed.position, resumed.part, resumed.data) == (TAKEOVER_POSITIONS + 3, 0, {"after": 2})


def response_events(after: int) -> list[str]:
    encoder = ResponseEncoder(ResponseOptions(id="chatcmpl-1", created=0, model="shop"), after=after)
    lines = b"".join(map(encoder.encode, LOG)).decode().splitlines()
    return [json.loads(line.removeprefix("data: "))["type"] for line in lines if line.startswith("data: ")]


def test_a_response_resumed_at_a_lost_event_fails() -> None:
    assert response_events(-1)[-1] == "response.completed"
    assert response_events(0)[-1] == "response.completed"
    assert response_events(9)[-1] == "response.failed"
    assert response_events(9).count("response.failed") == 1
