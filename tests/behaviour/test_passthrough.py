"""Passthrough models: bodies are forwarded unchanged, and everything else is done by the proxy."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.chat_client import WEATHER
from tests.behaviour.raw_http import HELLO, Socket, Wire, count_rows, payloads
from tests.fakes.upstream import FakeUpstream, Received, Reply, bare, calls, cut, error, hang, raw, text
from tests.server import TEAM_FILE, Served, serve

EXPOSED = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
  plain:
    model: vendor/real-name
    base_url: "{upstream}"
    api_key: another-key
    headers: {{x-vendor: 'yes'}}
    parameters: {{temperature: 0.1}}
    extra_body: {{vendor: 1}}
    context_window: 1000
    expose: true
  component:
    provider: autogen_ext.models.openai.OpenAIChatCompletionClient
    config: {{model: gpt-5-mini, base_url: "{upstream}", api_key: k}}
    expose: true
  hidden: {{model: hidden-model, base_url: "{upstream}"}}
"""
TEAMS = EXPOSED + TEAM_FILE[TEAM_FILE.index("teams:") :]


@asynccontextmanager
async def serving(folder: Path, upstream: FakeUpstream, **changes: Any) -> AsyncIterator[Served]:
    (folder / "teams.yaml").write_text(TEAMS.format(upstream=upstream.base_url))
    async with serve(folder, teams=folder / "teams.yaml", **changes) as served:
        yield served


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Served]:
    async with serving(tmp_path, upstream) as served:
        yield served


# --- exposed models ---

ODD = {
    "model": "plain",
    "messages": [{"role": "robot", "content": {"odd": [1, 2.50, None]}, "id": "x"}],
    "n": 3,
    "logit_bias": {"50256": -100},
    "temperature": 17,
    "top_k": 5,
    "ünknown": "\u2028",
    "user": "ann",
    "stream": False,
}


async def test_a_body_is_forwarded_with_only_the_model_name_changed(
    served: Served, upstream: FakeUpstream
) -> None:
    answer = b'{ "id":"theirs", "choices" : [], "odd": 1.50, "model":"vendor/real-name" }'
    upstream.reply(raw(answer, content_type="application/json; charset=utf-8"))
    async with Wire(served) as wire:
        response = await wire.raw(
            json.dumps(ODD).encode(),
            cookie="a=b",
            **{"x-conversation-id": "chat-1", "openai-organization": "org", "accept-encoding": "gzip"},
        )

    assert response.status_code == 200
    assert response.content == answer
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    asked = upstream.requests[0]
    assert asked.body == {**ODD, "model": "vendor/real-name"}
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == "Bearer another-key"
    assert asked.headers["x-vendor"] == "yes"
    reported = " ".join(f"{name}: {value}" for name, value in asked.headers.items())
    for foreign in ("cookie", "chat-1", "org", "gzip", response.request.headers["authorization"]):
        assert foreign not in reported


