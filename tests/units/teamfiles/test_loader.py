"""What team files say is what is loaded: models, teams, variables, folders, tools."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from proxy.errors import ConfigurationError, TeamFileError
from proxy.providers.autogen.client import ComponentChatModel
from proxy.settings import Settings
from proxy.teamfiles.definitions import (
    AgentDefinition,
    ComponentModel,
    DemoModel,
    HandoffDefinition,
    Limits,
    OpenAIModel,
    TeamDefinition,
    ToolUse,
)
from proxy.teamfiles.team_sources import default_model
from tests.fakes import team_files
from tests.fakes.team_files import DEMO, OPENAI, check, load, problems

Write = Callable[..., Path]

SHOP = """
teams:
  shop:
    entry: Clerk
    agents:
      Clerk: {instructions: Be kind.}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(team_files.write, tmp_path)


def settings(**given: Any) -> Settings:
    return Settings.model_construct(
        **{
            "openai_api_key": None,
            "openai_base_url": "https://api.openai.com/v1",
            "openai_model": "gpt-test",
            **given,
        }
    )


# --- notices and reports -------------------------------------------------------------------------------------


def test_a_team_is_loaded_with_everything_it_says(write: Write) -> None:
    path = write(
        """
models:
  fast: {model: small, base_url: "http://127.0.0.1:11434/v1", parameters: {temperature: 0.2}, extra_body: {top_k: 5}}
  other: {provider: some.package.Client, config: {model: other}}
teams:
  shop:
    description: A shop.
    entry: Clerk
    limits: {max_handoffs: 3, turn_seconds: 20}
    client_tools: [open_page]
    side_model: fast
    on_disconnect: detach
    agents:
      Clerk:
        instructions: Be kind.
        model: fast
        fallbacks: [other, default]
        tools: [look_up_item]
        handoffs: [{to: Boss, when: Things get loud., tool: call_the_boss}]
        client_tools: ignore
        parameters: {max_completion_tokens: 200}
        max_parallel_tools: 2
        tool_call_timeout: 5
      Boss: {instructions: Decide.}
"""
    )

    loaded = load(path)

    assert loaded.definitions.teams == {
        "shop": TeamDefinition(
            description="A shop.",
            entry="Clerk",
            limits=Limits(max_handoffs=3, turn_seconds=20),
            client_tools=("open_page",),
            side_model="fast",
            on_disconnect="detach",
            agents={
                "Clerk": AgentDefinition(
                    instructions="Be kind.",
                    model="fast",
                    fallbacks=("other", "default"),
                    tools=(ToolUse(name="look_up_item"),),
                    handoffs=(HandoffDefinition(to="Boss", when="Things get loud.", tool="call_the_boss"),),
                    client_tools="ignore",
                    parameters={"max_completion_tokens": 200},
                    max_parallel_tools=2,
                    tool_call_timeout=5.0,
                ),
                "Boss": AgentDefinition(instructions="Decide."),
            },
        )
    }
    assert loaded.definitions.models == {
        "default": DEMO,
        "fast": OpenAIModel(
            model="small",
            base_url="http://127.0.0.1:11434/v1",
            parameters={"temperature": 0.2},
            extra_body={"top_k": 5},
        ),
        "other": ComponentModel(provider="some.package.Client", config={"model": "other"}),
    }
    assert loaded.notices == ()


def test_the_bundled_team_is_loaded_when_no_path_is_given() -> None:
    team = load(None).definitions.teams["acme-support"]

    assert team.entry == "TriageAgent"
    assert {name: tuple(use.name for use in agent.tools) for name, agent in team.agents.items()} == {
        "TriageAgent": (),
        "SalesAgent": ("execute_order",),
        "IssuesAndRepairsAgent": ("look_up_item", "execute_refund"),
    }
    assert {name: {h.tool_name: h.to for h in agent.handoffs} for name, agent in team.agents.items()} == {
        "TriageAgent": {
            "transfer_to_sales_agent": "SalesAgent",
            "transfer_to_issues_and_repairs": "IssuesAndRepairsAgent",
        },
        "SalesAgent": {"transfer_back_to_triage": "TriageAgent"},
        "IssuesAndRepairsAgent": {"transfer_back_to_triage": "TriageAgent"},
    }
    assert all(handoff.when for agent in team.agents.values() for handoff in agent.handoffs)


