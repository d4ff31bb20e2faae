"""The catalogue of teams and their agents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxy.agents.dispatch import DirectDispatcher
from proxy.agents.registry import Registry
from proxy.agents.remote_member import RemoteApprovals
from proxy.agents.team_factory import TeamFactory
from proxy.catalog import TeamCatalog
from proxy.providers.context_windows import ContextWindow
from proxy.providers.model import Model
from proxy.routes.dependencies import ListedTeam
from proxy.teamfiles.definitions import RemoteAgentDefinition, TeamsFile
from tests.fakes.models import ScriptedModel


class SilentModels:
    """Models that are not called."""

    def model_for(self, name: str, fallbacks: Sequence[str] = ()) -> Model:
        return ScriptedModel()

    def remote(self, definition: RemoteAgentDefinition) -> Model:
        return ScriptedModel()

    def remote_approvals(self, definition: RemoteAgentDefinition) -> RemoteApprovals:
        raise NotImplementedError

    def window_of(self, name: str) -> ContextWindow:
        return ContextWindow()

    async def close(self) -> None:
        return None


def catalog(models: dict[str, Any] | None = None, **team: Any) -> tuple[TeamCatalog, Registry]:
    """The catalogue of one team, ``shop``, and its registry."""
    known = {"default": {"model": "m"}, **(models or {})}
    definitions = TeamsFile.model_validate({"models": known, "teams": {"shop": {"entry": "a", **team}}})
    factory = TeamFactory(
        definitions,
        models=SilentModels(),
        tools={},
        dispatcher=DirectDispatcher(),
        data_dir=Path(),
        max_tool_result_bytes=1000,
        max_client_tools=32,
        max_answer_bytes=1024 * 1024,
    )
    registry = Registry(definitions, factory)
    return TeamCatalog(definitions, registry, created=5), registry


def agent(**more: Any) -> dict[str, Any]:
    return {"instructions": "Hi.", **more}


def length_of(model: str, models: dict[str, Any], **team: Any) -> int | None:
    facts = catalog(models, **team)[0].find(model)
    assert facts is not None
    return facts.context_length


def test_a_context_is_as_long_as_that_of_the_shortest_model_if_all_are_known() -> None:
    models = {
        "long": {"model": "x", "context_window": 9000},
        "short": {"provider": "a.B", "context_window": 4000},
        "demo": {"demo": True},
    }
    agents = {"a": agent(model="long"), "b": agent(model="long", fallbacks=["short"])}

    assert length_of("shop", models, agents=agents) == 4000
    assert length_of("shop/a", models, agents=agents) == 9000
    assert length_of("shop", models, agents={**agents, "c": agent()}) is None
    assert length_of("shop", models, agents={**agents, "c": agent(model="demo")}) is None


def test_a_team_takes_the_callers_tools_unless_none_of_its_agents_does() -> None:
    def takes(model: str, **team: Any) -> bool:
        facts = catalog(**team)[0].find(model)
        assert facts is not None
        assert isinstance(facts.team, ListedTeam)
        return facts.team.takes_client_tools

    deaf, open_minded = agent(client_tools="ignore"), agent(client_tools=["weather"])

    assert takes("shop", agents={"a": agent()})
    assert not takes("shop", agents={"a": agent()}, client_tools="ignore")
    assert takes("shop", agents={"a": deaf, "b": open_minded})
    assert not takes("shop/a", agents={"a": deaf, "b": open_minded})


def test_an_agent_with_the_name_side_leaves_that_id_to_side_requests() -> None:
    listed, registry = catalog(agents={"a": agent(), "side": agent()})

    assert [facts.id for facts in listed.models()] == ["shop", "shop/a"]
    assert registry.find("shop/side") == (registry.find("shop")[0], True)
    assert registry.find("shop/a/side") == (registry.find("shop/a")[0], True)
