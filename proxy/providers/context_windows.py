"""Context windows of models: configured, known by name, or learned from a request that was too long."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

import msgspec

from proxy.errors import ContextLengthExceeded
from proxy.teamfiles.definitions import ComponentModel, DemoModel, ModelDefinition, OpenAIModel

SMALLEST = 256
"""A smaller value in an error message is not the window of a model."""
_LEARNED_SHARE = 0.9
"""Part of a rejected input that is assumed to fit if the provider does not state its limit."""


@dataclass(slots=True)
class ContextWindow:
    """The window of one model of the configuration, shared by all agents that use it."""

    tokens: int | None = None
    """None if it is not known yet."""
    is_learned: bool = False

    def learn(self, failure: ContextLengthExceeded, *, estimate: int) -> bool:
        """Adopt the limit that a rejected request of ``estimate`` tokens shows; return whether it is a new one.

        A limit that the provider states replaces any other. Otherwise an unknown window is estimated, and a known
        one that the request was within is lowered.
        """
        stated = failure.window
        if stated is None:
            size = failure.tokens or estimate
            if self.tokens is not None and size > self.tokens:
                return False
            stated = max(int(size * _LEARNED_SHARE), SMALLEST)
        if stated == self.tokens:
            return False
        self.tokens, self.is_learned = stated, True
        return True


def configured_window(definition: ModelDefinition) -> ContextWindow:
    """Return the window of a model as the team file or the table gives it."""
    match definition:
        case DemoModel():
            return ContextWindow()
        case OpenAIModel():
            name: object = definition.model
        case ComponentModel():
            name = definition.config.get("model")
    return ContextWindow(definition.context_window or (known_window(name) if isinstance(name, str) else None))


def known_window(model: str) -> int | None:
    """Return the published window of a model with this name; None if the table has none."""
    # Routers put the provider before the name (OpenRouter, LiteLLM: "openai/gpt-4.1"), Ollama a tag behind it.
    name = model.rsplit("/", 1)[-1].lower()
    prefixes = [prefix for prefix in _table() if name.startswith(prefix)]
    return _table()[max(prefixes, key=len)] if prefixes else None


@cache
def _table() -> dict[str, int]:
    text = resources.files(__package__).joinpath("context_windows.toml").read_text("utf-8")
    providers = msgspec.convert(tomllib.loads(text), dict[str, dict[str, int]])
    return {prefix: tokens for models in providers.values() for prefix, tokens in models.items()}
