"""Clients that edit, regenerate, repeat and leave at random meet the right agent, with the exact context.

Several chats run at the same time over two workers of one database. Each chat has its own record of what every point of
its conversation looks like, and compares it with the prompts that the provider received.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.fakes.upstream import FakeUpstream, Received, Reply, calls, text
from tests.server import Served, serve

ROADS = {"triage": ["sales", "repairs"], "sales": ["triage"], "repairs": ["triage"]}
DELEGATES = {
    "sales": "transfer_to_sales",
    "repairs": "transfer_to_repairs",
    "triage": "transfer_back_to_triage",
}
CHATS = 3
STEPS = 8
LEFT_OPEN = "not executed: no result was given for this call"


@dataclass(frozen=True)
class Point:
    """A point of the conversation after a response: messages of the client, messages of the agents, active agent.

    ``call`` is the id of the client tool's call that has no result yet, ``turn`` the id of the turn that ended here.
    """

    agent: str = "triage"
    shown: tuple[Any, ...] = ()
    known: tuple[str, ...] = ()
    call: str = ""
    turn: str = ""


@dataclass
class Step:
    """The prompts that the provider received in a step, one for each model call, and those that are expected."""

    action: str
    prompts: list[list[str]]
    expected: list[list[str]] = field(default_factory=list)


class Chat:
    """The walk of one client, with the provider's part in it."""

    def __init__(self, number: int, seed: int, headers: dict[str, str]) -> None:
        self.number = number
        self.headers = headers
        self.random = random.Random(seed * CHATS + number)
        self.points = [Point()]
        self.numbers = itertools.count()
        self.seen: list[list[str]] = []
        self.plan: list[str] = []

    # --- the provider ---

    def answer(self, received: Received) -> Reply:
        """Follow the plan: hand over, call the client's tool, leave the client waiting, or answer."""
        self.seen.append([_word(message) for message in received.body["messages"]])
        kind, _, texts = self.plan.pop(0).partition(" ")
        match kind:
            case "say":
                return text(texts)
            case "hang":
                return text(texts, chunks=4).hang(after=3)
            case "call":
                return calls(("weather", {"city": f"chat {self.number}"}))
            case _:
                spoken = texts if texts else None
                return calls((DELEGATES[kind], {}), text=spoken)

    # --- the client ---

    async def step(self, workers: Sequence[Served]) -> Step:
        """Take a random step from the newest point, or from any older one (an edit, a regenerate)."""
        point = self.points[-1] if self.random.random() < 0.5 else self.random.choice(self.points)
        actions = [self.say, self.say, self.call, self.cut, self.repeat]
        if point.turn:
            actions.append(self.branch)
        if point.turn or self.headers:
            # Without an id, equal turns at the beginning belong to different conversations.
            actions.append(self.say_the_same)
        if point.call:
            actions = [self.give_result, self.give_result, self.say, *([self.branch] if point.turn else [])]
        action = self.random.choice(actions)
        self.seen, self.plan = [], []
        step = Step(action.__name__, self.seen)
        await action(point, step, workers)
        return step

    async def say(self, point: Point, step: Step, workers: Sequence[Served]) -> None:
        """Send a message; open calls count as not executed."""
        await self.send(point, step, workers, *self.new_turn())

    async def call(self, point: Point, step: Step, workers: Sequence[Served]) -> None:
        """Send a message that the agent answers with a call of the client's tool."""
        question, _ = self.new_turn()
        await self.send(point, step, workers, question, "")

    async def branch(self, point: Point, step: Step, workers: Sequence[Served]) -> None:
        """Send only a new message, and name the turn that it follows."""
        await self.send(point, step, workers, *self.new_turn(), parent=point.turn)

    async def say_the_same(self, point: Point, step: Step, workers: Sequence[Served]) -> None:
        """Send a message, and let it be answered with the same words once more."""
        question, reply = self.new_turn()
        await self.send(point, step, workers, question, reply, is_quiet=True)
        twin = self.points.pop()
        await self.send(point, step, workers, question, reply, is_quiet=True)
        assert self.points[-1].shown == twin.shown

    async def repeat(self, point: Point, step: Step, workers: Sequence[Served]) -> None:
        """Send a message, and the same request again, as a retry of an SDK or with its idempotency key."""
        key = {"Idempotency-Key": f"key-{self.number}-{next(self.numbers)}"}
        mark = self.random.choice([({}, {"x-stainless-retry-count": "1"}), (key, key)])
        question, reply = self.new_turn()
        messages = [*point.shown, user(question)]
        await self.send(point, step, workers, question, reply, headers=mark[0], dressed=messages)
        again = Caller(self.random.choice(workers))
        said = await again.completion(list(messages), headers={**self.headers, **mark[1]})
        assert (said.id, again.headers["idempotency-replayed"]) == (self.points[-1].turn, "true")

    async def cut(self, point: Point, step: Step, workers: Sequence[Served]) -> None:
        """Leave in the middle of an answer, and send another message."""
        question, reply = self.new_turn()
        self.plan = [f"hang {reply} and so on"]
        step.expected.append([f"system:You are {point.agent}.", *point.known, f"user:{question}"])
        body = {
            "model": "shop",
            "stream": True,
            "messages": self.dressed([*point.shown, user(question)]),
            "tools": [WEATHER],
        }
        served = self.random.choice(workers)
        given = {"Authorization": "Bearer test-key", **self.headers}
        async with (
            httpx2.AsyncClient(base_url=served.base_url, headers=given, timeout=20) as http,
            http.stream("POST", "/chat/completions", json=body) as response,
        ):
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    break
        await self.send(point, step, workers, *self.new_turn())

    async def give_result(self, point: Point, step: Step, workers: Sequence[Served]) -> None:
        """Send the result of the open call."""
        reply = f"answer {next(self.numbers)} of chat {self.number}"
        self.plan = [f"say {reply}"]
        known = (*point.known, "calls", "result:21 degrees")
        step.expected.append([f"system:You are {point.agent}.", *known])
        shown = (*point.shown, result(point.call, "21 degrees"))
        caller = Caller(self.random.choice(workers))
        said = await caller.completion(self.dressed(shown), headers=self.headers, tools=[WEATHER])
        content = said.choices[0].message.content or ""
        assert content == reply
        self.points.append(
            Point(point.agent, (*shown, assistant(content)), (*known, f"assistant:{reply}"), turn=said.id)
        )

    async def send(
        self,
        point: Point,
        step: Step,
        workers: Sequence[Served],
        question: str,
        reply: str,
        *,
        parent: str = "",
        is_quiet: bool = False,
        headers: dict[str, str] | None = None,
        dressed: Sequence[Any] | None = None,
    ) -> None:
        """Run a turn with some handoffs; without a reply it ends with a call. ``is_quiet``: handoffs say nothing."""
        agents = [point.agent]
        for _ in range(self.random.randrange(3)):
            agents.append(self.random.choice(ROADS[agents[-1]]))
        spoken = "" if is_quiet else " One moment."
        self.plan = [f"{agent}{self.random.choice(['', spoken])}" for agent in agents[1:]]
        self.plan.append(f"say {reply}" if reply else "call")
        messages = [user(question)] if parent else [*point.shown, user(question)]
        given = {**self.headers, **(headers or {}), **({"X-Parent-Id": parent} if parent else {})}
        caller = Caller(self.random.choice(workers))
        sent = list(dressed) if dressed is not None else self.dressed(messages)
        more = {} if dressed is not None else {"tools": [WEATHER]}
        said = await caller.completion(sent, headers=given, **more)

        open_call = ("calls", f"result:{LEFT_OPEN}") if point.call else ()
        known = (*point.known, *open_call, f"user:{question}")
        for agent in agents:
            step.expected.append([f"system:You are {agent}.", *known])
            known = (*known, "calls", "result")
        known = known[:-2]
        message = said.choices[0].message
        shown = (*point.shown, user(question))
        if reply:
            assert (message.content or "").endswith(reply)
            after = Point(agents[-1], (*shown, assistant(message.content)), (*known, f"assistant:{reply}"))
        else:
            assert message.tool_calls is not None
            (call,) = message.tool_calls
            shown_call = assistant(message.content, tool_calls=[call.model_dump()])
            after = Point(agents[-1], (*shown, shown_call), known, call=call.id)
        self.points.append(replace(after, turn=said.id))

    def new_turn(self) -> tuple[str, str]:
        number = next(self.numbers)
        return f"question {number} of chat {self.number}", f"answer {number} of chat {self.number}"

    def dressed(self, messages: Sequence[Any]) -> list[Any]:
        """Return the same list as different clients would send it."""
        clock = [{"role": "system", "content": f"It is {self.random.randrange(24)}:00."}]
        dressed: list[Any] = []
        for message in messages:
            content = message["content"]
            if isinstance(content, str) and self.random.random() < 0.3:
                content = f" {content}\n" if message["role"] != "tool" else content
            if isinstance(content, str) and self.random.random() < 0.3:
                content = [{"type": "text", "text": content}]
            dressed.append({**message, "content": content})
        return [*clock, *dressed] if self.random.random() < 0.3 else dressed


