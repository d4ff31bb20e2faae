"""A random walk over a long conversation with branches, against a provider with a hard context window.

``python -m tests.behaviour.long_walk --turns 2000`` runs it alone and prints what was measured. The suite runs a short
one.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.fakes.providers.windowed import WindowedProvider, calls_of, prompt_text, says
from tests.fakes.upstream import FakeUpstream
from tests.server import serve

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k, context_window: {window}}}
  writer: {{model: writer-model, base_url: "{upstream}", api_key: k, context_window: 1000000}}
teams:
  shop:
    entry: triage
    side_model: writer
    prompt_cache: true
    agents:
      triage:
        instructions: You are triage.
        tools: [calculate]
        handoffs: [{{to: sales, tool: to_sales}}]
      sales:
        instructions: You are sales.
        tools: [calculate]
        handoffs: [{{to: triage, tool: to_triage}}]
"""
FACTS_PER_BRANCH = 3
"""Facts that are planted at the beginning of the conversation and of each branch."""
SMALL = 6000
"""Shorter prompts say nothing about the shared beginning: any new message is a large part of them."""


@dataclass
class Point:
    """The end of a branch: the client's messages, the active agent, the facts, and the newest prompt."""

    agent: str = "triage"
    messages: list[Any] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    prompt: str = ""
    age: int = 0


@dataclass
class Measured:
    """What the walk has seen."""

    turns: int = 0
    calls: int = 0
    compactions: int = 0
    asked: int = 0
    missing_facts: int = 0
    shares: list[float] = field(default_factory=list)
    """Of each prompt but those after a compaction, the part that is the beginning of the prompt before it."""


class LongWalk:
    """The client, and the plan of the model."""

    def __init__(self, provider: WindowedProvider, seed: int, *, branches: int) -> None:
        self.provider = provider
        self.random = random.Random(seed)
        self.branches = [Point()]
        self.max_branches = branches
        self.numbers = itertools.count()
        self.measured = Measured()

    async def step(self, caller: Caller) -> None:
        """One turn at the end of a random branch, sometimes of a new one."""
        at = self.random.randrange(len(self.branches))
        point = self.branches[at]
        if point.age > 4 and len(self.branches) < self.max_branches and self.random.random() < 0.1:
            point = Point(point.agent, list(point.messages), list(point.facts), point.prompt)
            self.branches.append(point)
        await self._turn(caller, point)
        self.measured.turns += 1

    async def _turn(self, caller: Caller, point: Point) -> None:
        content = " ".join(
            f"word{self.random.randrange(10_000)}" for _ in range(self.random.randrange(5, 80))
        )
        question = f"question {next(self.numbers)}: {content}"
        if point.age < FACTS_PER_BRANCH:
            point.facts.append(f"fact-{next(self.numbers)}-{self.random.choice(['blue', 'green', 'red'])}")
            question += f" Remember {point.facts[-1]}."
        point.age += 1
        point.messages.append(user(question))
        seen = len(self.provider.accepted)
        has_client_call = self._plan(point)
        tools = [WEATHER]
        answer = (await caller.completion(point.messages, tools=tools)).choices[0].message
        if has_client_call:
            assert answer.tool_calls is not None
            dumped = [call.model_dump() for call in answer.tool_calls]
            point.messages.append(assistant(answer.content, tool_calls=dumped))
            for call in answer.tool_calls:
                point.messages.append(result(call.id, "sunny " * self.random.randrange(5, 200)))
            answer = (await caller.completion(point.messages, tools=tools)).choices[0].message
        point.messages.append(assistant(answer.content))
        self._measure(point, self.provider.accepted[seen:])

    def _plan(self, point: Point) -> bool:
        """Plan the replies of one turn; return whether a client tool is called."""
        for _ in range(self.random.randrange(3)):
            if self.random.random() < 0.4:
                point.agent = "sales" if point.agent == "triage" else "triage"
                self.provider.then(calls_of((f"to_{point.agent}", {"reason": "asked"})))
            else:
                expression = " + ".join(["1"] * self.random.randrange(2, 40))
                self.provider.then(calls_of(("calculate", {"expression": expression})))
        has_client_call = self.random.random() < 0.3
        if has_client_call:
            self.provider.then(calls_of(("weather", {"city": f"city {next(self.numbers)}"})))
        self.provider.then(says(f"answer {next(self.numbers)} " + "and so on " * self.random.randrange(60)))
        return has_client_call

    def _measure(self, point: Point, bodies: list[Any]) -> None:
        for body in bodies:
            prompt = json.dumps(body.get("tools")) + prompt_text(body)
            self.measured.calls += 1
            if _compactions(prompt) != _compactions(point.prompt):
                self.measured.compactions += 1
            elif len(point.prompt) > SMALL:
                self.measured.shares.append(_shared(point.prompt, prompt) / len(prompt))
            point.prompt = prompt
        self.measured.asked += len(point.facts)
        self.measured.missing_facts += sum(fact not in point.prompt for fact in point.facts)


def _compactions(prompt: str) -> tuple[str, int]:
    """What a compaction changes: the summary, and the number of shortened results."""
    summary = prompt.partition("Summary of the earlier part")[2].partition('"}')[0]
    return summary, prompt.count("characters of this result")


def _shared(before: str, prompt: str) -> int:
    low, high = 0, min(len(before), len(prompt))
    while low < high:
        middle = (low + high + 1) // 2
        if before[:middle] == prompt[:middle]:
            low = middle
        else:
            high = middle - 1
    # The last bracket of the list of messages before is not part of the prompt.
    return low


async def walk(
    folder: Path, *, turns: int, seed: int = 1, window: int = 6000, branches: int = 6, restarts: int = 1
) -> tuple[Measured, WindowedProvider]:
    """Walk, with restarts of the server in between."""
    provider = WindowedProvider(window)
    async with FakeUpstream(answer=provider) as upstream:
        text = TEAM.format(upstream=upstream.base_url, window=window)
        (folder / "team.yaml").write_text(text, encoding="utf-8")
        walker = LongWalk(provider, seed, branches=branches)
        for part in range(restarts + 1):
            async with serve(folder, teams=folder / "team.yaml") as served:
                caller = Caller(served)
                for _ in range(turns * part // (restarts + 1), turns * (part + 1) // (restarts + 1)):
                    await walker.step(caller)
    return walker.measured, provider


def main() -> None:
    parser = argparse.ArgumentParser(description="Random walk over a long conversation.")
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        measured, provider = asyncio.run(
            walk(Path(folder), turns=options.turns, seed=options.seed, restarts=3)
        )
    shares = sorted(measured.shares)
    print(
        f"{measured.turns} turns, {measured.calls} model calls, {measured.compactions} compactions, "
        f"{len(provider.summaries)} summaries, {len(provider.rejected)} rejected, "
        f"{len(provider.violations)} orphaned calls or results, "
        f"{measured.missing_facts} of {measured.asked} facts missing"
    )
    print(f"shared beginning: least {shares[0]:.3f}, median {shares[len(shares) // 2]:.3f}")
    print(f"{time.monotonic() - began:.0f} s")
    assert not provider.rejected
    assert not provider.violations
    assert not measured.missing_facts
    assert shares[0] >= 0.8


if __name__ == "__main__":
    main()
