"""``serve --workers``: several processes on one port, supervised."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from tests.command import Command, command

TEAM = """\
teams:
  library:
    entry: {entry}
    agents:
      {entry}:
        instructions: You work in a library.
"""
QUESTION = {"model": "library", "messages": [{"role": "user", "content": "Hi"}]}


@asynccontextmanager
async def workers(folder: Path, *flags: str, count: int = 2) -> AsyncIterator[tuple[Command, str]]:
    """Give the running command and its base URL."""
    (folder / "team.yaml").write_text(TEAM.format(entry="Librarian"))
    environment = {"PROXY_TEAMS": "team.yaml", "PROXY_METRICS": "true"}
    flags = ("serve", "--port", "0", "--workers", str(count), *flags)
    async with command(*flags, folder=folder, environment=environment) as running:
        yield running, (await running.url()).removesuffix("/v1")
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0, running.err.text


def started(running: Command) -> list[int]:
    """Process ids of the workers that have started, in that order."""
    return [line["worker"] for line in running.log if line["message"] == "worker started"]


async def agent(url: str) -> str:
    """The agent that answers, over a connection of its own."""
    async with httpx2.AsyncClient(timeout=30) as client:
        answer = await client.post(f"{url}/v1/chat/completions", json=QUESTION)
    return str(answer.json()["choices"][0]["message"]["content"])


async def test_workers_count_together_and_stop_when_the_supervisor_dies(tmp_path: Path) -> None:
    environment = {"PROXY_METRICS": "true"}
    async with command(
        "serve", "--port", "0", "--workers", "2", folder=tmp_path, environment=environment
    ) as running:
        url = (await running.url()).removesuffix("/v1")
        for count in range(6):
            async with httpx2.AsyncClient() as client:
                shown = (await client.get(f"{url}/metrics")).text
            counted = re.findall(r'requests_total\{outcome="ok",route="metrics",status="200"\} (\d+)', shown)
            assert [int(one) for one in counted] == ([count] if count else [])
        workers = started(running)

        running.signal(signal.SIGKILL)
        # It waits for the end of the output, which the workers share.
        await running.ended()
    assert len(workers) == 2


async def test_restart_uses_the_changed_team_file_and_loses_no_request(tmp_path: Path) -> None:
    async with workers(tmp_path) as (running, url):
        old = started(running)
        assert "Librarian" in await agent(url)
        (tmp_path / "team.yaml").write_text(TEAM.format(entry="Archivist"))
        answers: list[str] = []
        is_over = asyncio.Event()

        async def ask_until_over() -> None:
            while not is_over.is_set():
                answers.append(await agent(url))

        asking = asyncio.create_task(ask_until_over())
        running.signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while len(started(running)) < 4 or sum("stopped" in line for line in running.err.lines) < 2:
                await running.err.more()
        is_over.set()
        await asking

        assert "Archivist" in await agent(url)
        assert all("Librarian" in answer or "Archivist" in answer for answer in answers)
        assert answers
        assert len({*started(running)} - {*old}) == 2


async def test_invalid_team_file_aborts_the_restart_and_changes_nothing(tmp_path: Path) -> None:
    async with workers(tmp_path) as (running, url):
        old = started(running)
        (tmp_path / "team.yaml").write_text(TEAM.format(entry="Archivist").replace("agents:", "agent:"))

        running.signal(signal.SIGHUP)
        await running.err.line("restart of workers aborted")

        assert started(running) == old
        assert any("team.yaml:" in line for line in running.err.lines)
        assert "Librarian" in await agent(url)


async def test_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    async with workers(tmp_path) as (running, url):
        old = started(running)
        os.kill(old[0], signal.SIGKILL)
        async with asyncio.timeout(60):
            while len(started(running)) < 3:
                await running.err.more()

        assert "Librarian" in await agent(url)
        ended = next(line for line in running.log if line["message"] == "worker ended unexpectedly")
        assert (ended["worker"], ended["exit_code"]) == (old[0], -signal.SIGKILL)


async def test_invalid_configuration_is_reported_once_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.format(entry="Archivist").replace("agents:", "agent:"))
    environment = {"PROXY_TEAMS": "team.yaml"}
    async with command(
        "serve", "--port", "0", "--workers", "3", folder=tmp_path, environment=environment
    ) as running:
        assert await running.ended() == 2
    reported = [line for line in running.err.lines if not line.startswith("{")]
    assert reported
    assert sorted(reported) == sorted({*reported})
    assert all(line.startswith("team.yaml:") for line in reported)
    assert running.out.lines == []
