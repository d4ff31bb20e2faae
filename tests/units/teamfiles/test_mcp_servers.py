"""MCP servers in team files: pinned tools become tools of agents, and other tools are errors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.tools.execution import call_tool
from proxy.tools.mcp.lock import FILE_NAME, write_lock
from proxy.tools.mcp.pins import Pin
from proxy.tools.mcp.setup import HttpEndpoint, Program
from proxy.tools.mcp.tool import McpServers
from proxy.tools.port import Tool, ToolContext, is_offered
from tests.fakes.team_files import check, load, problems, write

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
PINS = {
    "files": {
        "read": Pin("read", "Read.", TEXT, read_only=True),
        "write": Pin("write", "Write.", TEXT),
        "list.all": Pin("list.all", "", TEXT, read_only=True),
    }
}
CONTEXT = ToolContext("t1:1:0", "t1", "conv_1", "ann", "A", Path("data"))


def team(tools: str, server: str = "{command: run}") -> str:
    return f"""\
mcp_servers:
  files: {server}
teams:
  shop:
    entry: A
    agents:
      A:
        instructions: Hi.
        tools: {tools}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which three tools are pinned."""
    write_lock(tmp_path, PINS)
    return tmp_path


@pytest.mark.parametrize(
    ("tools", "server", "named"),
    [
        pytest.param("['mcp:files']", "{command: run}", ["list.all", "read", "write"], id="all"),
        pytest.param("['mcp:files/write', 'mcp:files/read']", "{command: run}", ["write", "read"], id="some"),
        pytest.param(
            "['mcp:files']",
            "{command: run, tools: [read, write]}",
            ["read", "write"],
            id="all that are allowed",
        ),
    ],
)
def test_an_agents_list_names_each_of_its_tools(
    tools: str, server: str, named: list[str], folder: Path
) -> None:
    loaded = load(write(folder, team(tools, server)))

    used = [use.name for use in loaded.definitions.teams["shop"].agents["A"].tools]
    assert used == [f"mcp:files/{name}" for name in named]


def test_a_server_whose_tools_need_approval_has_it_for_each_of_them(folder: Path) -> None:
    loaded = load(write(folder, team("[{name: 'mcp:files', approval: required}]")))

    used = loaded.definitions.teams["shop"].agents["A"].tools
    assert [(use.name, use.approval) for use in used] == [
        ("mcp:files/list.all", "required"),
        ("mcp:files/read", "required"),
        ("mcp:files/write", "required"),
    ]


def tools_of(folder: Path, server: str = "{command: run}") -> dict[str, Tool]:
    loaded = load(write(folder, team("['mcp:files']", server)))
    return dict(McpServers(loaded.servers, loaded.pins).tools)


def test_models_receive_pinned_definitions(folder: Path) -> None:
    tools = tools_of(folder)

    assert {
        name: (tool.spec.name, tool.spec.description, tool.spec.parameters) for name, tool in tools.items()
    } == {
        "mcp:files/list.all": ("files__list_all", None, TEXT),
        "mcp:files/read": ("files__read", "Read.", TEXT),
        "mcp:files/write": ("files__write", "Write.", TEXT),
    }
    assert all(map(is_offered, tools.values())), "nothing is known against them"


@pytest.mark.parametrize(
    ("server", "without"),
    [
        pytest.param("{command: run}", {"read", "list.all"}, id="as the server said when it was pinned"),
        pytest.param("{command: run, without_effects: [write]}", {"write"}, id="as the operator says"),
        pytest.param("{command: run, without_effects: []}", set(), id="none"),
    ],
)
def test_side_effects_are_configured_or_pinned(server: str, without: set[str], folder: Path) -> None:
    tools = tools_of(folder, server)

    assert {
        name.removeprefix("mcp:files/") for name, tool in tools.items() if not tool.has_effects
    } == without


async def test_invalid_arguments_are_rejected_before_the_call(folder: Path) -> None:
    tool = tools_of(folder)["mcp:files/read"]

    result = await call_tool(tool, '{"text": 3}', CONTEXT, time_limit=5, max_result_bytes=1000)

    assert result.text == "error: argument 'text': 3 is not of type \"string\""


async def test_a_server_that_cannot_start_is_reported(folder: Path) -> None:
    tool = tools_of(folder, "{command: no-such-program}")["mcp:files/read"]

    result = await call_tool(tool, '{"text": "Hi"}', CONTEXT, time_limit=5, max_result_bytes=1000)

    assert result.text == "error: the MCP server 'files' cannot be started (No such file or directory)"
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("tools", "server", "reported"),
    [
        pytest.param(
            "['mcp:files/raed']",
            "{command: run}",
            "9:17: teams.shop.agents.A.tools[0]: the tool of 'mcp:files/raed' is not pinned; did you mean 'read'?",
            id="a-tool-that-is-not-there",
        ),
        pytest.param(
            "['mcp:files/write']",
            "{command: run, tools: [read]}",
            "9:17: teams.shop.agents.A.tools[0]: the tool of 'mcp:files/write' is not in its list 'tools'; "
            "available: 'read'",
            id="a-tool-that-is-not-allowed",
        ),
        pytest.param(
            "['mcp:files', 'mcp:files/read']",
            "{command: run}",
            "9:30: teams.shop.agents.A.tools[1]: the tool name 'files__read' is already used by tools[0]",
            id="a-tool-twice",
        ),
        pytest.param(
            "[]",
            "{command: run, tools: [raed], without_effects: [read]}",
            "2:33: mcp_servers.files.tools[0]: no tool 'raed' of this server is pinned; did you mean 'read'?",
            id="a-list-that-names-what-is-not-there",
        ),
    ],
)
def test_a_tool_that_is_not_pinned_is_an_error(tools: str, server: str, reported: str, folder: Path) -> None:
    assert problems(write(folder, team(tools, server))) == [f"team.yaml:{reported}"]


def test_tools_with_equal_model_names_are_an_error(tmp_path: Path) -> None:
    write_lock(tmp_path, {"files": {name: Pin(name, "", TEXT) for name in ("a.b", "a_b")}})

    assert problems(write(tmp_path, team("['mcp:files/a.b', 'mcp:files/a_b']"))) == [
        "team.yaml:9:34: teams.shop.agents.A.tools[1]: the tool name 'files__a_b' is already used by tools[0]"
    ]


def test_an_invalid_lock_file_is_reported_once(folder: Path) -> None:
    (folder / FILE_NAME).write_text("{")

    assert problems(write(folder, team("['mcp:files', 'mcp:files/read']"))) == [
        f"{FILE_NAME}: not a valid lock file; recreate it with 'handoff-proxy mcp pin'"
    ]


def test_team_files_without_mcp_servers_do_not_mind_the_lock_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{")

    assert load(write(tmp_path, "teams: {t: {entry: A, agents: {A: {instructions: Hi.}}}}")).servers == ()


def test_servers_are_reached_as_the_file_says(folder: Path) -> None:
    text = """\
