"""Windows of models: known names, and limits that errors show."""

from __future__ import annotations

import pytest

from proxy.errors import ContextLengthExceeded
from proxy.providers.context_windows import ContextWindow, configured_window, known_window
from proxy.teamfiles.definitions import ComponentModel, DemoModel, OpenAIModel


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("gpt-4o-mini-2024-07-18", 128_000),
        ("gpt-4", 8_192),
        ("gpt-4.1-nano", 1_047_576),
        ("openai/gpt-5-mini", 400_000),
        ("anthropic/claude-sonnet-4.5", 1_000_000),
        ("Llama-3.3-70B-Instruct", 131_072),
        ("qwen3:8b", 262_144),
        ("my-model", None),
        ("", None),
    ],
)
def test_a_model_has_the_window_of_the_longest_prefix(name: str, tokens: int | None) -> None:
    assert known_window(name) == tokens


def test_the_team_file_has_precedence() -> None:
    assert configured_window(OpenAIModel(model="gpt-4o", context_window=9000)).tokens == 9000
    assert configured_window(ComponentModel(provider="a.B", config={"model": "gpt-4o"})).tokens == 128_000
    assert configured_window(ComponentModel(provider="a.B", config={"model": 5})).tokens is None
    assert configured_window(DemoModel(demo=True)).tokens is None


def test_a_stated_limit_replaces_any_other() -> None:
    window = ContextWindow(128_000)

    assert window.learn(ContextLengthExceeded(window=8192), estimate=5000)
    assert (window.tokens, window.is_learned) == (8192, True)
    assert not window.learn(ContextLengthExceeded(window=8192), estimate=5000)


def test_without_a_stated_limit_the_rejected_size_is_the_bound() -> None:
    unknown, known = ContextWindow(), ContextWindow(8000)

    assert unknown.learn(ContextLengthExceeded(), estimate=10_000)
    assert not known.learn(ContextLengthExceeded(), estimate=10_000)
    assert (unknown.tokens, known.tokens) == (9000, 8000)

    assert known.learn(ContextLengthExceeded(tokens=5000), estimate=0)
    assert known.tokens == 4500
