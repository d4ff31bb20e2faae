"""Invalid requests over HTTP: error envelope and status, no model call, nothing stored."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.behaviour.chat_client import WEATHER, assistant, result, user
from tests.behaviour.raw_http import HELLO, Wire, check_refusal, count_rows
from tests.behaviour.websocket_client import connected
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest.fixture
def upstream(open_shop: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return open_shop[1].forget()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(open_shop: tuple[Served, FakeUpstream]) -> AsyncIterator[Wire]:
    async with Wire(open_shop[0]) as wire:
        yield wire


# --- every field, with everything that it is not ---

LONG = "x" * 100_000
STRANGE: dict[str, Any] = {
    "true": True,
    "zero": 0,
    "a negative": -1,
    "a fraction": 0.5,
    "a huge number": 10**400,
    "text": "text",
    "long text": LONG,
    "an empty text": "",
    "an empty list": [],
    "a list of texts": ["a"],
    "a long list": ["a"] * 5000,
    "a list of nulls": [None],
    "an empty object": {},
    "an object": {"a": {"b": [1]}},
    "a nested one": [[[[{}]]]],
}
INTEGERS = {"zero", "a negative"}
NUMBERS = {*INTEGERS, "a fraction"}
TEXTS = {"text", "long text", "an empty text"}
OBJECTS = {"an empty object", "an object"}
LISTS = {"an empty list", "a list of texts", "a long list", "a list of nulls", "a nested one"}
GOOD: dict[str, set[str]] = {
    "model": set(),
    "messages": set(),
    "stream": {"true"},
    "stream_options": set(),  # without a stream
    "max_completion_tokens": set(),
    "max_tokens": set(),
    "n": set(),
    "temperature": {"zero", "a fraction"},
    "top_p": {"zero", "a fraction"},
    "frequency_penalty": NUMBERS,
    "presence_penalty": NUMBERS,
    "stop": {*TEXTS, "a list of texts"},
    "seed": INTEGERS,
    "logit_bias": {"an empty object"},
    "logprobs": {"true"},
    "top_logprobs": set(),  # without logprobs
    "response_format": set(),
    "tools": {"an empty list"},
    "tool_choice": set(),
    "parallel_tool_calls": {"true"},
    "functions": {"an empty list"},
    "function_call": set(),
    "store": {"true"},
    "metadata": {"an empty object"},
    "modalities": {"an empty list"},
    "audio": OBJECTS,
    "reasoning_effort": set(),
    "verbosity": set(),
    "service_tier": set(),
    "prediction": set(),
    "user": TEXTS,
    "safety_identifier": {"text", "an empty text"},
    "prompt_cache_key": TEXTS,
    "prompt_cache_options": OBJECTS,
    "prompt_cache_retention": TEXTS,
    "web_search_options": set(),
    "moderation": set(),
}


@pytest.mark.parametrize("field", GOOD)
async def test_a_value_of_the_wrong_kind_is_refused_by_the_name_of_its_field(
    served: Served, upstream: FakeUpstream, wire: Wire, field: str
) -> None:
    before = count_rows(served)
    for kind, value in STRANGE.items():
        if kind in GOOD[field]:
            continue
        body = {"model": "shop", "messages": HELLO, field: value}
        response = await wire.raw(json.dumps(body).encode())

        status = 404 if field == "model" and kind in ("text", "long text") else 400
        reported = check_refusal(response, status)
        assert reported["type"] == "invalid_request_error", kind
        if status == 400:
            assert (reported["param"] or "").split(".")[0].split("[")[0] == field, (kind, reported)
        assert LONG not in response.text
    assert not upstream.requests
    assert count_rows(served) == before


# --- bodies that are none ---

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n",
    "no JSON": b"{model: shop}",
    "half": b'{"model": "shop", "messages": [',
    "two": b'{"model": "shop"} {"model": "shop"}',
    "null": b"null",
    "a list": b"[]",
    "a text": b'"shop"',
    "a number": b"1",
    "a form": b"model=shop&messages=Hi",
    "another encoding": json.dumps({"model": "shop", "messages": HELLO}).encode("utf-16"),
    "bytes": b"\xff\xfe\x00",
    "half a surrogate pair": b'{"model": "shop", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "no number": b'{"model": "shop", "messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
    "endless": b'{"model": "shop", "messages": [{"role": "user", "content": "Hi"}], "seed": 1e999}',
    "deep": b'{"model": "shop", "messages": ' + b"[" * 100_000,
    "deep and closed": b'{"model": "shop", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a million nulls": b'{"model": "shop", "messages": [' + b"null," * 500_000 + b"null]}",
    "no model": json.dumps({"messages": HELLO}).encode(),
    "no messages": b'{"model": "shop"}',
    "a NUL": b'{"model": "shop", "messages": [{"role": "user", "content": "a\\u0000b"}]}',
}


@pytest.mark.parametrize("what", BODIES)
async def test_a_body_that_cannot_be_read_is_refused(
    served: Served, upstream: FakeUpstream, wire: Wire, what: str
) -> None:
    before = count_rows(served)
    response = await wire.raw(BODIES[what])

    assert check_refusal(response)["type"] == "invalid_request_error"
    assert not upstream.requests
    assert count_rows(served) == before


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
    ],
)
async def test_json_is_taken_under_any_name(upstream: FakeUpstream, wire: Wire, content_type: str) -> None:
    upstream.reply(text("Hi"))
    body = json.dumps({"model": "shop", "messages": HELLO}).encode()

    response = await wire.raw(body, **({"content-type": content_type} if content_type else {}))

    assert response.status_code == 200, response.text


# --- combinations, tools, messages ---

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FORCED = {"type": "function", "function": {"name": "other"}}
CASES: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "stream_options without a stream": ({"stream_options": {"include_usage": True}}, "stream_options", None),
    "both limits": (
        {"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_parameter_combination",
    ),
    "n above its limit": ({"n": 129}, "n", "integer_above_max_value"),
    "n of two": ({"n": 2}, "n", "unsupported_value"),
    "logit_bias": ({"logit_bias": {"50256": -100}}, "logit_bias", "unsupported_parameter"),
    "logit_bias out of range": ({"logit_bias": {"50256": 101}}, "logit_bias.50256", "integer_above_max_value"),
    "top_logprobs alone": ({"top_logprobs": 1}, "top_logprobs", "invalid_parameter_combination"),
    "temperature above": ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    "top_p below": ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
    "no tokens": ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
    "five stops": ({"stop": list("abcde")}, "stop", "array_above_max_length"),
    "a form that nobody knows": ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    "a schema without a name": (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format.json_schema.name",
        "missing_required_parameter",
    ),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
        "response_format.json_schema.schema",
        "invalid_value",
    ),
    "effort": ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
    "tier": ({"service_tier": "gold"}, "service_tier", "invalid_value"),
    "17 pairs": ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "object_above_max_properties"),
    "a long value": ({"metadata": {"a": "x" * 513}}, "metadata.a", "string_above_max_length"),
    "a number as a value": ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    "spoken answers": ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
    "searching": ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    "moderation": ({"moderation": {"model": "x"}}, "moderation", "unsupported_parameter"),
    "129 tools": ({"tools": [WEATHER] * 129}, "tools", "array_above_max_length"),
    "a tool of another kind": ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "invalid_value"),
    "a custom tool": (
        {"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type", "unsupported_value",
    ),
    "a tool without a function": (
        {"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter",
    ),
    "a tool's name": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value",
    ),
    "a tool's schema": (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
        "tools[0].function.parameters",
        "invalid_function_parameters",
    ),
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice", None),
    "a choice of no tool": ({"tools": [WEATHER], "tool_choice": FORCED}, "tool_choice", "invalid_value"),
    "functions and tools": (
        {"tools": [WEATHER], "functions": [{"name": "f"}]}, "functions", "invalid_parameter_combination",
    ),
    "no messages": ({"messages": []}, "messages", "empty_array"),
    "too many": ({"messages": HELLO * 2001}, "messages", "array_above_max_length"),
    "no role": ({"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
    "a role that nobody knows": (
        {"messages": [*HELLO, {"role": "robot", "content": "Hi"}]}, "messages[1].role", "invalid_value",
    ),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    "no parts": ({"messages": [user([])]}, "messages[0].content", "empty_array"),
    "a part that nobody knows": (
        {"messages": [user([{"type": "video"}])]}, "messages[0].content[0].type", "invalid_value",
    ),
    "an image of the system's": (
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "invalid_value",
    ),
    "an image without its address": (
        {"messages": [user([{"type": "image_url", "image_url": {}}])]},
        "messages[0].content[0].image_url.url",
        "missing_required_parameter",
    ),
    "a result alone": ({"messages": [result("c1", "x")]}, "messages.[0].role", None),
    "a result of nothing": ({"messages": [*HELLO, result("c1", "x"), user("And?")]}, "messages.[1].role", None),
    "a result of another call": (
        {"messages": [*HELLO, assistant(None, tool_calls=[CALL]), result("c2", "x")]}, "messages.[2].role", None,
    ),
    "a result behind an answer": (
        {"messages": [*HELLO, assistant("Hi"), result("c1", "x")]}, "messages.[2].role", None,
    ),
    "a result without its id": (
        {"messages": [*HELLO, assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "x"}]},
        "messages[2].tool_call_id",
        "missing_required_parameter",
    ),
    "arguments that are no text": (
        {"messages": [assistant(None, tool_calls=[{**CALL, "function": {"name": "f", "arguments": {}}}])]},
        "messages[0].tool_calls[0].function.arguments",
        "invalid_type",
    ),
    "a function's result alone": (
        {"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages.[0].role", None,
    ),
    "a conversation's name": ({"metadata": {"conversation_id": "a b"}}, "metadata.conversation_id", "invalid_value"),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_what_does_not_go_together_is_refused(
    served: Served, upstream: FakeUpstream, wire: Wire, what: str, stream: bool
) -> None:
    fields, param, code = CASES[what]
    if stream and "stream_options" in fields:
        return
    before = count_rows(served)

    reported = check_refusal(await wire.ask(stream=stream, **fields))

    assert (reported["type"], reported["param"], reported["code"]) == ("invalid_request_error", param, code)
    assert not upstream.requests
    assert count_rows(served) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Conversation-Id", "a b"),
        ("X-Conversation-Id", "ä"),
        ("X-Conversation-Id", "x" * 129),
        ("X-Conversation-Id", "../../etc"),
        ("X-OpenWebUI-Chat-Id", "a/b"),
        ("X-On-Disconnect", "explode"),
        ("X-Handoff-Events", "some"),
        ("Idempotency-Key", "x" * 256),
    ],
)
async def test_a_bad_header_is_refused_by_its_name(
    upstream: FakeUpstream, wire: Wire, name: str, value: str
) -> None:
    body = json.dumps({"model": "shop", "messages": HELLO}).encode()

    reported = check_refusal(await wire.raw(body, **{name: value.encode()}))  # type: ignore[arg-type]

    assert reported["param"]
    assert not upstream.requests


async def test_an_unknown_model_is_404(upstream: FakeUpstream, wire: Wire) -> None:
    for model in ("none", "shop/none", "shop/", "/side", "Shop", "shop ", "x" * 5000):
        reported = check_refusal(await wire.ask(model=model), 404)
        assert (reported["type"], reported["code"], reported["param"]) == (
            "invalid_request_error",
            "model_not_found",
            None,
        )
    assert not upstream.requests


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_error_for_an_unknown_model_names_the_nearest_and_the_teams(served: Served, path: str) -> None:
    async with httpx2.AsyncClient(base_url=served.url) as client:
        bodies = [
            {"model": model, "messages": [user("Hi")], "input": "Hi"}
            for model in ("shpo", "shop/triag", "Triage", "zzz")
        ]
        answers = [await client.post(path, json=body) for body in bodies]
    messages = [answer.json()["error"]["message"] for answer in answers]

    unknown = "does not exist or you do not have access to it."
    assert messages == [
        f"The model 'shpo' {unknown} Did you mean 'shop'? Available models: shop.",
        f"The model 'shop/triag' {unknown} Did you mean 'shop/triage'? Available models: shop.",
        f"The model 'Triage' {unknown} Did you mean 'shop/triage'? Available models: shop.",
        f"The model 'zzz' {unknown} Available models: shop.",
    ]


async def test_every_endpoint_that_takes_a_model_id_names_the_nearest(served: Served) -> None:
    start = {"type": "start", "request": {"model": "shpo", "messages": [user("Hi")]}}
    legacy = {"type": "chat", "data": {"message": "Hi", "agent": "shpo"}}
    async with httpx2.AsyncClient(base_url=served.url) as client:
        retrieved = await client.get("/v1/models/shpo")
        checked = await client.post("/v1/connection_checks", json={"model": "shpo"})
    async with connected(served, "/v1/ws") as turns, connected(served, "/ws") as chat:
        await turns.send(start)
        await chat.send(legacy)
        (started,), (chatted,) = await turns.until("error"), await chat.until("error")

    expected = (
        "The model 'shpo' does not exist or you do not have access to it. "
        "Did you mean 'shop'? Available models: shop."
    )
    assert [retrieved.json()["error"]["message"], checked.json()["error"]["message"]] == [expected, expected]
    assert [started["error"]["message"], chatted["data"]["error"]] == [expected, expected]


async def test_unknown_paths_and_methods_get_an_error_envelope(served: Served, wire: Wire) -> None:
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("POST", "/embeddings", 404),
        ("GET", "/" + "x" * 5000, 404),
        ("GET", "/%ff%00", 404),
        ("PATCH", "/chat/completions", 405),
        ("PUT", "/chat/completions", 405),
    ]:
        response = await wire.http.request(method, path)
        reported = check_refusal(response, status)
        assert reported["type"] == "invalid_request_error"
        assert status != 405 or response.headers["allow"]