async def test_only_the_model_name_of_a_body_is_replaced(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(raw(b"{}", content_type="application/json"))
    seed = b'{"model":"other", "model" : "plain","seed":12345678901234567890123,"x":1.500,"y":"\\u00e4\\/"}'
    async with Wire(served) as wire:
        await wire.raw(seed)

    assert upstream.requests[0].content == (
        b'{"model":"vendor/real-name","seed":12345678901234567890123,"x":1.500,"y":"\\u00e4\\/"}'
    )


async def test_a_stream_comes_back_byte_for_byte(served: Served, upstream: FakeUpstream) -> None:
    body = (
        b': hello\r\n\r\nevent: odd\ndata: {"x":1}\n\ndata: {"choices":[{"finish_reason":"stop"}]}\r\n\r\n'
        b"data: [DONE]\n\n: bye"
    )
    pieces = [body[i : i + 7] for i in range(0, len(body), 7)]
    upstream.reply(raw(*pieces))
    async with Wire(served) as wire:
        response = await wire.raw(json.dumps({**ODD, "stream": True}).encode())

    assert response.content == body
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


async def test_events_come_as_they_are_written(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("Hello", chunks=["He", go, "llo"]))
    asked = {"model": "plain", "messages": HELLO, "stream": True}
    async with Wire(served) as wire, wire.http.stream("POST", "/chat/completions", json=asked) as response:
        said = ""
        async for piece in response.aiter_text():
            said += piece
            if '"He"' in said:
                go.set()

    assert payloads(said)[-1] == "[DONE]"
    assert "llo" in said


async def test_the_sdk_talks_to_it_as_to_any_model(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"})), text("Rain", chunks=3))
    client: Any = served.client().chat.completions
    called = await client.create(model="plain", messages=HELLO, tools=[WEATHER])
    stream = await client.create(model="plain", messages=HELLO, stream=True)

    assert called.choices[0].message.tool_calls[0].id == "call_1_0"
    assert (
        "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == "Rain"
    )


async def test_a_passthrough_request_is_not_stored(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    async with Wire(served) as wire:
        response = await wire.ask(
            model="plain", store=True, headers={"X-Conversation-Id": "chat-1", "Idempotency-Key": "k"}
        )

    assert response.status_code == 200
    assert count_rows(served) == 0
    assert not [name for name in response.headers if name.startswith("x-conversation")]


async def test_side_requests_to_it_are_requests_like_others(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("A title"))
    async with Wire(served) as wire:
        answer = await wire.completion(model="plain", headers={"X-Task": "title_generation"})
        unknown = await wire.ask(model="plain/side")

    assert answer.model == "vendor/real-name"
    assert unknown.status_code == 404


async def test_the_responses_api_names_the_endpoint_of_a_passthrough_model(
    served: Served, upstream: FakeUpstream
) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await served.client().responses.create(model="plain", input="Hi")

    assert refused.value.code == "model_not_found"
    assert "The model 'plain' is only supported at /v1/chat/completions." in refused.value.message
    assert upstream.requests == []


async def test_a_model_that_is_not_exposed_is_not_there(served: Served, upstream: FakeUpstream) -> None:
    async with Wire(served) as wire:
        for model in ("hidden", "hidden-model", "default", "vendor/real-name", "fake-model"):
            response = await wire.ask(model=model)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert not upstream.requests


async def test_what_it_used_is_in_the_log(
    tmp_path: Path, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.requests")
    upstream.reply(text("Hi"), text("Hi"))
    # The line of a stream is written behind its last byte: the end of the server waits for it, a client does not.
    async with serving(tmp_path, upstream) as served, Wire(served) as wire:
        await wire.completion(model="plain")
        await wire.frames(model="plain", stream_options={"include_usage": True})

    lines: list[Any] = [record for record in caplog.records if record.name == "proxy.requests"]
    assert [(line.model, line.upstream_model, line.stream) for line in lines] == [
        ("plain", "vendor/real-name", False),
        ("plain", "vendor/real-name", True),
    ]
    assert [(line.prompt_tokens, line.completion_tokens) for line in lines] == [(11, 7)] * 2
    assert [line.upstream_request_id for line in lines] == ["req_1", "req_2"]


# --- keys, limits, connections ---


async def test_it_needs_a_key_like_everything_else(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serving(tmp_path, upstream, api_keys=("right",), max_body_bytes=500) as served:
        async with Wire(served, "wrong") as wire:
            assert (await wire.ask(model="plain")).status_code == 401
        async with Wire(served, "right") as wire:
            assert (await wire.ask(model="plain", x="x" * 500)).status_code == 413
    assert not upstream.requests


async def test_a_client_that_leaves_closes_the_providers_connection(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello", chunks=3).hang(after=2), hang(), hang())
    body = json.dumps({"model": "plain", "messages": HELLO, "stream": True}).encode()
    async with Socket(served) as socket:
        await socket.post(body)
        await socket.reader.readuntil(b"data: ")
    for _ in range(2):
        async with Socket(served) as socket:
            await socket.post(body)
            await upstream.received(len(upstream.requests) + 1)

    for request in upstream.requests:
        await request.closed()
    assert len(upstream.requests) == 3
    assert not any(request.is_answered for request in upstream.requests)


async def test_connections_are_used_again(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(*[text("Hello")] * 4, error(400), text("Hello"))
    async with Wire(served) as wire:
        for number in range(6):
            await wire.ask(model="plain", stream=number % 2 == 0)

    assert len({id(request.connection) for request in upstream.requests}) <= 2


async def test_a_stream_ends_properly_when_the_server_stops(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello", chunks=3).hang(after=2))
    asked = {"model": "plain", "messages": HELLO, "stream": True}
    said = ""
    stopping: asyncio.Task[None] | None = None
    async with serving(tmp_path, upstream, shutdown_grace=0.1) as served, Wire(served) as wire:
        passing = served.services.passing
        assert passing is not None
        async with wire.http.stream("POST", "/chat/completions", json=asked) as response:
            async for piece in response.aiter_text():
                said += piece
                stopping = stopping or asyncio.create_task(passing.close(grace=0.05))
        refused = await wire.ask(model="plain")

    assert stopping is not None
    await stopping
    failure, done = payloads(said)[-2:]
    assert (failure["error"]["code"], done) == ("shutting_down", "[DONE]")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")


# --- failures ---


def reported(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "odd", "param": "n", "code": None, **more}}


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 429, 500, 503])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_the_providers_refusal_is_the_callers(
    served: Served, upstream: FakeUpstream, status: int, stream: bool
) -> None:
    headers = {
        "retry-after": "7",
        "x-should-retry": "false",
        "set-cookie": "a=b",
        "x-ratelimit-limit-requests": "1",
        "openai-organization": "the-operators",
    }
    upstream.reply(error(status, reported("Too odd"), headers))
    async with Wire(served) as wire:
        response = await wire.ask(model="plain", stream=stream)

    assert response.status_code == status
    assert response.json() == reported("Too odd")
    assert (response.headers["retry-after"], response.headers["x-should-retry"]) == ("7", "false")
    for name in ("set-cookie", "x-ratelimit-limit-requests", "openai-organization"):
        assert name not in response.headers
    assert response.headers["x-request-id"].startswith("req_")
    assert len(response.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (error(401, reported("Incorrect API key provided: another-k*y")), 502, "upstream_auth_failed"),
        (error(403, reported("No")), 502, "upstream_auth_failed"),
        (error(502, "<html>Bad gateway of the inner network</html>"), 502, "upstream_error"),
        (error(400, reported("x" * 5000)), 400, "upstream_bad_request"),
        (error(400, '{"detail": "no envelope"}'), 400, "upstream_bad_request"),
        (raw(b"", status=302, headers={"location": "http://127.0.0.1:9/"}), 502, "upstream_protocol_error"),
        (raw(b"<html>", content_type="text/html"), 502, "upstream_protocol_error"),
        (raw(b'{"a": ', content_type="application/json").cut(after=1), 502, "upstream_error"),
        (cut(), 502, "upstream_unreachable"),
        (bare(b"SSH-2.0\r\n"), 502, "upstream_unreachable"),
        (hang(), 504, "upstream_timeout"),
        (raw(b" " * 3000, content_type="application/json"), 502, "upstream_too_much"),
    ],
    ids=[
        "our key", "forbidden", "a page", "long", "no envelope", "elsewhere", "a good page", "cut", "reset",
        "no HTTP", "silence", "too much",
    ],
)  # fmt: skip
async def test_other_failures_use_the_errors_of_the_proxy(
    tmp_path: Path, upstream: FakeUpstream, reply: Reply, status: int, code: str
) -> None:
    limits = {"first_token_timeout": 0.3, "turn_time_limit": 0.3, "max_answer_bytes": 2000}
    upstream.reply(reply)
    async with serving(tmp_path, upstream, **limits) as served, Wire(served) as wire:
        response = await wire.ask(model="plain")

    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
    assert len(response.content) <= 2000
    for inner in ("another-k", "inner network"):
        assert inner not in response.text


async def test_an_unreachable_provider_gets_its_own_error(tmp_path: Path) -> None:
    async with FakeUpstream() as gone:
        pass
    async with serving(tmp_path, gone) as served, Wire(served) as wire:
        response = await wire.ask(model="plain")

    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (text("Hello you", chunks=4).cut(after=3), "upstream_error"),
        (text("Hello you", chunks=4).hang(after=3), "upstream_timeout"),
        (text("Hello you", chunks=4).end(after=3), "upstream_incomplete"),
        (
            raw(b'data: {"id": "a", "choices": []}\n\n', b'data: {"id": "b", "cho').cut(after=2),
            "upstream_error",
        ),
    ],
    ids=["cut", "silent", "ended", "cut in an event"],
)
async def test_a_stream_that_breaks_off_ends_with_an_error_and_no_half_event(
    tmp_path: Path, upstream: FakeUpstream, reply: Reply, code: str
) -> None:
    upstream.reply(reply)
    limits = {"idle_timeout": 0.3} if code == "upstream_timeout" else {}
    async with serving(tmp_path, upstream, **limits) as served, Wire(served) as wire:
        response = await wire.ask(model="plain", stream=True)

    frames = [frame.removeprefix("data: ") for frame in response.text.removesuffix("\n\n").split("\n\n")]
    assert frames[-1] == "[DONE]"
    assert json.loads(frames[-2])["error"]["code"] == code
    assert all(json.loads(frame)["id"] for frame in frames[:-2])


async def test_a_body_that_is_none_is_refused_before_a_model_is_called(
    served: Served, upstream: FakeUpstream
) -> None:
    async with Wire(served) as wire:
        for body in (b"", b"[]", b'{"model": "plain"', b'{"model": ["plain"]}', b'{"model": "plain"} x'):
            response = await wire.raw(body)
            assert response.status_code == 400, body
    assert not upstream.requests


# --- a component under its own name ---


async def test_a_component_answers_without_conversation(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"), calls(("weather", {"city": "Bonn"})))
    async with Wire(served) as wire:
        said = await wire.completion(
            model="component", messages=[{"role": "system", "content": "Be brief."}, *HELLO], temperature=0.5
        )
        called = await wire.completion(model="component", tools=[WEATHER])

    assert (said.model, said.choices[0].message.content) == ("component", "Hi")
    assert called.choices[0].finish_reason == "tool_calls"
    assert [m["content"] for m in upstream.requests[0].body["messages"]] == ["Be brief.", "Hello"]
    assert upstream.requests[0].body["temperature"] == 0.5
    assert count_rows(served) == 0


# --- everything that the provider lists ---

LISTED = {
    "object": "list",
    "data": [
        {"id": "vendor/big:model", "object": "model", "created": 1_600_000_000, "owned_by": "vendor"},
        {"id": "bare"},
        {"id": "shop", "object": "model", "created": 1, "owned_by": "impostor"},
        {"id": "plain", "object": "model", "created": 1, "owned_by": "impostor"},
        {"id": "shop/side", "created": 1},
        {"id": "", "created": 1},
        {"id": "odd", "created": "yesterday", "owned_by": 5},
    ],
}


class Provider:
    """A provider with a scripted list of models that replies with a greeting."""

    def __init__(self) -> None:
        self.listed: Any = LISTED
        self.asked = 0

    def answer(self, received: Received) -> Reply:
        if received.method == "GET":
            self.asked += 1
            if isinstance(self.listed, Reply):
                return self.listed
            return raw(json.dumps(self.listed).encode(), content_type="application/json")
        return text("Hi")


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[FakeUpstream]:
    wants = "provider" in request.fixturenames
    answer = request.getfixturevalue("provider").answer if wants else None
    async with FakeUpstream(answer=answer, lists_models=not wants) as created:
        yield created


async def test_what_the_provider_lists_is_served_under_its_own_name(
    tmp_path: Path, upstream: FakeUpstream, provider: Provider
) -> None:
    async with serving(tmp_path, upstream, pass_through=True) as served, Wire(served) as wire:
        response = await wire.ask(model="vendor/big:model", top_k=5)
        team = await wire.ask(model="shop")
        exposed = await wire.ask(model="plain")
        client = served.client()
        listed = {model.id: model async for model in client.models.list()}
        one = await client.models.retrieve("vendor/big:model")

    assert [request.body["model"] for request in upstream.requests if request.body] == [
        "vendor/big:model",
        "test-model",
        "vendor/real-name",
    ]
    assert upstream.requests[1].body["top_k"] == 5
    assert upstream.requests[1].headers["authorization"] == "Bearer upstream-key"
    assert all(answer.status_code == 200 for answer in (response, team, exposed))
    assert (one.id, one.created, one.owned_by) == ("vendor/big:model", 1_600_000_000, "vendor")
    assert listed["shop"].owned_by == listed["plain"].owned_by == listed["odd"].owned_by == "handoff-proxy"
    assert list(listed)[:4] == ["shop", "shop/triage", "shop/sales", "shop/repairs"]
    assert list(listed)[4:] == ["plain", "component", "vendor/big:model", "bare", "odd"]
    assert all(model.created > 0 for model in listed.values())


async def test_without_the_setting_nothing_is_listed(
    tmp_path: Path, upstream: FakeUpstream, provider: Provider
) -> None:
    async with serving(tmp_path, upstream) as served, Wire(served) as wire:
        assert (await wire.ask(model="bare")).status_code == 404
    assert provider.asked == 0


async def test_the_list_is_requested_once_and_again_for_a_new_name(
    tmp_path: Path, upstream: FakeUpstream, provider: Provider
) -> None:
    async with serving(tmp_path, upstream, pass_through=True) as served, Wire(served) as wire:
        for _ in range(3):
            await wire.http.get("/models")
            await wire.ask(model="bare")
        assert provider.asked == 1
        assert (await wire.ask(model="new")).status_code == 404
        assert provider.asked == 1, "a name that is not there is not looked for at every request"


@pytest.mark.parametrize(
    "listed",
    [error(500), error(401), raw(b"{", content_type="application/json"), cut(), {"data": "none"}, []],
    ids=["500", "401", "no JSON", "reset", "no list", "a list of nothing"],
)
async def test_a_provider_that_lists_nothing_harms_nothing(
    tmp_path: Path, upstream: FakeUpstream, provider: Provider, listed: Any
) -> None:
    provider.listed = listed
    async with serving(tmp_path, upstream, pass_through=True) as served, Wire(served) as wire:
        models = await wire.http.get("/models")
        team = await wire.ask(model="shop")
        missing = await wire.ask(model="bare")

    assert models.json()["data"][0]["id"] == "shop"
    assert team.status_code == 200
    assert missing.status_code == 404


async def test_without_a_provider_the_setting_does_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(tmp_path, pass_through=True) as served, Wire(served) as wire:
        response = await wire.ask(model="gpt-5-mini")

    assert response.status_code == 404
    assert "there is no provider whose models could be served" in caplog.text


async def test_a_refusal_reaches_the_sdk_as_its_own_error(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(error(400, reported("Unsupported value", param="n", code="unsupported_value")))
    with pytest.raises(openai.BadRequestError) as refused:
        await served.client().chat.completions.create(model="plain", messages=HELLO, n=3)

    assert (refused.value.param, refused.value.code) == ("n", "unsupported_value")


STREAM = b'data: {"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
WHOLE = b'{"choices": [{"message": {"content": "Hi"}}]}'


@pytest.mark.parametrize(
    ("body", "label", "kind"),
    [
        (WHOLE, "text/event-stream", "application/json"),
        (b"\r\n " + WHOLE, "text/plain", "application/json"),
        (STREAM, "application/json", "text/event-stream"),
        (b": waiting\n\n" + STREAM, "text/plain", "text/event-stream"),
        (STREAM, "", "text/event-stream"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
async def test_the_body_and_not_its_label_says_what_it_is(
    served: Served, upstream: FakeUpstream, body: bytes, label: str, kind: str, is_streamed: bool
) -> None:
    upstream.reply(raw(body, content_type=label))

    async with httpx2.AsyncClient() as client:
        response = await client.post(
            f"{served.base_url}/chat/completions",
            json={"model": "plain", "messages": [], "stream": is_streamed},
        )

    assert response.status_code == 200
    assert response.headers["content-type"] == kind
    assert response.content == body
