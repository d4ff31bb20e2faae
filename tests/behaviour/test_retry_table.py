"""What a repeated request gets, and how often its tool runs, wherever the connection broke and whoever answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.chat_client import WEATHER, Caller, assistant, shape_of, user
from tests.behaviour.counted import http, shop, team_file
from tests.fakes.counted_tools import runs
from tests.fakes.upstream import FakeUpstream, Received, Reply, calls, text
from tests.server import Served, serve_process

KEYS = ("key", "sdk", "neither")
CUTS = ("before the first byte", "mid-stream", "time-out")
TOOLS = ("no tool", "look_up", "refund", "release", "weather")
"""No tool, a tool without effects, one with effects, one that needs approval, and a client tool."""

ANSWER, QUESTION, CALL = "answer", "question", "call"
Row = tuple[str, str]
Result = tuple[str, str, int]
"""Whether the repetition got the same turn, what it saw, and the number of runs of the tool."""

SAME_TURN: dict[str, Result] = {
    "no tool": ("same turn", ANSWER, 0),
    "look_up": ("same turn", ANSWER, 1),
    "refund": ("same turn", ANSWER, 1),
    "release": ("same turn", QUESTION, 0),
    "weather": ("same turn", CALL, 0),
}
NEW_TURN: dict[str, Result] = {
    "no tool": ("new turn", ANSWER, 0),
    "look_up": ("new turn", ANSWER, 2),
    "refund": ("new turn", ANSWER, 1),
    "release": ("new turn", QUESTION, 0),
    "weather": ("new turn", CALL, 0),
}
WITHOUT_MARK = {**NEW_TURN, "refund": SAME_TURN["refund"]}
ALIVE: dict[Row, Result] = {
    (key, tool): (SAME_TURN if key != "neither" else WITHOUT_MARK)[tool] for key, tool in product(KEYS, TOOLS)
}
KILLED: dict[Row, Result] = {
    # Another worker continues a turn with a key.
    (key, tool): (SAME_TURN if key == "key" else NEW_TURN)[tool]
    for key, tool in product(KEYS, TOOLS)
}


@dataclass(eq=False)
class Case:
    """One request that is cut and repeated. The model waits at the cut until ``go`` is set."""

    key: str
    cut: str
    tool: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def order(self) -> str:
        return "-".join((self.key, self.cut, self.tool)).replace(" ", "_")

    @property
    def is_stream(self) -> bool:
        return self.cut != "time-out"

    @property
    def body(self) -> dict[str, Any]:
        body = {"model": "shop", "messages": [user(f"Handle {self.order}")], "stream": self.is_stream}
        return body | ({"tools": [WEATHER]} if self.tool == "weather" else {})

    def headers(self, attempt: int) -> dict[str, str]:
        if self.key == "key":
            return {"Idempotency-Key": self.order}
        if self.key == "sdk":
            return {"X-Stainless-Retry-Count": str(attempt), "User-Agent": "OpenAI/Python 3.52.0"}
        return {}

    def reply(self, received: Received) -> Reply:
        """Return the reply to a model request; the first one at the cut is held."""
        has_result = any(message["role"] == "tool" for message in received.body["messages"])
        if self.tool in ("look_up", "refund") and not has_result:
            return calls((self.tool, {"order": self.order}))
        arguments = {"city": "Oslo"} if self.tool == "weather" else {"order": self.order}
        is_held = not self.reached.is_set()
        self.reached.set()
        if self.tool in ("release", "weather"):
            reply, after = calls((self.tool, arguments), text="One two"), 2
        else:
            reply, after = text("One two"), 2
        if not is_held:
            return reply
        return reply.held(self.go, after=after if self.cut == "mid-stream" else None)

    async def send_and_cut(self, served: Served) -> None:
        """Send the request, and close the connection at the cut."""
        sending = asyncio.create_task(self._send(served))
        waiting = asyncio.create_task(self.reached.wait())
        if self.cut == "mid-stream":
            await sending
        await waiting
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, served: Served) -> None:
        async with (
            http(served) as client,
            client.stream("POST", "/chat/completions", json=self.body, headers=self.headers(0)) as response,
        ):
            got = ""
            async for piece in response.aiter_text():
                got += piece
                if "One" in got and self.cut == "mid-stream":
                    return
        raise AssertionError(f"{self.order}: the response is complete: {got}")

    async def repeat(self, served: Served) -> tuple[str, str]:
        """Send the request again, let the model continue, and return what the client saw."""
        async with http(served) as client:
            headers = self.headers(1)
            repeating = asyncio.create_task(client.post("/chat/completions", json=self.body, headers=headers))
            await asyncio.sleep(0)
            self.go.set()
            response = await repeating
        is_same = response.headers.get("idempotency-replayed") == "true"
        return "same turn" if is_same else "new turn", seen_in(response.text, is_stream=self.is_stream)


def seen_in(body: str, *, is_stream: bool) -> str:
    """Return the kind of answer, or the code of the error."""
    datas = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    parts = [json.loads(data) for data in datas if data != "[DONE]"] if datas else [json.loads(body)]
    for part in parts:
        if "error" in part:
            return str(part["error"]["code"])
    messages = [choice["delta" if datas else "message"] for part in parts for choice in part["choices"]]
    if any(message.get("tool_calls") for message in messages):
        return CALL
    content = "".join(message.get("content") or "" for message in messages)
    if "shall I run" in content:
        return QUESTION
    return ANSWER if content == "One two" else f"unexpected: {content!r}"


def cases() -> dict[str, Case]:
    created = [Case(*row) for row in product(KEYS, CUTS, TOOLS)]
    return {case.order: case for case in created}


def answering(found: dict[str, Case]) -> Callable[[Received], Reply]:
    """Return the model, which finds the case by the order in the user's message."""

    def answer(received: Received) -> Reply:
        content = next(m["content"] for m in received.body["messages"] if m["role"] == "user")
        return found[content.split()[1]].reply(received)

    return answer


