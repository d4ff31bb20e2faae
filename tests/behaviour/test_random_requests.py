"""Requests of every shape that chance comes up with: answered, or refused in the envelope."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.behaviour.chat_client import WEATHER
from tests.behaviour.raw_http import Wire, check_refusal
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(open_shop: tuple[Served, FakeUpstream]) -> AsyncIterator[Wire]:
    async with Wire(open_shop[0]) as wire:
        open_shop[1].reply(text("Hi"))
        await wire.ask(headers={"X-Conversation-Id": "chat-1"})
        yield wire


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FORCED = {"type": "function", "function": {"name": "other"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
CHAT: dict[str, Any] = {
    "model": "shop",
    "messages": [
        {"role": "system", "content": "Be brief.", "name": "app"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
        {"role": "user", "content": "And?"},
    ],
    "tools": [WEATHER],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FORCED]}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    "stream_options": {"include_usage": True},
    "stop": ["a"],
    "metadata": {"a": "b"},
    "n": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
}  # fmt: skip


RESPONSE: dict[str, Any] = {
    "model": "shop",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}, {"type": "input_image", "image_url": "x"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "x"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "max_output_tokens": 16,
    "top_logprobs": 2,
    "store": False,
}  # fmt: skip
ITEMS: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "Hi"}, {"type": "input_file", "file_data": "x"}],
    },
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "x"}]},
    {"type": "web_search_call", "status": "completed", "action": {"type": "search"}},
]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat": ("/chat/completions", CHAT),
    "a response": ("/responses", RESPONSE),
    "a conversation": ("/conversations", {"items": ITEMS, "metadata": {"a": "b"}}),
    "items": ("/conversations/chat-1/items", {"items": ITEMS}),
    "metadata": ("/conversations/chat-1", {"metadata": {"a": "b"}}),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in steps:
        yield from places(inner, (*path, key))


def put(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The whole body with another value at one place."""
    body = json.loads(json.dumps(whole))
    if not path:
        return value
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return body


PLACES = [(kind, path) for kind, (_, whole) in BODIES.items() for path in places(whole)]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(PLACES), value=JSON)
async def test_anything_anywhere_is_refused_in_the_envelope_or_answered(
    open_shop: tuple[Served, FakeUpstream], wire: Wire, place: tuple[str, tuple[Any, ...]], value: Any
) -> None:
    upstream = open_shop[1].forget()
    upstream.reply(text("{}"))
    at, whole = BODIES[place[0]]
    response = await wire.http.post(at, content=json.dumps(put(whole, place[1], value)).encode())

    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        check_refusal(response, response.status_code)
        assert not upstream.requests


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 900), what=st.binary(max_size=8))
async def test_bytes_anywhere_are_refused_or_answered(
    open_shop: tuple[Served, FakeUpstream], wire: Wire, at: int, what: bytes
) -> None:
    open_shop[1].forget().reply(text("{}"))
    body = json.dumps({**CHAT, "tool_choice": "auto", "stream": True}).encode()
    response = await wire.raw(body[:at] + what + body[at + len(what) :])

    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        check_refusal(response, response.status_code)