mcp_servers:
  local: {command: run, args: ["--token", "${TOKEN}"], env: {TOKEN: "${TOKEN}"}, cwd: tools, call_timeout: 5}
  remote: {url: "https://x/mcp?key=${TOKEN}", headers: {Authorization: "Bearer ${TOKEN}"}, connect_timeout: 3}
teams: {t: {entry: A, agents: {A: {instructions: Hi.}}}}
"""
    loaded = load(
        write(folder, text), environment={"TOKEN": "hunter2", "PATH": "/bin", "OPENAI_API_KEY": "k"}
    )
    local, remote = loaded.servers

    assert local.reach == Program(
        "run", ("--token", "hunter2"), {"PATH": "/bin", "TOKEN": "hunter2"}, folder / "tools"
    )
    assert remote.reach == HttpEndpoint("https://x/mcp?key=hunter2", {"Authorization": "Bearer hunter2"})
    assert (local.call_seconds, remote.call_seconds, remote.connect_seconds) == (5, None, 3)
    assert "hunter2" not in repr(loaded)


def test_check_lists_servers_without_connecting_and_without_secrets(folder: Path) -> None:
    server = "{url: 'https://me:hunter2@files.example.com/mcp?key=hunter2', headers: {A: hunter2}}"

    report = check(write(folder, team("['mcp:files/read']", server)))

    assert report.problems == ()
    assert report.summary == (
        "1 team, 1 agent, 1 tool, 1 model, 1 MCP server",
        "model default: demo model (offline)",
        "MCP server files: at files.example.com, 3 pinned tools",
        "team shop",
        "  A (entry): model default; tools mcp:files/read",
    )