async def left(served: Served, case: Case) -> None:
    """Wait until the server has stored that the client of the case has left."""
    history, turns = served.services.history, served.services.turns
    caller = served.services.keys.caller("Bearer test-key")
    async with asyncio.timeout(10):
        while True:
            for turn_id in turns.running_turns():
                record = await history.turn(caller, turn_id)
                is_mine = record is not None and f"Handle {case.order}" in str(record.input)
                if is_mine and record is not None and record.left_at is not None:
                    return
            await asyncio.sleep(0.02)


async def results(
    folder: Path, found: dict[str, Case], repeat: Callable[[Case], Awaitable[tuple[str, str]]]
) -> dict[tuple[str, str, str], Result]:
    saw = await asyncio.gather(*(repeat(case) for case in found.values()))
    counts = runs(folder)
    return {
        (case.key, case.cut, case.tool): (*seen, counts[case.order])
        for case, seen in zip(found.values(), saw, strict=True)
    }


def table(rows: dict[Row, Result]) -> dict[tuple[str, str, str], Result]:
    """Return the expected results; they are equal for all cuts."""
    return {(key, cut, tool): result for (key, tool), result in rows.items() for cut in CUTS}


@pytest.mark.parametrize("at", ["same worker", "other worker"])
async def test_a_repeated_request_after_a_cut(tmp_path: Path, at: str) -> None:
    found = cases()
    async with (
        FakeUpstream(answer=answering(found)) as upstream,
        shop(tmp_path, upstream) as served,
        shop(tmp_path, upstream) as other,
    ):

        async def cut_and_repeat(case: Case) -> tuple[str, str]:
            await case.send_and_cut(served)
            await left(served, case)
            return await case.repeat(served if at == "same worker" else other)

        assert await results(tmp_path, found, cut_and_repeat) == table(ALIVE)


async def test_the_next_message_after_the_death_of_the_worker_knows_the_call(tmp_path: Path) -> None:
    case = Case("neither", "mid-stream", "refund")
    async with FakeUpstream(answer=case.reply) as upstream:
        environment = {
            "PROXY_TEAMS": str(team_file(tmp_path, upstream.base_url)),
            "PROXY_SEPARATE_KEYS": "true",
        }
        async with shop(tmp_path, upstream) as other:
            async with serve_process(tmp_path, environment=environment) as (served, process):
                sent = asyncio.create_task(case.send_and_cut(served))
                await sent
                process.kill()
                await process.wait()
            messages = [user(f"Handle {case.order}"), assistant("One"), user("In short, please")]
            case.go.set()

            assert await Caller(other).ask(messages) == "One two"

    assert runs(tmp_path)[case.order] == 1
    assert shape_of(upstream)[2:4] == ["calls:refund", "result"]


async def test_a_repeated_request_after_the_death_of_the_worker(tmp_path: Path) -> None:
    found = cases()
    async with FakeUpstream(answer=answering(found)) as upstream:
        environment = {
            "PROXY_TEAMS": str(team_file(tmp_path, upstream.base_url)),
            "PROXY_SEPARATE_KEYS": "true",
        }
        async with serve_process(tmp_path, environment=environment) as (served, process):
            sent = [asyncio.create_task(case._send(served)) for case in found.values()]
            async with asyncio.timeout(30):
                await asyncio.gather(*(case.reached.wait() for case in found.values()))
            process.kill()
            await process.wait()
            await asyncio.gather(*sent, return_exceptions=True)
        async with shop(tmp_path, upstream) as other:
            assert await results(tmp_path, found, lambda case: case.repeat(other)) == table(KILLED)


async def test_a_repeated_request_with_a_key_after_a_shutdown(tmp_path: Path) -> None:
    found = {order: case for order, case in cases().items() if case.key == "key" and case.cut != "mid-stream"}
    expected = {
        row: result for row, result in table(KILLED).items() if "-".join(row).replace(" ", "_") in found
    }
    async with FakeUpstream(answer=answering(found)) as upstream:
        async with shop(tmp_path, upstream, shutdown_grace=0) as served:
            sent = [asyncio.create_task(case._send(served)) for case in found.values()]
            await asyncio.gather(*(case.reached.wait() for case in found.values()))
        await asyncio.gather(*sent, return_exceptions=True)

        # Its clients had not left, so the turns continue at the next worker.
        async with shop(tmp_path, upstream) as other:
            assert await results(tmp_path, found, lambda case: case.repeat(other)) == expected
