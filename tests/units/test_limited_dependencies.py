"""Details of dependencies that their documentation does not promise.

When a test fails after an update: read the release notes, adapt the named module, and only then change the version.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import pytest
from autogen_core import AgentId, MessageHandlerContext, SingleThreadedAgentRuntime
from autogen_core.models import ChatCompletionClient
from packaging.requirements import Requirement
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
LOCK = PROJECT.parent / "requirements-dev.lock"
TESTED = {
    "autogen-agentchat": "0.7",  # members/adapters/agentchat_objects.py
    "autogen-core": "0.7",  # providers/autogen/client.py
    "autogen-ext": "0.7",  # providers/autogen/client.py
    "httptools": "0.9",  # http_protocol.py, http_responses.py
    "msgspec": "0.22",  # wire/explaining.py
    "openai-agents": "0.24",  # members/adapters/openai_agents.py
    # http_protocol.py, http_responses.py, http_exchange.py, connection_state.py, websocket_protocol.py, server.py
    "uvicorn": "0.54",
}


OPTIONAL = {"autogen-agentchat": "autogen_agentchat", "openai-agents": "agents"}
"""Packages of extras, with a module of each."""
needs_agentchat = pytest.mark.skipif(find_spec("autogen_agentchat") is None, reason="not installed")
FRAMEWORKS = ("a2a", "agent-framework", "agentchat", "langgraph", "openai-agents", "pydantic-ai")
"""Extras with the packages of adapters."""
SHARED = frozenset(("protobuf",))
"""Their packages that the lock file limits by others that need them."""


def _installed(name: str) -> Any:
    missing = name in OPTIONAL and find_spec(OPTIONAL[name]) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="not installed"))


@pytest.mark.parametrize("name", [_installed(name) for name in TESTED])
def test_the_installed_minor_version_is_the_tested_one(name: str) -> None:
    installed = version(name)

    assert ".".join(installed.split(".")[:2]) == TESTED[name], (
        f"{name} {installed} is not tested: see the first lines of this file"
    )


@pytest.mark.parametrize("name", TESTED)
def test_the_package_accepts_no_later_minor_version(name: str) -> None:
    major, minor = map(int, TESTED[name].split("."))
    project = tomllib.loads(PROJECT.read_text())["project"]
    declared = chain(project["dependencies"], *project["optional-dependencies"].values())
    (found,) = (one for one in declared if one.split(">=")[0].split("[")[0] == name)

    assert found.endswith(f",<{major}.{minor + 1}")


@pytest.mark.parametrize("extra", FRAMEWORKS)
def test_the_packages_of_frameworks_have_a_limit_that_the_locked_version_meets(extra: str) -> None:
    declared = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][extra]
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", LOCK.read_text(), re.MULTILINE))

    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(locked[requirement.name]), str(requirement)
        limits = [one for one in requirement.specifier if one.operator == "<"]
        assert limits or requirement.name in SHARED, f"{requirement} has no limit"


class Inner(msgspec.Struct):
    word: str
    kind: Literal["a", "b"] = "a"


class Outer(msgspec.Struct):
    inner: Inner
    items: list[Inner] = []
    extra: dict[str, int] = {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{}", "Object missing required field `inner`"),
        ('{"inner": {}}', "Object missing required field `word` - at `$.inner`"),
        ('{"inner": {"word": 1}}', "Expected `str`, got `int` - at `$.inner.word`"),
        ('{"inner": {"word": "", "kind": "c"}}', "Invalid enum value 'c' - at `$.inner.kind`"),
        (
            '{"inner": {"word": ""}, "items": [{"word": ""}, {"word": null}]}',
            "Expected `str`, got `null` - at `$.items[1].word`",
        ),
        ('{"inner": {"word": ""}, "extra": {"x": "y"}}', "Expected `int`, got `str` - at `$.extra[...]`"),
    ],
)
def test_msgspec_reports_places_in_the_form_that_is_parsed(body: str, message: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(body, type=Outer)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("connection_made", ["self", "transport"]),
        ("connection_lost", ["self", "exc"]),
        ("data_received", ["self", "data"]),
        ("on_message_begin", ["self"]),
        ("on_header", ["self", "name", "value"]),
        ("on_headers_complete", ["self"]),
        ("on_body", ["self", "body"]),
        ("on_message_complete", ["self"]),
        ("on_response_complete", ["self"]),
        ("handle_websocket_upgrade", ["self"]),
        ("_should_upgrade", ["self"]),
        ("_unset_keepalive_if_required", ["self"]),
        ("shutdown", ["self"]),
        ("send_400_response", ["self", "msg"]),
    ],
)
def test_uvicorn_has_the_methods_that_the_protocol_overrides(method: str, parameters: list[str]) -> None:
    found = getattr(HttpToolsProtocol, method)

    assert list(inspect.signature(found).parameters) == parameters


def test_uvicorn_uses_the_exchange_in_the_methods_that_are_not_replaced() -> None:
    source = inspect.getsource(HttpToolsProtocol.shutdown)

    assert set(re.findall(r"self\.cycle\.(\w+)", source)) == {"keep_alive", "response_complete"}


def test_uvicorn_can_end_a_connection_without_an_exchange() -> None:
    uses = re.findall(r".*self\.cycle\b.*", inspect.getsource(HttpToolsProtocol.connection_lost))

    assert [line.strip() for line in uses] == [
        "if self.cycle and not self.cycle.response_complete:",
        "self.cycle.disconnected = True",
        "if self.cycle is not None:",
        "self.cycle.message_event.set()",
    ]


def test_uvicorn_uses_the_methods_of_the_event_that_is_replaced() -> None:
    source = inspect.getsource(FlowControl)

    assert set(re.findall(r"_is_writable_event\.(\w+)", source)) == {"set", "clear", "wait"}


def test_uvicorn_rejects_handshakes_with_the_protocol_object_that_is_replaced() -> None:
    source = inspect.getsource(WebSocketsSansIOProtocol)

    assert "self.conn = ServerProtocol(" in source
    assert source.count("self.conn.reject(") == 2
    assert "if not self.handshake_complete:" in inspect.getsource(WebSocketsSansIOProtocol.run_asgi)


def test_autogen_keeps_the_agent_of_a_handler_in_the_context_variable_that_is_set() -> None:
    agent = AgentId("team_agent", "shared")

    with MessageHandlerContext.populate_context(agent):
        assert MessageHandlerContext._MESSAGE_HANDLER_CONTEXT.get() == agent


def test_autogen_loads_components_from_a_provider_and_a_config() -> None:
    load: Any = inspect.signature(ChatCompletionClient.load_component)

    assert list(load.parameters)[:2] == ["model", "expected"]


@needs_agentchat
def test_agentchat_teams_have_the_attributes_that_are_read_and_replaced() -> None:
    from autogen_agentchat.agents import SocietyOfMindAgent, UserProxyAgent
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import RoundRobinGroupChat

    user, condition = UserProxyAgent("person"), MaxMessageTermination(1)
    team = RoundRobinGroupChat([user], termination_condition=condition)
    around: Any = SocietyOfMindAgent("around", team, model_client=cast("Any", object()))

    attributes = vars(team)
    assert attributes["_participants"] == [user]
    assert attributes["_termination_condition"] is condition
    assert attributes["_embedded_runtime"] is True
    assert attributes["_initialized"] is False
    assert type(attributes["_runtime"]) is SingleThreadedAgentRuntime
    assert around._team is team
    assert user.input_func.__name__ == "cancellable_input"