def test_all_bundled_teams_are_served_without_the_demo_scripts() -> None:
    teams = load(None).definitions.teams

    assert {name: list(team.agents) for name, team in teams.items()} == {
        "acme-support": ["TriageAgent", "SalesAgent", "IssuesAndRepairsAgent"],
        "assistant": ["Assistant"],
        "business-insights": ["PlanningAgent", "DataAgent", "ReportAgent"],
    }
    assert teams["business-insights"].limits.max_messages == 40


def test_a_folder_of_ones_own_may_name_its_files_as_it_likes(write: Write) -> None:
    path = write(SHOP)

    (path.parent / "shop.demo.yaml").write_text(path.read_text())
    path.unlink()

    assert list(load(path.parent).definitions.teams) == ["shop"]


# --- the default model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, DEMO, id="no-key-is-the-demonstration"),
        pytest.param(
            {"openai_api_key": SecretStr("k")},
            OpenAIModel(model="gpt-test", api_key=SecretStr("k")),
            id="a-key-is-a-real-model",
        ),
        pytest.param(
            {"openai_base_url": "http://127.0.0.1:8080/v1"},
            OpenAIModel(model="gpt-test", base_url="http://127.0.0.1:8080/v1"),
            id="a-local-server-needs-no-key",
        ),
        pytest.param(
            {"openai_base_url": "https://api.openai.com/v1/"}, DEMO, id="a-slash-is-no-other-address"
        ),
    ],
)
def test_the_default_model_comes_from_the_settings(given: dict[str, Any], expected: Any) -> None:
    assert default_model(settings(**given)) == expected


def test_a_default_model_in_the_file_wins(write: Write) -> None:
    path = write("models: {default: {model: mine, api_key: k}}" + SHOP)

    assert load(path, default=OPENAI).definitions.models == {
        "default": OpenAIModel(model="mine", base_url=OPENAI.base_url, api_key=SecretStr("k"))
    }


@pytest.mark.parametrize(
    ("said", "key"),
    [
        pytest.param("", "the-servers-key", id="no-address"),
        pytest.param(", base_url: https://api.openai.com/v1/", "the-servers-key", id="the-same-address"),
        pytest.param(", base_url: https://elsewhere.example/v1", None, id="another-address"),
        pytest.param(", api_key: own", "own", id="a-key-of-its-own"),
        pytest.param(", api_key: ''", None, id="an-empty-key-is-none"),
        pytest.param(", base_url: https://elsewhere.example/v1, api_key: own", "own", id="all-its-own"),
    ],
)
def test_the_servers_key_goes_to_the_address_it_was_set_for_and_to_no_other(
    write: Write, said: str, key: str | None
) -> None:
    model = load(write(f"models: {{m: {{model: x{said}}}}}" + SHOP), default=OPENAI).definitions.models["m"]

    assert isinstance(model, OpenAIModel)
    assert (model.api_key and model.api_key.get_secret_value()) == key


def test_a_model_without_an_address_follows_the_servers(write: Write) -> None:
    local = OpenAIModel(model="x", base_url="http://127.0.0.1:8080/v1")

    model = load(write("models: {m: {model: y}}" + SHOP), default=local).definitions.models["m"]

    assert model == OpenAIModel(model="y", base_url="http://127.0.0.1:8080/v1", api_key=None)


def test_a_model_at_the_servers_address_signs_in_as_the_default(write: Write) -> None:
    azure = OpenAIModel(model="x", base_url="https://shop.openai.azure.com/openai/v1", auth="entra")
    text = "models: {m: {model: y}, keyed: {model: z, auth: key, api_key: k}}"

    models = load(write(text + SHOP), default=azure).definitions.models

    assert models["m"] == azure.model_copy(update={"model": "y"})
    assert models["keyed"] == OpenAIModel(model="z", base_url=azure.base_url, api_key=SecretStr("k"))


# --- models files --------------------------------------------------------------------------------------------


def test_a_models_file_adds_models_and_replaces_those_of_the_same_name(write: Write) -> None:
    teams = write("models: {fast: {model: a, api_key: k}, slow: {model: b, api_key: k}}" + SHOP)
    file = write("models: {default: {model: c, api_key: k}, fast: {model: d, api_key: k}}", "models.yaml")

    models = load(teams, models_file=file).definitions.models

    names = {name: model.model for name, model in models.items() if isinstance(model, OpenAIModel)}
    assert names == {"default": "c", "fast": "d", "slow": "b"}


