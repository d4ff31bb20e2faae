"""Turns on two workers and PostgreSQL while workers are killed, and the checks at the end.

Every turn has an idempotency key, a client that repeats its request until it has an answer, and a follower. A turn
calls a tool without effects and one with effects. The checks:

- An answer that a client has received is stored, once.
- No call with effects ran twice.
- Every turn ends with an answer, and every follower with its closing event.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from proxy.store.engine.migrations import migrate
from tests.command import Command, command
from tests.fakes.upstream import FakeUpstream, Received, Reply, calls, text
from tests.kills.tools import refunds

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  shop:
    entry: desk
    agents:
      desk:
        instructions: You are desk.
        tools: ["tests.kills.tools:look_up", "tests.kills.tools:refund"]
"""

PATIENCE = 90.0
"""Seconds until a turn must have ended: longer than a lease and its takeovers."""
START_WITHIN = 120.0
"""Seconds until the first worker listens, on a machine that is busy with other tests."""
PAUSE = 0.2
"""Seconds between two attempts of a client."""
HEADERS = {"authorization": "Bearer test-key"}


@dataclass
class Report:
    """What was seen. ``findings`` are violations, in words."""

    turns: int = 0
    kills: int = 0
    attempts: int = 0
    same_turn: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


@dataclass
class Turn:
    """One turn of a client."""

    order: str
    is_stream: bool
    turn_id: str = ""
    answer: str = ""
    has_id: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def body(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Handle {self.order}"}]
        return {"model": "shop", "messages": messages, "stream": self.is_stream}

    @property
    def headers(self) -> dict[str, str]:
        return {**HEADERS, "idempotency-key": self.order, "x-conversation-id": f"chat-{self.order}"}


def model(rng: random.Random, seconds: float) -> Any:
    """Return the model: a call without effects, one with effects, and the answer, each after up to ``seconds``."""

    async def answer(received: Received) -> Reply:
        messages = received.body["messages"]
        order = next(m["content"] for m in messages if m["role"] == "user").split()[1]
        results = sum(message["role"] == "tool" for message in messages)
        await asyncio.sleep(rng.uniform(0, seconds))
        if results < 2:
            return calls((("look_up", "refund")[results], {"order": order}))
        return text(f"Done with {order}.", chunks=4)

    return answer


@asynccontextmanager
async def workers(folder: Path, upstream: FakeUpstream, database: str) -> AsyncIterator[tuple[Command, str]]:
    """Give two supervised workers and their base URL."""
    await migrate(database)
    teams = folder / "teams.yaml"
    await asyncio.to_thread(teams.write_text, TEAM.format(upstream=upstream.base_url))
    environment = {
        "PROXY_TEAMS": str(teams),
        "PROXY_DATABASE_URL": database,
        "PROXY_SHUTDOWN_GRACE": "1",
    }
    flags = ("serve", "--port", "0", "--workers", "2")
    async with command(*flags, folder=folder, environment=environment, is_forked=False) as running:
        url = (await running.out.line("listens on", START_WITHIN)).rpartition(" ")[2]
        while len(_started(running)) < 2:
            await running.err.more()
        yield running, url
        running.signal(signal.SIGTERM)
        await running.ended()


def _started(running: Command) -> list[int]:
    return [line["worker"] for line in running.log if line["message"] == "worker started"]


async def kill_at_random(running: Command, rng: random.Random, report: Report, pause: float) -> None:
    """Kill a running worker, and continue when it is replaced."""
    while True:
        await asyncio.sleep(rng.uniform(0.2, 1) * pause)
        before = _started(running)
        ended = {line["worker"] for line in running.log if line["message"] == "worker ended unexpectedly"}
        alive = [worker for worker in before if worker not in ended]
        if not alive:
            continue
        with suppress(ProcessLookupError):
            os.kill(rng.choice(alive), signal.SIGKILL)
            report.kills += 1
        while len(_started(running)) == len(before):
            await running.err.more()


async def run_client(url: str, turn: Turn, report: Report) -> None:
    """Send the request of a turn until there is an answer."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        report.attempts += 1
        async with httpx2.AsyncClient(timeout=PATIENCE) as client:
            try:
                async with client.stream(
                    "POST", f"{url}/chat/completions", json=turn.body, headers=turn.headers
                ) as response:
                    received = await _read(response, turn)
            except httpx2.HTTPError:
                await asyncio.sleep(PAUSE)
                continue
        if response.headers.get("idempotency-replayed") == "true":
            report.same_turn += 1
        if received is not None:
            turn.answer = received
            return
        await asyncio.sleep(PAUSE)
    report.findings.append(f"{turn.order}: no answer within {PATIENCE:g} seconds")


async def _read(response: httpx2.Response, turn: Turn) -> str | None:
    """Return the complete answer; None for an error or a cut."""
    if response.status_code != 200:
        await response.aread()
        return None
    if not turn.is_stream:
        body = json.loads(await response.aread())
        _see(turn, body["id"])
        return str(body["choices"][0]["message"]["content"])
    pieces: list[str] = []
    is_complete = False
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            return None
        _see(turn, chunk["id"])
        for choice in chunk["choices"]:
            pieces.append(choice["delta"].get("content") or "")
            is_complete = is_complete or choice["finish_reason"] is not None
    return "".join(pieces) if is_complete else None


def _see(turn: Turn, turn_id: str) -> None:
    turn.turn_id = turn_id
    turn.has_id.set()


async def follow(url: str, turn: Turn, report: Report) -> None:
    """Read the event feed of a turn until its closing event, across reconnections."""
    await turn.has_id.wait()
    deadline = time.monotonic() + PATIENCE
    last = ""
    while time.monotonic() < deadline:
        headers = {**HEADERS, **({"last-event-id": last} if last else {})}
        try:
            async with (
                httpx2.AsyncClient(timeout=PATIENCE) as client,
                client.stream("GET", f"{url}/turns/{turn.turn_id}/events", headers=headers) as response,
            ):
                async for line in response.aiter_lines():
                    if line.startswith("id: "):
                        last = line.removeprefix("id: ")
                    elif line.startswith("data: "):
                        frame = json.loads(line.removeprefix("data: "))
                        if frame["type"] in ("turn.completed", "turn.failed", "turn.cancelled"):
                            if frame["type"] != "turn.completed" and turn.answer:
                                report.findings.append(f"{turn.order}: follower got {frame['type']}")
                            return
        except httpx2.HTTPError:
            pass
        await asyncio.sleep(PAUSE)
    report.findings.append(f"{turn.order}: the follower got no closing event")


async def check(url: str, folder: Path, turns: list[Turn], report: Report) -> None:
    """Compare what clients received and tools did with what is stored."""
    for order, count in refunds(folder).items():
        if count > 1:
            report.findings.append(f"{order}: refunded {count} times")
    async with httpx2.AsyncClient(timeout=30, headers=HEADERS) as client:
        for turn in turns:
            if not turn.answer:
                continue
            items = (await client.get(f"{url}/conversations/chat-{turn.order}/items?limit=100")).json()[
                "data"
            ]
            texts = [
                part.get("text") for item in items if item["type"] == "message" for part in item["content"]
            ]
            stored = Counter(texts)[turn.answer]
            if stored != 1:
                report.findings.append(f"{turn.order}: the answer is stored {stored} times")


async def run(
    folder: Path, database: str, *, turns: int, seed: int, kill_pause: float, model_seconds: float
) -> Report:
    """Run turns, some at a time, while workers are killed; return what was found.

    ``kill_pause`` is the greatest pause between the start of a worker and the next kill, in seconds.
    """
    rng, report, began = random.Random(seed), Report(turns=turns), time.monotonic()
    created = [Turn(f"order{number}", is_stream=bool(number % 2)) for number in range(turns)]
    slots = asyncio.Semaphore(8)

    async def one(url: str, turn: Turn) -> None:
        async with slots:
            await run_client(url, turn, report)

    async with (
        FakeUpstream(answer=model(rng, model_seconds)) as upstream,
        workers(folder, upstream, database) as (running, url),
    ):
        killing = asyncio.create_task(kill_at_random(running, rng, report, kill_pause))
        following = [asyncio.create_task(follow(url, turn, report)) for turn in created]
        await asyncio.gather(*(one(url, turn) for turn in created))
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        for turn, task in zip(created, following, strict=True):
            if not turn.has_id.is_set():
                task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await check(url, folder, created, report)
    report.seconds = time.monotonic() - began
    return report
