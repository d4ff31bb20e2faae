"""What a request may hold, and that every field that is honoured reaches the model as it came."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.chat_client import WEATHER, assistant, user
from tests.behaviour.raw_http import HELLO, Wire, check_refusal
from tests.fakes.upstream import FakeUpstream, calls, error, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest.fixture
def upstream(open_shop: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return open_shop[1].forget()


SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "description": "how it is",
        "strict": True,
        "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
    },
}

HONOURED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.25},
    "temperature as an integer": {"temperature": 1},
    "top_p": {"top_p": 0.5},
    "frequency_penalty": {"frequency_penalty": -1.5},
    "presence_penalty": {"presence_penalty": 1.5},
    "max_completion_tokens": {"max_completion_tokens": 50},
    "max_tokens": {"max_tokens": 50},
    "stop as a string": {"stop": "END"},
    "stop as a list": {"stop": ["a", "b", "c", "d"]},
    "seed": {"seed": -(2**63)},
    "json mode": {"response_format": {"type": "json_object"}},
    "a schema": {"response_format": SCHEMA},
    "a schema with its name only": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "any"}}
    },
    "plain text": {"response_format": {"type": "text"}},
    "reasoning_effort": {"reasoning_effort": "xhigh"},
    "verbosity": {"verbosity": "low"},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 20},
    "service_tier": {"service_tier": "flex"},
}


@pytest.mark.parametrize("field", HONOURED)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_parameter_reaches_the_model_unchanged(
    served: Served, upstream: FakeUpstream, field: str, stream: bool
) -> None:
    upstream.reply(text('{"ok": true}'))
    async with Wire(served) as wire:
        response = await wire.ask(stream=stream, **HONOURED[field])

    assert response.status_code == 200, response.text
    assert "x-ignored-parameters" not in response.headers
    sent = upstream.requests[0].body
    assert {name: sent[name] for name in HONOURED[field]} == HONOURED[field]
    common = {"model", "messages", "stream", "stream_options", "tools"}
    assert set(sent) - common == set(HONOURED[field])


async def test_parameters_are_sent_to_the_model_of_every_active_agent(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("What colour?"))
    async with Wire(served) as wire:
        await wire.completion(temperature=0.25, seed=7)

    assert [(r.body["temperature"], r.body["seed"]) for r in upstream.requests] == [(0.25, 7)] * 2


NOT_SET: dict[str, Any] = dict.fromkeys(
    (
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "metadata", "modalities", "moderation", "n", "parallel_tool_calls", "prediction",
        "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort",
        "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options",
        "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    )
)  # fmt: skip


async def test_null_means_not_set_in_every_optional_field(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    async with Wire(served) as wire:
        response = await wire.ask(**NOT_SET)

    assert response.status_code == 200, response.text
    assert "x-ignored-parameters" not in response.headers
    assert set(upstream.requests[0].body) == {"model", "messages", "stream", "stream_options", "tools"}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"n": 1.0},
        {"logit_bias": {}},
        {"logprobs": False},
        {"modalities": ["text"]},
        {"tools": []},
        {"functions": []},
        {"tools": [], "tool_choice": "auto"},
        {"max_completion_tokens": 5.0},
        {"metadata": {}},
        {"metadata": {"k" * 64: "v" * 512}},
        {"store": True},
        {"user": "", "safety_identifier": ""},
        {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": True}},
        {"stream": True, "stream_options": {}},
    ],
    ids=json.dumps,
)
async def test_values_that_ask_for_nothing_special_are_taken(
    served: Served, upstream: FakeUpstream, fields: dict[str, Any]
) -> None:
    upstream.reply(text("Hi"))
    async with Wire(served) as wire:
        response = await wire.ask(**fields)

    assert response.status_code == 200, response.text
    assert "x-ignored-parameters" not in response.headers


async def test_unknown_fields_are_reported_and_not_sent_to_the_model(
    served: Served, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.requests")
    upstream.reply(text("Hi"))
    async with Wire(served) as wire:
        response = await wire.ask(
            top_k=5,
            chat_template_kwargs={"thinking": True},
            messages=[{**HELLO[0], "id": "m1", "cache_control": {"type": "ephemeral"}, "metadata": None}],
            tools=[{**WEATHER, "cache_control": {}, "function": {**WEATHER["function"], "x_vendor": 1}}],
        )

    assert response.status_code == 200, response.text
    assert response.headers["x-ignored-parameters"] == "top_k, chat_template_kwargs"
    logged: list[Any] = [record for record in caplog.records if record.name == "proxy.requests"]
    assert logged[-1].ignored == ["top_k", "chat_template_kwargs"]
    sent = upstream.requests[0].body
    assert "top_k" not in sent
    assert "chat_template_kwargs" not in sent
    assert sent["messages"][-1] == HELLO[0]
    assert sent["tools"][-1] == WEATHER


@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
async def test_unknown_fields_are_rejected_in_strict_mode(
    tmp_path: Path, upstream: FakeUpstream, path: str
) -> None:
    async with serve(tmp_path, upstream.base_url, strict_parameters=True) as strict, Wire(strict) as wire:
        body = {"model": "shop", "messages": HELLO, "input": "Hi", "top_k": 5}
        body.pop("input" if path == "/chat/completions" else "messages")
        common = check_refusal(await wire.http.post(path, json=body))

    assert (common["code"], common["param"]) == ("unknown_parameter", "top_k")
    assert common["message"] == "Unknown parameter: 'top_k'."
    assert not upstream.requests


# --- messages ---

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5"
    "ErkJggg=="
)
PARTS: dict[str, list[Any]] = {
    "text": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
    "an image by its address": [
        {"type": "image_url", "image_url": {"url": "https://127.0.0.1:9/secret.png?a=b#c", "detail": "low"}}
    ],
    "an image in itself": [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ],
    "an image in every detail": [
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "original"}},
    ],
    "a sound": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}],
    "a file": [
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "ü.pdf"}}
    ],
    "an uploaded file": [{"type": "file", "file": {"file_id": "file-123"}}],
}


@pytest.mark.parametrize("kind", PARTS)
async def test_parts_reach_the_model_as_they_came(served: Served, upstream: FakeUpstream, kind: str) -> None:
    upstream.reply(text("I see"))
    async with Wire(served) as wire:
        await wire.completion(messages=[{"role": "user", "content": PARTS[kind], "name": "Ann"}])

    assert upstream.requests[0].body["messages"][-1] == {
        "role": "user",
        "content": PARTS[kind],
        "name": "Ann",
    }


@pytest.mark.parametrize(
    "message",
    [
        user(""),
        {"role": "user", "content": None},
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        assistant("So I said", name="triage"),
        assistant([{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]),
        assistant(None, refusal="I will not"),
        assistant(None),
        {"role": "assistant"},
        assistant("", tool_calls=[], function_call=None, audio=None, annotations=[], refusal=None),
    ],
    ids=json.dumps,
)
async def test_messages_are_taken_in_every_form_that_clients_send(
    served: Served, upstream: FakeUpstream, message: Any
) -> None:
    upstream.reply(text("Hi"))
    async with Wire(served) as wire:
        await wire.completion(messages=[message, *HELLO])

    role, *rest = (m["role"] for m in upstream.requests[0].body["messages"][1:])
    assert (role, rest) == (message["role"], ["user"])
    shown = upstream.requests[0].body["messages"][1]
    assert "tool_calls" not in shown
    assert shown["content"] is not None or shown.get("refusal")


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(
    "content", ["Be brief.", [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]]
)
async def test_instructions_of_the_client_come_behind_the_agents_own_from_any_place(
    served: Served, upstream: FakeUpstream, role: str, content: Any
) -> None:
    upstream.reply(text("Hi"))
    common = {"role": role, "content": content, "name": "app"}
    async with Wire(served) as wire:
        await wire.completion(messages=[common, *HELLO, common])

    system, *texts = upstream.requests[0].body["messages"]
    assert texts == HELLO
    assert system["role"] == "system"
    assert system["content"].startswith("You are triage.")
    assert system["content"].count("Be") == system["content"].count("brief.") == 2


async def test_two_answers_in_a_row_and_an_answer_at_the_end_are_taken(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text(" upon a time"))
    async with Wire(served) as wire:
        await wire.completion(messages=[assistant("Hello."), assistant("Again."), *HELLO, assistant("Once")])

    assert [m["role"] for m in upstream.requests[0].body["messages"]] == [
        "system",
        "assistant",
        "assistant",
        "user",
        "assistant",
    ]


# --- user ids are not forwarded, or only as a hash ---


async def test_the_user_is_sent_to_the_provider_as_a_hash(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"), text("Hi"), text("Hi"))
    requested = {"safety_identifier": "ann@example.com", "prompt_cache_key": "thread-1", "user": "ann"}
    async with Wire(served) as one, Wire(served, "another-key") as other:
        await one.completion(**requested, metadata={"person": "ann"}, store=True)
        await one.completion(**requested)
        await other.completion(**requested)

    sent = [request.body for request in upstream.requests]
    assert not {"user", "metadata", "store"} & set(sent[0])
    for name in ("safety_identifier", "prompt_cache_key"):
        first, again, others = (body[name] for body in sent)
        assert first == again != others
        assert len(first) == 64
        assert requested[name] not in first


async def test_a_provider_that_rejects_such_a_field_is_called_without_it_from_then_on(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(
        error(400, message="Unrecognized request argument supplied: safety_identifier"),
        text("Hi"),
        text("Hi"),
    )
    async with Wire(served) as wire:
        await wire.completion(safety_identifier="ann", prompt_cache_key="t")
        await wire.completion(safety_identifier="ann", prompt_cache_key="t")

    assert ["safety_identifier" in r.body for r in upstream.requests] == [True, False, False]
    assert ["prompt_cache_key" in r.body for r in upstream.requests] == [True, True, True]
