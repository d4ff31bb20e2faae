"""Provider state that is collected from the pieces of an answer."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from proxy.messages import MAX_STATE_BYTES, ProviderState
from proxy.providers.openai.provider_state import MAX_COLLECTED_BYTES, StateCollector


def collected(*deltas: dict[str, Any]) -> ProviderState | None:
    collector = StateCollector("host model")
    for delta in deltas:
        collector.add(delta.get("details"), delta.get("blocks"))
    return collector.state([], has_calls=True)


def test_pieces_of_details_are_joined_by_index() -> None:
    state = collected(
        {"details": [{"type": "reasoning.text", "index": 0, "text": "I "}]},
        {
            "details": [
                {"index": 0, "text": "look"},
                {"type": "reasoning.encrypted", "index": 1, "data": "ab"},
            ]
        },
        {"details": [{"type": "reasoning.text", "index": 0, "signature": "s"}, {"index": 1, "data": "cd"}]},
    )

    assert state == ProviderState(
        "host model",
        {
            "reasoning_details": [
                {"type": "reasoning.text", "index": 0, "text": "I look", "signature": "s"},
                {"type": "reasoning.encrypted", "index": 1, "data": "abcd"},
            ]
        },
    )


def test_pieces_of_thinking_blocks_are_joined_up_to_the_signature() -> None:
    state = collected(
        {"blocks": [{"type": "thinking", "thinking": "I "}]},
        {"blocks": [{"type": "thinking", "thinking": "look"}]},
        {"blocks": [{"type": "thinking", "thinking": "", "signature": "s"}]},
        {"blocks": [{"type": "thinking", "thinking": "Again", "signature": "t"}]},
        {"blocks": [{"type": "redacted_thinking", "data": "x"}]},
    )

    assert state == ProviderState(
        "host model",
        {
            "thinking_blocks": [
                {"type": "thinking", "thinking": "I look", "signature": "s"},
                {"type": "thinking", "thinking": "Again", "signature": "t"},
                {"type": "redacted_thinking", "data": "x"},
            ]
        },
    )


@pytest.mark.parametrize("member", ["details", "blocks"])
def test_endless_state_is_not_collected(member: str, caplog: pytest.LogCaptureFixture) -> None:
    piece = {"type": "reasoning.text", "index": 0, "text": "x" * MAX_STATE_BYTES}
    pieces = MAX_COLLECTED_BYTES // MAX_STATE_BYTES + 1
    collector = StateCollector("host model")
    for _ in range(pieces):
        collector.add([piece] if member == "details" else None, [piece] if member == "blocks" else None)

    assert collector.state([], has_calls=True) is None
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "provider state is over the limit and is dropped"
    ]
