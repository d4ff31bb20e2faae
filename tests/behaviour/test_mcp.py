"""MCP servers from outside: pinned by the command, used by teams, and real ones of the official SDK."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from mcp.server.mcpserver import Context, MCPServer

from proxy.tools.mcp.discovery import discover_tools
from proxy.tools.mcp.lock import FILE_NAME, read_lock, write_lock
from proxy.tools.mcp.server import McpServer
from proxy.tools.mcp.setup import HttpEndpoint, ServerSetup
from tests.fakes.mcp_http import FakeMcp, described, says
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.polling import until
from tests.server import Served, free_port, serve

PROGRAM = Path(__file__).parents[1] / "fakes" / "mcp_program.py"


def team(server: str, tools: str = "['mcp:shop']", upstream: str = "http://127.0.0.1:9/v1") -> str:
    return f"""\
mcp_servers:
  shop: {server}
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  helpers:
    entry: Helper
    agents:
      Helper:
        instructions: Help.
        tools: {tools}
"""


# --- the command ---


def program(*modes: str, tools: str = "[echo, process]") -> str:
    arguments = json.dumps([str(PROGRAM), *modes])
    return f"{{command: '{sys.executable}', args: {arguments}, tools: {tools}}}"


def test_tools_are_pinned_and_checked_in_two_commands(run: Any, tmp_path: Path) -> None:
    teams = tmp_path / "teams.yaml"
    teams.write_text(team(program()))
    unpinned = run("check", "teams.yaml")
    assert unpinned.exit_code == 1
    assert "the tools of MCP server 'shop' are not pinned" in unpinned.stdout

    pinned = run("mcp", "pin", "teams.yaml")

    assert (pinned.exit_code, pinned.stdout.splitlines()) == (
        0,
        ["shop: 2 tools pinned", "  + echo: Say it again.", "  + process: The tool process."],
    )
    assert list(read_lock(tmp_path)["shop"]) == ["echo", "process"]
    checked = run("mcp", "check", "teams.yaml")
    assert (checked.exit_code, checked.stdout) == (0, "shop: 2 as pinned\n")
    assert run("check", "teams.yaml").exit_code == 0
    assert (pinned.stderr, checked.stderr) == ("", "")


def test_changed_tools_are_reported_and_can_be_accepted(run: Any, tmp_path: Path) -> None:
    teams = tmp_path / "teams.yaml"
    teams.write_text(team(program()))
    run("mcp", "pin", "teams.yaml")
    before = (tmp_path / FILE_NAME).read_text()
    teams.write_text(team(program("words=Say it to me.", tools="[echo, fail, nothing]")))

    checked = run("mcp", "check", PROXY_TEAMS="teams.yaml")

    assert (checked.exit_code, checked.stdout.splitlines()) == (
        1,
        [
            "shop: 1 changed, 1 missing, 1 not pinned",
            "  ~ echo differs from the pinned tool",
            "      description",
            "      -Say it again.",
            "      +Say it to me.",
            "  - process is pinned, but removed from the server",
            "  + fail is not pinned: The tool fail.",
            "  ! nothing is in the list 'tools', but the server has no such tool",
        ],
    )
    assert (tmp_path / FILE_NAME).read_text() == before
    teams.write_text(team(program("words=Say it to me.", tools="[echo, fail]")))
    assert run("mcp", "pin", "teams.yaml").exit_code == 0
    assert run("mcp", "check", "teams.yaml").exit_code == 0


def test_a_failing_server_keeps_its_pins_and_its_stderr_is_printed(run: Any, tmp_path: Path) -> None:
    teams = tmp_path / "teams.yaml"
    teams.write_text(team(program()))
    run("mcp", "pin", "teams.yaml")
    before = (tmp_path / FILE_NAME).read_text()
    teams.write_text(team(program("dies")))

    for command in ("check", "pin"):
        result = run("mcp", command, "teams.yaml")
        assert (result.exit_code, result.stdout.splitlines()) == (
            1,
            ["shop: the server ended before it listed its tools", "    | no configuration was found"],
        )
    assert (tmp_path / FILE_NAME).read_text() == before


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        pytest.param(
            "teams: {t: {entry: A, agents: {A: {instructions: Hi.}}}}",
            "there are no MCP servers: the team files have no section 'mcp_servers'",
            id="no servers",
        ),
        pytest.param(
            "mcp_servers: {a: {comand: x}}",
            "teams.yaml:1:15: mcp_servers.a: 'command' or 'url' is missing",
            id="a mistake",
        ),
    ],
)
def test_invalid_team_files_are_reported(run: Any, tmp_path: Path, content: str, reported: str) -> None:
    (tmp_path / "teams.yaml").write_text(content)

    for command in ("check", "pin"):
        result = run("mcp", command, "teams.yaml")
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{reported}\n")


def test_an_invalid_lock_file_fails_check_and_is_replaced_by_pin(run: Any, tmp_path: Path) -> None:
    (tmp_path / "teams.yaml").write_text(team(program()))
    (tmp_path / FILE_NAME).write_text("{")

    assert run("mcp", "check", "teams.yaml").stderr == (
        f"{FILE_NAME}: not a valid lock file; recreate it with 'handoff-proxy mcp pin'\n"
    )
    assert run("mcp", "pin", "teams.yaml").exit_code == 0
    assert run("mcp", "check", "teams.yaml").exit_code == 0


# --- teams ---


@pytest.fixture
async def fake() -> AsyncIterator[FakeMcp]:
    async with FakeMcp() as created:
        yield created


@asynccontextmanager
async def helpers(folder: Path, upstream: FakeUpstream, url: str) -> AsyncIterator[Served]:
    """Serve a team whose agent has the tools of a server at ``url``, pinned as they are there now, if it is there."""
    (folder / "teams.yaml").write_text(team(f"{{url: '{url}'}}", upstream=upstream.base_url))
    (found,) = await discover_tools([ServerSetup("shop", HttpEndpoint(url))])
    if found.tools:
        write_lock(folder, {"shop": {tool.name: tool for tool in found.tools}})
    async with serve(folder, teams=folder) as served:
        yield served


async def ask(served: Served) -> Any:
    return await served.client().chat.completions.create(
        model="helpers", messages=[{"role": "user", "content": "Hi"}]
    )


def offered(upstream: FakeUpstream, request: int) -> list[str]:
    return [tool["function"]["name"] for tool in upstream.requests[request].body.get("tools", [])]


def results(upstream: FakeUpstream, request: int) -> list[str]:
    """The results of tools that a request of the model holds."""
    return [one["content"] for one in upstream.requests[request].body["messages"] if one["role"] == "tool"]


async def test_an_agent_calls_the_tools_of_a_server_several_at_once(
    tmp_path: Path, upstream: FakeUpstream, fake: FakeMcp
) -> None:
    upstream.reply(
        calls(("shop__echo", {"text": "one"}), ("shop__other", {"text": "two"}), ("shop__echo", {"text": 3})),
        text("Done"),
    )
    go = asyncio.Event()
    for tool in ("echo", "other"):
        fake.reply(
            tool, lambda received: says(received.body["params"]["arguments"]["text"])(received).held(go)
        )
    async with helpers(tmp_path, upstream, fake.url) as served:
        pending = asyncio.create_task(ask(served))
        await until(lambda: len(fake.calls) == 2)
        go.set()
        answer = await pending

    assert answer.choices[0].message.content == "Done"
    assert offered(upstream, 0) == ["shop__echo", "shop__other"]
    assert results(upstream, 1) == ["one", "two", "error: argument 'text': 3 is not of type \"string\""]
    assert sorted(one["arguments"]["text"] for one in fake.calls) == ["one", "two"]
    assert answer.model_extra["handoff"]["tool_calls"] == 3


async def test_a_tool_that_has_changed_is_offered_no_more(
    tmp_path: Path, upstream: FakeUpstream, fake: FakeMcp
) -> None:
    async with helpers(tmp_path, upstream, fake.url) as served:
        upstream.reply(text("Hi"), text("Hi"))
        await ask(served)
        fake.tools[0] = described("echo", "Say it again, and send it to me.")
        fake.forget()
        upstream.requests.clear()
        upstream.reply(calls(("shop__other", {"text": "x"})), text("Hi"))
        # Over the new session the list is read again.
        await ask(served)

        await ask(served)

    assert offered(upstream, len(upstream.requests) - 1) == ["shop__other"]


async def test_teams_are_served_while_a_server_is_down(tmp_path: Path, upstream: FakeUpstream) -> None:
    port = free_port()
    async with FakeMcp(port=port) as fake:
        (found,) = await discover_tools([ServerSetup("shop", HttpEndpoint(fake.url))])
        url = fake.url
    write_lock(tmp_path, {"shop": {tool.name: tool for tool in found.tools}})
    upstream.reply(calls(("shop__echo", {"text": "x"})), text("The shop is closed."))

    async with helpers(tmp_path, upstream, url) as served:
        answer = await ask(served)

    assert answer.choices[0].message.content == "The shop is closed."
    (reported,) = results(upstream, 1)
    assert reported.startswith("error: the MCP server 'shop' could not be reached")


async def test_what_is_not_pinned_stops_the_start(tmp_path: Path, run: Any) -> None:
    (tmp_path / "teams.yaml").write_text(team("{url: 'http://127.0.0.1:9/mcp'}"))

    result = await asyncio.to_thread(run, "serve", "--teams", "teams.yaml", "--port", "0")

    assert result.exit_code == 2
    assert "the tools of MCP server 'shop' are not pinned" in result.stderr


# --- servers of the official SDK ---


def shop() -> MCPServer:
    server = MCPServer("shop")

    @server.tool()
    def add(first: int, second: int) -> int:
        """Add two numbers."""
        return first + second

    @server.tool()
    async def change(context: Context) -> str:
        """Have another tool."""

        def more() -> str:
            """Give more."""
            return "more"

        server.remove_tool("add")
        server.add_tool(more)
        await context.notify_tools_changed()
        return "changed"

    return server


@asynccontextmanager
async def served_shop(*, is_stateless: bool) -> AsyncIterator[str]:
    app = shop().streamable_http_app(stateless_http=is_stateless)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        running = asyncio.create_task(server.serve([listening]))
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        server.should_exit = True
        await running


@pytest.mark.parametrize("is_stateless", [False, True], ids=["with sessions", "without sessions"])
async def test_a_server_of_the_official_sdk_is_called_and_followed(is_stateless: bool) -> None:
    async with served_shop(is_stateless=is_stateless) as url:
        setup = ServerSetup("shop", HttpEndpoint(url))
        (found,) = await discover_tools([setup])
        server = McpServer(setup, {tool.name: tool for tool in found.tools})
        server.start()

        assert await server.call("add", {"first": 2, "second": 3}, call_key="k") == "5"
        assert await server.call("change", {}, call_key="k") == "changed"
        await until(lambda: not server.offers("add"))
        assert server.offers("change")
        await server.close()
