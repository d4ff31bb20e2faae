"""Requests to an OpenAI-compatible provider."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from proxy.errors import ConfigurationError
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedToolChoice,
    Parameters,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.providers.http.pool import HttpSession
from proxy.providers.model import Finished, ModelRequest
from proxy.providers.openai.client import OpenAIWireModel
from proxy.providers.openai.rejection import rejection_of
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import OpenAIModel
from tests.fakes.model_calls import HELLO, ask
from tests.fakes.upstream import FakeUpstream, error, text


def model_at(upstream: FakeUpstream, session: HttpSession, **more: Any) -> OpenAIWireModel:
    definition = OpenAIModel.model_validate({"model": "m", "base_url": upstream.base_url, **more})
    return OpenAIWireModel(definition, session, ModelLimits(first_token=5, idle=5))


async def body_sent(session: HttpSession, request: ModelRequest, **more: Any) -> Any:
    async with FakeUpstream(text("Hello")) as upstream:
        await ask(model_at(upstream, session, **more), request)
        return upstream.requests[0].body


async def test_the_chain_is_sent_as_it_is(http_session: HttpSession) -> None:
    request = ModelRequest(
        messages=[
            SystemMessage(content="You sell."),
            UserMessage(
                content=[TextPart(text="What is it?"), ImagePart(ImageUrl("https://a.example/b.png"))]
            ),
            AssistantMessage(content=None, tool_calls=[ToolCall("c1", FunctionCall("look_up", '{"q":1}'))]),
            ToolMessage(tool_call_id="c1", content="A rocket."),
        ]
    )

    assert await body_sent(http_session, request) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "You sell."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "id": "c1", "function": {"name": "look_up", "arguments": '{"q":1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "A rocket."},
        ],
    }


async def test_tools_are_sent_in_the_form_of_the_wire(http_session: HttpSession) -> None:
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    request = ModelRequest(
        messages=HELLO.messages,
        tools=[FunctionTool("look_up", "Looks up.", schema, strict=True), FunctionTool("refund")],
        tool_choice=NamedToolChoice("refund"),
        parallel_tool_calls=False,
    )

    body = await body_sent(http_session, request)

    assert body["tools"] == [
        {
            "type": "function",
            "function": {"name": "look_up", "description": "Looks up.", "parameters": schema, "strict": True},
        },
        {
            "type": "function",
            "function": {"name": "refund", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "refund"}}
    assert body["parallel_tool_calls"] is False


async def test_without_tools_the_body_has_no_tool_parameters(http_session: HttpSession) -> None:
    request = ModelRequest(messages=HELLO.messages, tool_choice="auto", parallel_tool_calls=True)

    assert set(await body_sent(http_session, request)) == {"model", "stream", "stream_options", "messages"}


async def test_the_request_wins_over_the_definition_and_extra_body_over_both(
    http_session: HttpSession,
) -> None:
    request = ModelRequest(
        messages=HELLO.messages, parameters=Parameters(temperature=0.5, max_completion_tokens=7, seed=1)
    )

    body = await body_sent(
        http_session,
        request,
        parameters={"temperature": 1, "top_p": 0.9, "max_tokens": 100},
        extra_body={"seed": 2, "top_k": 40, "model": "another", "stream": False},
    )

    requested = {name: value for name, value in body.items() if name not in ("messages", "stream_options")}
    assert requested == {
        "model": "m",
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 7,
        "seed": 2,
        "top_k": 40,
    }


async def test_the_key_is_in_its_header_only(http_session: HttpSession) -> None:
    async with FakeUpstream(text("Hello")) as upstream:
        model = model_at(upstream, http_session, api_key="sk-operator\n", headers={"X-Team": "blue"})
        await ask(model)

    sent = upstream.requests[0]
    assert sent.headers["authorization"] == "Bearer sk-operator"
    assert sent.headers["x-team"] == "blue"
    assert sent.headers["accept-encoding"] == "identity"
    assert "sk-operator" not in json.dumps(sent.body)
    assert "sk-operator" not in repr(model)
    assert sent.path == "/v1/chat/completions"


async def test_headers_of_the_definition_override_defaults(http_session: HttpSession) -> None:
    headers = {"Authorization": "", "api-key": "sk-operator", "User-Agent": "ours/1"}
    async with FakeUpstream(text("Hello")) as upstream:
        await ask(model_at(upstream, http_session, api_key="sk-unused", headers=headers))

    sent = upstream.requests[0].headers
    assert "authorization" not in sent
    assert (sent["api-key"], sent["user-agent"]) == ("sk-operator", "ours/1")


async def test_a_query_of_the_base_url_stays(http_session: HttpSession) -> None:
    async with FakeUpstream(text("Hello")) as upstream:
        definition = OpenAIModel(model="m", base_url=f"{upstream.base_url}/?api-version=1")
        await ask(OpenAIWireModel(definition, http_session))

        assert upstream.requests[0].path == "/v1/chat/completions"
        assert upstream.requests[0].query == "api-version=1"


def test_an_invalid_key_is_rejected_without_printing_it() -> None:
    definition = OpenAIModel(model="m", api_key=SecretStr("sk-\u2026\nsecond line"))

    with pytest.raises(ConfigurationError, match="the API key") as raised:
        OpenAIWireModel(definition, HttpSession())

    assert "second" not in str(raised.value)


async def test_a_large_history_is_sent_whole(http_session: HttpSession) -> None:
    long = "é" * 700_000

    body = await body_sent(http_session, ModelRequest(messages=[UserMessage(content=long)]))

    assert body["messages"] == [{"role": "user", "content": long}]


async def test_a_provider_that_rejects_stream_options_is_called_without_them_from_then_on(
    http_session: HttpSession,
) -> None:
    no = error(400, message="Unknown parameter: 'stream_options'.")
    async with FakeUpstream(no, text("One"), text("Two")) as upstream:
        model = model_at(upstream, http_session)

        first, second = await ask(model), await ask(model)

        assert (first.text, first.end) == ("One", Finished("stop", None))
        assert second.text == "Two"
        assert ["stream_options" in one.body for one in upstream.requests] == [True, False, False]


async def test_echo_of_a_request_does_not_change_later_requests(http_session: HttpSession) -> None:
    texts = "What does stream_options do?"
    echo = error(400, message=f"Invalid content: {texts}")
    async with FakeUpstream(echo, text("One"), text("Two")) as upstream:
        model = model_at(upstream, http_session)

        await ask(model, ModelRequest(messages=[UserMessage(content=texts)]))
        await ask(model)

        assert ["stream_options" in one.body for one in upstream.requests] == [True, False, True]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"error": {"message": "No.", "param": "stream_options"}}, {"stream_options"}),
        ({"error": {"message": "No.", "param": "stream_options.include_usage"}}, {"stream_options"}),
        ({"error": {"message": "'stream_options' is fine", "param": "messages"}}, set()),
        ({"error": {"message": "Unknown parameter: 'seed'."}}, {"seed"}),
        (
            {"error": {"message": "Unrecognized request argument supplied: stream_options"}},
            {"stream_options"},
        ),
        ({"message": "`seed` and `stream_options` are not supported"}, {"seed", "stream_options"}),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}, {"seed"}),
        (
            {"message": {"detail": [{"loc": ["body", "stream_options", "include_usage"]}]}},
            {"stream_options"},
        ),
        ({"detail": [{"loc": ["body", "messages", 0], "input": {"seed": 1}}]}, set()),
        ({"error": {"message": "Invalid request: {'messages': [], 'seed': 7}"}}, set()),
        ({"error": {"message": "Bad value in seed=7, messages"}}, set()),
        ({"error": {"message": "x" * 300 + " 'seed'"}}, set()),
        ({"error": {"message": "No."}, "request": {"seed": 7}}, set()),
        ({"error": {"message": "The seeds are not random"}}, set()),
        ([{"error": {"message": "Unknown name 'seed'."}}], {"seed"}),
        ("seed", {"seed"}),
        (7, set()),
    ],
)
def test_rejected_fields_are_read_from_the_error_and_not_from_an_echo(body: object, fields: set[str]) -> None:
    known = ("stream_options", "seed")

    assert set(rejection_of(400, msgspec.json.encode(body)).named(known)) == fields


def test_rejected_fields_of_a_body_that_is_not_json_are_none() -> None:
    assert not rejection_of(400, b"seed").named(("seed",))