def test_a_models_file_applies_to_the_bundled_teams(write: Write) -> None:
    file = write("{model: local, base_url: 'http://127.0.0.1:1234/v1', parameters: {seed: 1}}", "models.yaml")

    definitions = load(None, models_file=file).definitions

    assert "acme-support" in definitions.teams
    assert definitions.models == {
        "default": OpenAIModel(model="local", base_url="http://127.0.0.1:1234/v1", parameters={"seed": 1})
    }


def test_a_model_config_of_autogen_is_the_default_model(write: Write) -> None:
    text = "x-note: 1\nprovider: p.M\nconfig:\n  api_key: ${KEY}\n  seed: ${SEED}\n"
    file = write(text, "model_config.yaml")

    models = load(None, models_file=file, environment={"KEY": "k", "SEED": "7"}).definitions.models

    assert models == {"default": ComponentModel(provider="p.M", config={"api_key": "k", "seed": 7})}


def test_errors_in_a_models_file_have_their_places(write: Write, tmp_path: Path) -> None:
    teams = write(SHOP, "shop.yaml")
    one = write("model: x\nbase_ulr: http://y\n", "one.yaml")
    many = write("models: {m: {model: 1}}\nteams: {}\n", "many.yaml")

    def lines(file: Path) -> list[str]:
        with pytest.raises(TeamFileError) as caught:
            load(teams, models_file=file)
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]

    assert lines(one) == ["one.yaml:2:1: models.default: unknown key 'base_ulr'; did you mean 'base_url'?"]
    assert lines(many) == [
        "many.yaml:1:21: models.m.model: expected a string, found a number; put it in quotes",
        "many.yaml:2:1: unknown key 'teams'; available: 'models'",
    ]
    assert lines(tmp_path / "none.yaml") == ["none.yaml: cannot be read: No such file or directory"]


# --- folders -------------------------------------------------------------------------------------------------


def test_the_files_of_a_folder_are_one(write: Write, tmp_path: Path) -> None:
    write("models: {fast: {model: x, api_key: k}}", "models.yaml")
    write(SHOP.replace("Be kind.", "Be kind., model: fast"), "shop.yml")
    write(SHOP.replace("shop", "garage"), "garage.yaml")
    write("not: a team", ".hidden.yaml")
    write("not a team", "notes.txt")
    write("not: a team", "deeper.yaml/x.yaml")

    definitions = load(tmp_path).definitions

    assert list(definitions.models) == ["default", "fast"]
    assert list(definitions.teams) == ["garage", "shop"]


def test_a_name_defined_in_two_files_is_reported_with_both_locations(write: Write, tmp_path: Path) -> None:
    write("models: {m: {model: x, api_key: k}}" + SHOP, "a.yaml")
    write("models: {m: {model: y, api_key: k}}" + SHOP, "b.yaml")

    assert problems(tmp_path) == [
        "b.yaml:1:10: models.m: is already defined at a.yaml:1:10",
        "b.yaml:3:3: teams.shop: is already defined at a.yaml:3:3",
    ]


def test_what_an_unreadable_file_may_have_defined_is_not_called_unknown(write: Write, tmp_path: Path) -> None:
    write("models: {fast: {model: x}", "models.yaml")
    write(SHOP.replace("Be kind.", "Be kind., model: fast"), "shop.yaml")

    assert problems(tmp_path) == [
        "models.yaml:1:26: not valid YAML: expected ',' or '}' here; the mapping starts in line 1"
    ]


# --- tools ---------------------------------------------------------------------------------------------------


def test_a_function_in_a_module_next_to_the_file_becomes_a_tool(write: Write) -> None:
    write('def find(name: str) -> str:\n    """Find it."""\n    return name\n', "shop_tools_beside.py")
    path = write(SHOP.replace("Be kind.", "Be kind., tools: ['shop_tools_beside:find']"))

    tools = load(path).tools

    assert {name: tool.spec.name for name, tool in tools.items()} == {"shop_tools_beside:find": "find"}
    assert tools["shop_tools_beside:find"].spec.description == "Find it."


def test_a_similar_module_next_to_the_file_is_suggested(write: Write) -> None:
    write("def find(name: str) -> str: ...\n", "shop_tools_near.py")
    path = write(SHOP.replace("Be kind.", "Be kind., tools: ['shop_tool_near:find']"))

    assert problems(path) == [
        "team.yaml:6:47: teams.shop.agents.Clerk.tools[0]: module 'shop_tool_near' not found; "
        "did you mean 'shop_tools_near'?"
    ]


