"""Texts of one read that nobody reads while they are written."""

from __future__ import annotations

from proxy.events import ReasoningDelta, TextDelta
from proxy.messages import Usage
from proxy.providers.model import Finished, ModelDelta, with_joined_text

END = Finished("stop", Usage(prompt=1, completion=2))


def test_successive_texts_become_one_and_everything_else_keeps_its_place() -> None:
    batch: list[ModelDelta] = [
        TextDelta("a"),
        TextDelta("b"),
        ReasoningDelta("hm"),
        TextDelta("c"),
        TextDelta("d"),
        END,
    ]

    assert with_joined_text(batch) == [TextDelta("ab"), ReasoningDelta("hm"), TextDelta("cd"), END]
    assert with_joined_text(batch[:2]) == [TextDelta("ab")]


def test_log_probabilities_stay_with_their_text() -> None:
    scored = TextDelta("b", logprobs=[{"token": "b"}])

    assert with_joined_text([TextDelta("a"), scored, TextDelta("c")]) == [
        TextDelta("a"),
        scored,
        TextDelta("c"),
    ]


def test_a_read_with_one_delta_is_returned_as_it_is() -> None:
    batch = [TextDelta("a")]

    assert with_joined_text(batch) is batch
