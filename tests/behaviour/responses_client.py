"""Helpers of the behaviour tests for the Responses API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx2
from openai import OpenAI
from openai.types.responses import Response, ResponseFunctionToolCall

from tests.fakes.response_stream import Event, events_in, judged_response
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served

T = TypeVar("T")

FORECAST: Any = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
"""A client function tool."""


def said(content: Any, role: str = "user") -> Any:
    return {"role": role, "content": content}


def output(call_id: str, text: str) -> Any:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def echoed(response: Response) -> list[Any]:
    """Return the output as input items of the next request."""
    return [item.to_dict() for item in response.output]


def calls_of(response: Response) -> list[ResponseFunctionToolCall]:
    """Return the function calls for the client."""
    return [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]


def kinds(response: Response) -> list[str]:
    return [item.type for item in response.output]


async def with_sync_sdk(served: Served, ask: Callable[[OpenAI], T], key: str = "test-key") -> T:
    """Run ``ask`` in a thread with a client of the synchronous SDK; return its result."""

    def run() -> T:
        with OpenAI(base_url=served.base_url, api_key=key, max_retries=0, timeout=20) as client:
            return ask(client)

    return await asyncio.to_thread(run)


@asynccontextmanager
async def http(served: Served, key: str = "test-key") -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client without an SDK."""
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=served.base_url, headers=headers, timeout=20) as client:
        yield client


async def streamed(client: httpx2.AsyncClient, **body: Any) -> list[Event]:
    """Create a response and return its events, each validated by the types of the SDK."""
    answer = await client.post("/responses", json={"model": "shop", "stream": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_in(answer.text)


async def retrieved(client: httpx2.AsyncClient, response_id: str) -> Response:
    """Return the current response, validated by the type of the SDK."""
    answer = await client.get(f"/responses/{response_id}")
    assert answer.status_code == 200, answer.text
    return judged_response(answer.json())


async def ended(client: httpx2.AsyncClient, response_id: str) -> Response:
    """Poll until the response has ended, and return it."""
    async with asyncio.timeout(10):
        while (response := await retrieved(client, response_id)).status in ("queued", "in_progress"):
            await asyncio.sleep(0.01)
    return response


SOLD = (calls(("transfer_to_sales", {"reason": "wants a rocket"})), text("What colour?"))


async def sold(served: Served, upstream: FakeUpstream, **more: Any) -> Response:
    """Create a response whose turn hands off from triage to sales."""
    upstream.reply(*SOLD)
    response: Response = await served.client().responses.create(model="shop", input="I want a rocket", **more)
    return response