def test_a_module_that_exits_on_import_is_an_error(write: Write) -> None:
    write("import sys\nsys.exit('no')\n", "shop_tools_leaving.py")
    path = write(SHOP.replace("Be kind.", "Be kind., tools: ['shop_tools_leaving:find']"))

    assert problems(path) == [
        "team.yaml:6:47: teams.shop.agents.Clerk.tools[0]: the function cannot be used as a tool (SystemExit)"
    ]


def test_an_invalid_component_is_reported_at_its_provider(write: Write) -> None:
    def check_component(name: str, model: ComponentModel) -> None:
        raise ConfigurationError(f"model '{name}': there is no {model.provider}")

    path = write("models: {m: {provider: some.Client}, n: {provider: '${PROVIDER}'}}" + SHOP)

    assert problems(path, environment={"PROVIDER": "hunter2"}, check_component=check_component) == [
        "team.yaml:1:24: models.m.provider: model 'm': there is no some.Client",
        "team.yaml:1:52: models.n.provider: the component cannot be loaded",
    ]


def test_a_real_component_is_loaded_to_check_it(write: Write) -> None:
    client = "autogen_ext.models.openai.OpenAIChatCompletionClient"
    path = write(
        f"models: {{good: {{provider: {client}, config: {{model: gpt-4o, api_key: hunter2}}}},\n"
        f"bad: {{provider: {client}, config: {{api_key: [hunter2]}}}},\nworse: {{provider: no.such.Client}}}}{SHOP}"
    )

    assert problems(path, check_component=ComponentChatModel.load) == [
        f"team.yaml:2:17: models.bad.provider: model 'bad': the component {client} cannot be made from its config "
        "(invalid or missing: model, api_key)",
        "team.yaml:3:19: models.worse.provider: model 'worse': the component no.such.Client cannot be imported "
        "(no is not installed)",
    ]


# --- notices and reports -------------------------------------------------------------------------------------


def test_what_is_hardly_meant_is_noticed(write: Write) -> None:
    path = write("models: {m: {model: x}}" + SHOP + "      Hermit: {instructions: Wait.}\n")

    assert [notice.replace(str(path), "team.yaml") for notice in load(path).notices] == [
        "team.yaml:1:10: models.m: no API key is set, and OpenAI requires one",
        "team.yaml:7:7: teams.shop.agents.Hermit: not reachable by handoffs from the entry 'Clerk'",
    ]


def test_a_report_summarises_the_files() -> None:
    report = check(None)

    assert report.problems == ()
    assert report.summary == (
        "3 teams, 7 agents, 9 tools, 1 model",
        "model default: demo model (offline)",
        "team acme-support",
        "  TriageAgent (entry): model default; handoffs to SalesAgent, IssuesAndRepairsAgent",
        "  SalesAgent: model default; tools execute_order; handoffs to TriageAgent",
        "  IssuesAndRepairsAgent: model default; tools look_up_item, execute_refund; handoffs to TriageAgent",
        "team assistant",
        "  Assistant (entry): model default; tools get_weather, get_time, calculate, get_stock_price, search_web",
        "team business-insights",
        "  PlanningAgent (entry): model default; handoffs to DataAgent",
        "  DataAgent: model default; tools query_sales, calculate; handoffs to ReportAgent",
        "  ReportAgent: model default; tools calculate; handoffs to DataAgent, PlanningAgent",
    )


def test_a_report_with_problems_counts_what_is_written(write: Write) -> None:
    path = write(SHOP.replace("entry", "enty"))

    report = check(path)

    assert [line.replace(str(path), "team.yaml") for line in report.problems] == [
        "team.yaml:3:3: teams.shop: 'entry' is missing",
        "team.yaml:4:5: teams.shop: unknown key 'enty'; did you mean 'entry'?",
    ]
    assert report.summary == ("1 team, 1 agent, 0 tools, 1 model",)


def test_a_report_shows_no_key_and_no_password(write: Write) -> None:
    path = write(
        "models: {m: {model: x, base_url: 'https://me:hunter2@host.example/v1', api_key: hunter3}}" + SHOP
    )

    summary = "\n".join(check(path).summary)

    assert "model m: x at host.example, with a key" in summary
    assert "hunter" not in summary


def test_the_demo_can_be_requested_by_name(write: Write) -> None:
    assert load(write("models: {m: {demo: true}}" + SHOP)).definitions.models["m"] == DemoModel(demo=True)
