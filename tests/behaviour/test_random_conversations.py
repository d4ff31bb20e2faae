"""A client that edits and regenerates at random is always answered by the right agent, with the exact context.

The test keeps its own account of what every point of the conversation looks like, and compares it with what the
model server was really asked.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.chat_client import Caller, assistant, user
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import serve

ROADS = {"triage": ["sales", "repairs"], "sales": ["triage"], "repairs": ["triage"]}
DELEGATES = {
    "sales": "transfer_to_sales",
    "repairs": "transfer_to_repairs",
    "triage": "transfer_back_to_triage",
}


@dataclass
class Point:
    """A point of the conversation after a response: messages of the client, messages of the agents, active agent."""

    agent: str = "triage"
    shown: list[Any] = field(default_factory=list)
    known: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """The prompts that the provider received in one turn, one for each active agent, and the answer."""

    prompts: list[list[str]]
    expected_prompts: list[list[str]]
    answer: str
    expected_end: str


class Walk:
    """One client's walk, with the provider's part in it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.points = [Point()]
        self.numbers = itertools.count()
        self.seen: list[list[str]] = []
        self.plan: list[str] = []

    def answer(self, received: Any) -> Any:
        """Follow the plan of this turn: hand over the given number of times, then answer."""
        self.seen.append([_word(message) for message in received.body["messages"]])
        step = self.plan.pop(0)
        if step.startswith("say "):
            return text(step.removeprefix("say "))
        return calls((DELEGATES[step], {}), text=self.random.choice([None, "One moment."]))

    async def step(self, caller: Caller, headers: dict[str, str] | None) -> Step:
        """Continue from the newest point, or from any older one (an edit, a regenerate)."""
        point = self.points[-1] if self.random.random() < 0.5 else self.random.choice(self.points)
        question = f"question {next(self.numbers)}"
        agents = [point.agent]
        for _ in range(self.random.randrange(3)):
            agents.append(self.random.choice(ROADS[agents[-1]]))
        reply = f"answer {next(self.numbers)}"
        self.plan = [*agents[1:], f"say {reply}"]
        self.seen = []

        said = await caller.ask(self._dressed([*point.shown, user(question)]), headers=headers)

        known = [*point.known, f"user:{question}"]
        expected = []
        for agent in agents:
            expected.append([f"system:You are {agent}.", *known])
            known = [*known, "calls", "result"]
        known = [*known[:-2], f"assistant:{reply}"]
        self.points.append(Point(agents[-1], [*point.shown, user(question), assistant(said)], known))
        return Step(self.seen, expected, said, reply)

    def _dressed(self, messages: Sequence[Any]) -> list[Any]:
        """The same list as different clients would send it."""
        clock = [{"role": "system", "content": f"It is {self.random.randrange(24)}:00."}]
        dressed: list[Any] = []
        for message in messages:
            content = message["content"]
            if self.random.random() < 0.3:
                content = f" {content}\n"
            if self.random.random() < 0.3:
                content = [{"type": "text", "text": content}]
            dressed.append({**message, "content": content})
        return [*clock, *dressed] if self.random.random() < 0.3 else dressed


def _word(message: Any) -> str:
    if message.get("tool_calls"):
        return "calls"
    if message["role"] == "tool":
        return "result"
    if message["role"] == "system":
        return f"system:{message['content']}".split("\n\n")[0]
    content = message["content"]
    if isinstance(content, list):
        content = content[0]["text"]
    return f"{message['role']}:{content.strip()}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "headers", [None, {"X-OpenWebUI-Chat-Id": "chat-1"}], ids=["stateless", "with a frontend's id"]
)
async def test_a_random_walk_meets_the_right_agent_with_the_exact_context(
    tmp_path: Path, seed: int, headers: dict[str, str] | None
) -> None:
    walk = Walk(seed)
    async with FakeUpstream(answer=walk.answer) as upstream:
        for _ in range(2):  # a restart in between
            async with serve(tmp_path, upstream.base_url) as served:
                caller = Caller(served)
                for _ in range(15):
                    step = await walk.step(caller, headers)
                    assert step.prompts == step.expected_prompts
                    assert step.answer.endswith(step.expected_end)
