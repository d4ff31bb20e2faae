"""What separates an answer from the assistant message to which a client appends it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxy.events import Event, ModelCalled, TextDelta
from proxy.messages import Usage
from proxy.turns.continued_text import ContinuedText, separator


@pytest.mark.parametrize(
    ("before", "text", "between"),
    [
        ("It flies.", "It is red.", "\n\n"),
        ("它会飞。", "红色的。", "\n\n"),
        ("`code`", "And", "\n\n"),
        ("It is", "red", " "),
        ("first,", "second", " "),
        ("它", "会飞", ""),
        ("It is ", "red", ""),
        ("It is", " red", ""),
        ("It is", ", red", ""),
        ("", "red", ""),
        ("It is", "", ""),
    ],
)
def test_sentences_and_terms_stay_separate(before: str, text: str, between: str) -> None:
    assert separator(before, text) == between


class Events:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def emit_batch(self, events: Sequence[Event]) -> bool:
        self.events.extend(events)
        return True

    def open_relay(self) -> None:
        return None

    async def drain(self) -> None:
        pass

    async def attended(self) -> None:
        pass


def test_only_the_first_text_gets_the_separator() -> None:
    sink, called = Events(), ModelCalled("a", "m", Usage(), 0.0)
    continued = ContinuedText(sink, "It flies.")

    for event in (called, TextDelta("It "), TextDelta("is red.")):
        continued.emit(event)

    assert sink.events == [called, TextDelta("\n\nIt "), TextDelta("is red.")]
