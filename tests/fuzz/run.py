"""What all targets share: the time, the seed, findings, and the server with its resources."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.command import Command, command
from tests.fakes.upstream import Received, Reply, raw
from tests.fakes.upstream import text as answer_text
from tests.server import free_port

TEAMS = """\
models:
  default: {{model: chat-model, base_url: "{upstream}", api_key: upstream-key, wire: chat}}
  newer: {{model: responses-model, base_url: "{upstream}", api_key: upstream-key, wire: responses}}
teams:
  chat:
    entry: triage
    agents:
      triage:
        model: default
        instructions: You are triage.
        tools: [get_time, calculate]
        handoffs: [{{to: sales, when: the user wants to buy, tool: transfer_to_sales}}]
      sales: {{model: default, instructions: You are sales.}}
  responses:
    entry: triage
    agents:
      triage: {{model: newer, instructions: You are triage., tools: [get_time, calculate]}}
"""
MAX_BLOCKED_CPU = 0.25
"""Seconds of CPU time in one step of the event loop. Waiting for the CPU of a busy machine does not count."""
MAX_GROWTH = 64 * 1024 * 1024
"""Bytes that the server may have more than after the warm-up."""
MAX_NEW_TASKS = 5
MAX_NEW_FILES = 10


class Finding(Exception):
    """The server did something that it must not do."""


_RESPONSE: tuple[dict[str, Any], ...] = (
    {
        "type": "response.output_text.delta",
        "item_id": "m1",
        "output_index": 0,
        "content_index": 0,
        "delta": "Yes",
    },
    {
        "type": "response.completed",
        "response": {"id": "r1", "status": "completed", "output": [], "model": "m"},
    },
)
RESPONSE_STREAM = b"".join(
    b"event: " + one["type"].encode() + b"\ndata: " + json.dumps(one).encode() + b"\n\n" for one in _RESPONSE
)
"""A short answer on the wire of the Responses API."""


class Provider:
    """The answers of the fake provider: scripted by a target, else a short text."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        """By a part of the request body; for requests that wait for a scripted answer."""

    def answer(self, received: Received) -> Reply:
        content = received.content.decode("utf-8", "replace")
        for part, reply in self.replies.items():
            if part in content:
                return reply
        return raw(RESPONSE_STREAM) if received.path.endswith("/responses") else answer_text("Yes.")


@dataclass
class Run:
    """One run of one target. ``deadline`` is of ``time.monotonic``; ``limit`` is the maximum number of inputs."""

    seed: int
    deadline: float
    url: str
    provider: Provider
    limit: int | None = None
    count: int = 0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def is_running(self) -> bool:
        """Count an input; return whether there is time for it."""
        self.count += 1
        return time.monotonic() < self.deadline and (self.limit is None or self.count <= self.limit)


@dataclass(frozen=True)
class Resources:
    """What a server holds."""

    tasks: int
    files: int
    memory: int
    """Resident bytes."""


class Server:
    """A server process, and what can be seen of it from outside."""

    def __init__(self, process: Command, url: str) -> None:
        self.process = process
        self.url = url
        self._checked = 0

    async def resources(self) -> Resources:
        """Wait until the server is idle, and return what it holds."""
        async with httpx2.AsyncClient(timeout=30) as client:
            deadline = time.monotonic() + 60
            tasks = await self._metric(client, "loop_tasks")
            while time.monotonic() < deadline:
                await asyncio.sleep(6)
                before, tasks = tasks, await self._metric(client, "loop_tasks")
                if await self._metric(client, "turns_running") == 0 and tasks == before:
                    break
        folder = Path("/proc") / str(self.process.process.pid)
        memory = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return Resources(tasks, len(list((folder / "fd").iterdir())), memory)

    async def _metric(self, client: httpx2.AsyncClient, name: str) -> int:
        shown = (await client.get(f"{self.url}/metrics")).text
        found = [line for line in shown.splitlines() if line.partition(" ")[0].endswith(name)]
        if not found:
            raise Finding(f"no metric {name}")
        return int(float(found[0].rpartition(" ")[2]))

    def check_log(self) -> None:
        """Check the new lines of the log.

        Raises:
            Finding: An error, or a block of the event loop.
        """
        stack: list[str] = []
        lines = self.process.log[self._checked :]
        self._checked += len(lines)
        for line in lines:
            message = line.get("message", "")
            stack = line.get("stack") or stack
            if line.get("cpu_seconds", 0) > MAX_BLOCKED_CPU:
                raise Finding(f"the event loop was blocked: {line} {stack}")
            level = line.get("level", line.get("levelname", ""))
            if "exc_info" in line or "Traceback" in message or level in ("ERROR", "CRITICAL"):
                raise Finding(f"the log has an error: {line}")


def grown(before: Resources, after: Resources) -> list[str]:
    """Return what the server holds more than before, as sentences."""
    found = []
    if after.tasks > before.tasks + MAX_NEW_TASKS:
        found.append(f"tasks: {before.tasks} before, {after.tasks} after")
    if after.files > before.files + MAX_NEW_FILES:
        found.append(f"open files: {before.files} before, {after.files} after")
    if after.memory > before.memory + MAX_GROWTH:
        found.append(f"memory: {before.memory >> 20} MiB before, {after.memory >> 20} MiB after")
    return found


@asynccontextmanager
async def server(
    folder: Path, upstream: str, environment: dict[str, str] | None = None, *, port: int | None = None
) -> AsyncIterator[Server]:
    """Start a server in ``folder`` with the teams of this module."""
    (folder / "teams.yaml").write_text(TEAMS.format(upstream=upstream))
    given: dict[str, Any] = {
        "PROXY_TEAMS": str(folder / "teams.yaml"),
        "PROXY_METRICS": "true",
        "PROXY_TURN_TIME_LIMIT": "20",
        "PROXY_SHUTDOWN_GRACE": "1",
        **(environment or {}),
    }
    async with command(
        "serve", "--port", str(port or free_port()), folder=folder, environment=given, is_forked=False
    ) as process:
        url = (await process.out.line("listens on", within=120)).rpartition(" ")[2].removesuffix("/v1")
        yield Server(process, url)
