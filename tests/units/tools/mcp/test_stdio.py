"""MCP servers that are programs: what they are given, what they can do to a call, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from proxy.errors import ToolError
from proxy.tools.mcp.discovery import discover_tools
from proxy.tools.mcp.server import McpServer
from proxy.tools.mcp.setup import Program, ServerSetup, child_environment
from tests.polling import until

PROGRAM = Path(__file__).parents[3] / "fakes" / "mcp_program.py"

shared = pytest.mark.asyncio(loop_scope="module")


def setup(*modes: str, **changes: Any) -> ServerSetup:
    own = {**os.environ, "OPENAI_API_KEY": "hunter2", "PROXY_DATABASE_URL": "hunter2", "LANG": "C.UTF-8"}
    program = Program(
        sys.executable, (str(PROGRAM), *modes), child_environment(own, {"SHOP": "open"}), PROGRAM.parent
    )
    return ServerSetup("program", program, **{"stop_seconds": 0.2, **changes})


async def started(*modes: str, **changes: Any) -> McpServer:
    """A server with every tool pinned as it is."""
    created = setup(*modes, **changes)
    (found,) = await discover_tools([created])
    return McpServer(created, {tool.name: tool for tool in found.tools})


async def call(server: McpServer, tool: str, **arguments: object) -> str:
    try:
        return await server.call(tool, arguments, call_key="t1:1:0")
    except ToolError as error:
        return f"error: {error.message}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[McpServer]:
    """One program for the calls that it survives."""
    created = await started(max_answer_bytes=100_000)
    yield created
    await created.close()


# --- calls ---


@shared
async def test_a_call_gives_its_text(server: McpServer) -> None:
    assert await call(server, "echo", text="Grüße") == "Grüße"


@shared
async def test_a_program_gets_a_few_variables_and_its_own_ones_and_no_keys(server: McpServer) -> None:
    given = json.loads(await call(server, "environment"))

    assert given.pop("cwd") == str(PROGRAM.parent)
    assert given["SHOP"] == "open"
    assert given["PATH"] == os.environ["PATH"]
    # What the interpreter sets itself, besides.
    assert given.keys() <= {"SHOP", "HOME", "LANG", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER", "LC_CTYPE"}


@shared
@pytest.mark.parametrize(
    ("tool", "arguments", "reported"),
    [
        pytest.param("fail", {}, "error: the shop is closed", id="error"),
        *(
            pytest.param(
                tool,
                {"size": size},
                "error: the MCP server 'program' sent a message that is larger than allowed",
                id=f"{tool}-{size}",
            )
            for tool in ("big", "big_id_last")
            for size in (100_000, 8_000_000)
        ),
        pytest.param(
            "nothing", {}, "error: the MCP server 'program' rejected the call: Method not found", id="no tool"
        ),
        pytest.param("ask_back", {}, "-32600 -32600 -32600", id="sampling, elicitation and roots"),
    ],
)
async def test_what_a_program_does_in_a_call_leaves_the_session_as_it_was(
    server: McpServer, tool: str, arguments: dict[str, object], reported: str
) -> None:
    process = await call(server, "process")

    assert await call(server, tool, **arguments) == reported
    assert await call(server, "process") == process


@shared
async def test_an_answer_within_the_limit_comes_whole(server: McpServer) -> None:
    assert await call(server, "big", size=99_000) == "x" * 99_000


@shared
async def test_a_cancelled_call_is_cancelled_at_the_program(server: McpServer) -> None:
    process = await call(server, "process")
    before = json.loads(await call(server, "was_cancelled"))
    left = asyncio.create_task(call(server, "hang"))
    await asyncio.sleep(0)
    await call(server, "echo", text="behind it")

    left.cancel()

    await asyncio.wait((left,))
    assert left.cancelled()
    while len(after := json.loads(await call(server, "was_cancelled"))) == len(before):
        pass
    assert len(after) == len(before) + 1
    assert await call(server, "process") == process


@shared
async def test_a_program_that_answers_with_junk_is_not_trusted_with_the_next_call(server: McpServer) -> None:
    process = await call(server, "process")

    reported = "error: the MCP server 'program' sent a response that could not be decoded"
    assert await call(server, "junk") == reported
    assert await call(server, "process") != process


async def test_a_program_that_exits_during_a_call_is_restarted_for_the_next() -> None:
    server = await started()
    try:
        first = await call(server, "process")
        other = asyncio.create_task(call(server, "hang"))
        await asyncio.sleep(0)

        lost = "error: the MCP server 'program' closed the connection before its response was complete"
        assert await call(server, "leave") == lost
        assert await other == lost, "whatever else is under way ends with it"
        second = await call(server, "process")
        assert second not in ("", first)
    finally:
        await server.close()


async def test_a_program_that_exits_between_calls_is_restarted() -> None:
    server = await started()
    try:
        process = await call(server, "process")
        os.kill(int(process), signal.SIGKILL)

        # The one call that finds out may be lost; what comes behind it is not.
        await until(lambda: _is_gone(int(process)))
        await call(server, "process")
        assert await call(server, "process") != process
    finally:
        await server.close()


async def test_a_tool_that_changes_while_the_program_runs_is_withdrawn() -> None:
    server = await started()
    try:
        assert await call(server, "echo", text="Hi") == "Hi"
        assert await call(server, "change") == "changed"
        await until(lambda: not server.offers("echo"))

        assert (await call(server, "echo", text="Hi")).startswith(
            "error: the definition of the tool has changed since"
        )
    finally:
        await server.close()


# --- beginnings and ends ---


async def test_a_program_that_does_not_answer_is_given_up_and_ended() -> None:
    server = McpServer(setup("silent", connect_seconds=0.3), {})

    assert await call(server, "echo") == "error: the MCP server 'program' did not respond within 0.3 seconds"
    await server.close()


@pytest.mark.parametrize(
    ("created", "failure", "stderr_tail"),
    [
        pytest.param(
            setup("dies"),
            "ended before it listed its tools",
            "no configuration was found",
            id="a program that dies",
        ),
        pytest.param(
            ServerSetup("program", Program("/nowhere/to/be/found")),
            "cannot be started (No such file or directory)",
            "",
            id="no program",
        ),
        pytest.param(
            ServerSetup("program", Program(sys.executable, folder=Path("/nowhere"))),
            "cannot be started (No such file or directory)",
            "",
            id="no folder",
        ),
    ],
)
async def test_a_failed_start_is_reported_with_the_stderr_of_the_program(
    created: ServerSetup, failure: str, stderr_tail: str
) -> None:
    (found,) = await discover_tools([created])

    assert (found.failure, found.stderr_tail) == (failure, stderr_tail)


async def test_a_program_that_ends_at_a_request_of_the_newer_protocol_gets_the_earlier_one() -> None:
    server = await started("strict")

    assert await call(server, "echo", text="Hi") == "Hi"
    await server.close()


async def test_output_of_a_program_outside_of_the_protocol_is_ignored() -> None:
    (found,) = await discover_tools([setup("banner")])

    assert "echo" in [tool.name for tool in found.tools]


async def test_a_program_that_will_not_end_is_killed() -> None:
    server = await started("stubborn")
    process = int(await call(server, "process"))

    await server.close()

    assert _is_gone(process)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look into")
async def test_what_a_program_started_itself_ends_with_it() -> None:
    server = await started("parent")
    process = await call(server, "process")
    child = _child_of(process)
    assert not _is_gone(child)

    await server.close()

    await until(lambda: _is_gone(child))


def test_programs_run_under_the_loop_that_serves_too() -> None:
    async def run() -> str:
        server = await started()
        try:
            return await call(server, "echo", text="Hi")
        finally:
            await server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == "Hi"


def _child_of(process: str) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text())


def _is_gone(process: int) -> bool:
    """Return whether a process has ended, including one whose exit status was not read."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False