def _word(message: Any) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = content[0]["text"]
    if message.get("tool_calls"):
        return "calls"
    if message["role"] == "tool":
        return f"result:{content}" if content in ("21 degrees", LEFT_OPEN) else "result"
    if message["role"] == "system":
        return f"system:{content}".split("\n\n")[0]
    return f"{message['role']}:{content.strip()}"


def _chat_of(received: Received) -> int:
    """The number of the chat to which a model request belongs: all its messages have it."""
    texts = " ".join(str(message.get("content")) for message in received.body["messages"])
    found = re.findall(r"of chat (\d)", texts)
    assert len(set(found)) == 1, texts
    return int(found[0])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("has_id", [False, True], ids=["stateless", "with a frontend's id"])
async def test_random_walks_meet_the_right_agent_with_the_exact_context(
    tmp_path: Path, seed: int, has_id: bool
) -> None:
    ids = [{"X-OpenWebUI-Chat-Id": f"chat-{number}"} if has_id else {} for number in range(CHATS)]
    chats = [Chat(number, seed, ids[number]) for number in range(CHATS)]

    async def walk(chat: Chat, workers: Sequence[Served]) -> None:
        for _ in range(STEPS):
            step = await chat.step(workers)
            assert step.prompts == step.expected, step.action
            assert chat.plan == []

    async with FakeUpstream(answer=lambda received: chats[_chat_of(received)].answer(received)) as upstream:
        for _ in range(2):  # a restart in between
            async with AsyncExitStack() as stack:
                workers = [
                    await stack.enter_async_context(serve(tmp_path, upstream.base_url)) for _ in range(2)
                ]
                await asyncio.gather(*(walk(chat, workers) for chat in chats))
