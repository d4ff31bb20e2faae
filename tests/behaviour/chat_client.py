"""Helpers of the behaviour tests for chat completions: messages, a client, and checks of model requests."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served

Messages = list[Any]

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
"""A client tool."""


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> Any:
    return {"role": "assistant", "content": content, **more}


def result(call_id: str, content: str) -> Any:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


class Caller:
    """Calls the team ``shop`` with the official SDK; ``headers`` are those of the last response."""

    def __init__(self, served: Served, key: str = "test-key", **options: Any) -> None:
        self.client = served.client(key, **options)
        self.headers: dict[str, str] = {}

    @property
    def match(self) -> str:
        return self.headers["x-conversation-match"]

    @property
    def conversation(self) -> str:
        return self.headers.get("x-conversation-id", "")

    async def ask(self, messages: Messages, *, headers: dict[str, str] | None = None, **more: Any) -> str:
        return (await self.completion(messages, headers=headers, **more)).choices[0].message.content or ""

    async def completion(
        self, messages: Messages, *, headers: dict[str, str] | None = None, **more: Any
    ) -> ChatCompletion:
        raw = await self.client.chat.completions.with_raw_response.create(
            model=more.pop("model", "shop"),
            messages=messages,
            extra_headers=headers,
            **more,
        )
        self.headers = dict(raw.headers)
        answer: ChatCompletion = raw.parse()
        return answer


async def turn_after_running(client: AsyncOpenAI, turn_id: str, within: float = 10.0) -> Any:
    """Poll until the turn is no longer running, and return the turn object."""
    async with asyncio.timeout(within):
        while True:
            turn: Any = await client.get(f"/turns/{turn_id}", cast_to=object)
            if turn["status"] != "running":
                return turn
            await asyncio.sleep(0.01)


def agent_of(upstream: FakeUpstream, number: int = -1) -> str:
    """Return the agent whose instructions a model request has."""
    system: str = upstream.requests[number].body["messages"][0]["content"]
    return system.split(".")[0].removeprefix("You are ")


def shape_of(upstream: FakeUpstream, number: int = -1) -> list[str]:
    """Return a summary of each message of a model request."""
    summaries = []
    for message in upstream.requests[number].body["messages"]:
        if message.get("tool_calls"):
            summaries.append("calls:" + ",".join(call["function"]["name"] for call in message["tool_calls"]))
        elif message["role"] == "tool":
            summaries.append("result")
        elif message["role"] == "system":
            summaries.append("system")
        else:
            summaries.append(f"{message['role']}:{message['content']}")
    return summaries


async def sold(caller: Caller, upstream: FakeUpstream, **more: Any) -> Messages:
    """Run a turn that hands off from triage to sales; return the messages of a stateless client after it."""
    upstream.reply(calls(("transfer_to_sales", {"reason": "wants a rocket"})), text("What colour?"))
    messages = [user("I want a rocket")]
    answer = await caller.ask(messages, **more)
    return [*messages, assistant(answer)]


HIDDEN = ["system", "user:I want a rocket", "calls:transfer_to_sales", "result", "assistant:What colour?"]
"""Summary (``shape_of``) of the messages of ``sold`` in a model request."""
