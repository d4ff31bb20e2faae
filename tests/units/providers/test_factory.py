"""The places of providers, as logs and ``check --connect`` show them."""

from __future__ import annotations

import pytest

from proxy.providers.factory import _place
from proxy.teamfiles.definitions import ComponentModel, DemoModel, ModelDefinition, OpenAIModel


@pytest.mark.parametrize(
    ("definition", "place"),
    [
        (OpenAIModel(model="m", base_url="http://user:pw@127.0.0.1:9/v1"), ("127.0.0.1", "127.0.0.1:9")),
        (OpenAIModel(model="m", base_url="http://[::1]:8080/v1"), ("::1", "[::1]:8080")),
        (
            OpenAIModel(model="m", base_url="https://models.example.com/v1"),
            ("models.example.com", "models.example.com"),
        ),
        (
            ComponentModel(provider="x.Y", config={"base_url": "https://a.example.com:444"}),
            ("a.example.com", "a.example.com:444"),
        ),
        (
            ComponentModel(provider="x.Y", config={"host": "localhost:11434"}),
            ("localhost", "localhost:11434"),
        ),
        (ComponentModel(provider="x.Y", config={"host": "here:there"}), ("", "")),
        (ComponentModel(provider="x.Y", config={}), ("", "")),
        (DemoModel(demo=True), ("", "")),
    ],
)
def test_the_address_has_the_port_unless_it_is_the_default_one(
    definition: ModelDefinition, place: tuple[str, str]
) -> None:
    assert _place(definition) == place
