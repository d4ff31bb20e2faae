"""``serve --workers``: several processes on one port, supervised."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from proxy.server_file import reload_servers
from tests.command import Command, command

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEAM = """\
teams:
  library:
    entry: {entry}
    agents:
      {entry}:
        instructions: You work in a library.
"""
SERVE = ("serve", "--port", "0", "--workers")
QUESTION = {"model": "library", "messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Workers:
    """A server with two workers; ``team_file`` is read when they start."""

    running: Command
    url: str
    team_file: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workers]:
    folder = tmp_path_factory.mktemp("workers")
    file = folder / "team.yaml"
    file.write_text(TEAM.format(entry="Librarian"))
    environment = {"PROXY_TEAMS": "team.yaml", "PROXY_METRICS": "true"}
    async with command(*SERVE, "2", folder=folder, environment=environment, is_forked=False) as running:
        yield Workers(running, (await running.url()).removesuffix("/v1"), file)
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0, running.err.text


def started(running: Command) -> list[int]:
    """Process ids of the workers that have started, in that order."""
    return [line["worker"] for line in running.log if line["message"] == "worker started"]


def count_stopped(running: Command) -> int:
    return sum("stopped" in line for line in running.err.lines)


async def agent(url: str) -> str:
    """The agent that answers, over a connection of its own."""
    async with httpx2.AsyncClient(timeout=30) as client:
        answer = await client.post(f"{url}/v1/chat/completions", json=QUESTION)
    return str(answer.json()["choices"][0]["message"]["content"])


async def metrics_requests(url: str) -> int:
    """The number of requests for metrics that all workers have counted, over a connection of its own."""
    async with httpx2.AsyncClient() as client:
        shown = (await client.get(f"{url}/metrics")).text
    counted = re.findall(r'requests_total\{outcome="ok",route="metrics",status="200"\} (\d+)', shown)
    return sum(int(one) for one in counted)


async def test_workers_count_together(workers: Workers) -> None:
    first = await metrics_requests(workers.url)
    requests = 1
    # A request is counted after its response, so the next one may come before. Each worker gets some of ten requests.
    async with asyncio.timeout(30):
        while await metrics_requests(workers.url) != first + requests or requests < 10:
            requests += 1


async def test_invalid_team_file_aborts_the_restart_and_changes_nothing(workers: Workers) -> None:
    running = workers.running
    old = started(running)
    before = workers.team_file.read_text()
    workers.team_file.write_text(before.replace("agents:", "agent:"))

    # It sends SIGHUP, and waits for the end of the restart.
    (result,) = await asyncio.to_thread(reload_servers, workers.team_file.parent / "data", time_limit=60)
    await running.err.line("restart of workers aborted")

    assert "the new worker did not start" in (result.problem or "")
    workers.team_file.write_text(before)
    assert started(running) == old
    assert any("team.yaml:" in line for line in running.err.lines)
    assert await agent(workers.url)


async def test_worker_that_dies_is_replaced(workers: Workers) -> None:
    running = workers.running
    old = started(running)
    killed = old[-1]
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(60):
        while len(started(running)) == len(old):
            await running.err.more()

    assert await agent(workers.url)
    ended = next(line for line in running.log if line["message"] == "worker ended unexpectedly")
    assert (ended["worker"], ended["exit_code"]) == (killed, -signal.SIGKILL)


async def test_restart_uses_the_changed_team_file_and_loses_no_request(workers: Workers) -> None:
    running, url = workers.running, workers.url
    old = started(running)
    stopped = count_stopped(running)
    before = await agent(url)
    after = "Archivist" if "Librarian" in before else "Librarian"
    workers.team_file.write_text(TEAM.format(entry=after))
    answers: list[str] = []
    is_over = asyncio.Event()

    async def ask_until_over() -> None:
        while not is_over.is_set():
            answers.append(await agent(url))

    pending = asyncio.create_task(ask_until_over())
    (result,) = await asyncio.to_thread(reload_servers, workers.team_file.parent / "data", time_limit=60)
    assert result.problem is None
    async with asyncio.timeout(60):
        while len(started(running)) < len(old) + 2 or count_stopped(running) < stopped + 2:
            await running.err.more()
    is_over.set()
    await pending

    assert after in await agent(url)
    assert all("Librarian" in answer or "Archivist" in answer for answer in answers)
    assert answers
    assert len({*started(running)} - {*old}) == 2


async def test_workers_stop_when_the_supervisor_dies(tmp_path: Path) -> None:
    async with command(*SERVE, "2", folder=tmp_path) as running:
        await running.url()
        workers = started(running)

        running.signal(signal.SIGKILL)
        # It waits for the end of the output, which the workers share.
        await running.ended()
    assert len(workers) == 2


async def test_one_process_reloads_its_team_files_without_a_restart(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.format(entry="Librarian"))
    environment = {"PROXY_TEAMS": "team.yaml"}
    async with command("serve", "--port", "0", folder=tmp_path, environment=environment) as running:
        url = (await running.url()).removesuffix("/v1")
        (tmp_path / "team.yaml").write_text(TEAM.format(entry="Archivist"))

        async with command("reload", folder=tmp_path) as reload:
            assert await reload.ended() == 0
            assert "reloaded" in reload.out.text
        assert "Archivist" in await agent(url)

        (tmp_path / "team.yaml").write_text(TEAM.format(entry="Keeper").replace("agents:", "agent:"))
        (result,) = await asyncio.to_thread(reload_servers, tmp_path / "data", time_limit=60)
        assert "team.yaml:" in (result.problem or "")
        assert "Archivist" in await agent(url)

        running.signal(signal.SIGTERM)
        assert await running.ended() == 0, running.err.text
    assert reload_servers(tmp_path / "data", time_limit=1) == []


async def test_invalid_configuration_is_reported_once_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.format(entry="Archivist").replace("agents:", "agent:"))
    environment = {"PROXY_TEAMS": "team.yaml"}
    async with command(*SERVE, "3", folder=tmp_path, environment=environment) as running:
        assert await running.ended() == 2
    reported = [line for line in running.err.lines if not line.startswith("{")]
    assert reported
    assert sorted(reported) == sorted({*reported})
    assert all(line.startswith("team.yaml:") for line in reported)
    assert running.out.lines == []
