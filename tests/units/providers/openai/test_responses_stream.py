"""A model on the Responses wire: requests, streams, whole answers, errors, and which wire is used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.errors import (
    ContentFiltered,
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamIncomplete,
    UpstreamModelNotFound,
    UpstreamRateLimited,
)
from proxy.events import ReasoningDelta, TextDelta
from proxy.messages import (
    MAX_STATE_BYTES,
    AssistantMessage,
    FileData,
    FilePart,
    FunctionCall,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedToolChoice,
    Parameters,
    ProviderState,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from proxy.providers.http.pool import HttpSession
from proxy.providers.model import Finished, ModelRequest
from proxy.providers.openai.client import OpenAIWireModel
from proxy.providers.openai.provider_state import provider_of
from proxy.providers.openai.wires import first_wire
from proxy.teamfiles.definitions import OpenAIModel
from tests.fakes.model_calls import WITH_TOOLS, ask
from tests.fakes.providers.openai import (
    Gpt55,
    function_call,
    message,
    reasoning_item,
    response,
    response_events,
    whole_response,
)
from tests.fakes.replies import JSON, Reply, events, raw
from tests.fakes.upstream import FakeUpstream, error, text

REPORTED = Usage(prompt=20, completion=9, cached=12, reasoning=4)


@asynccontextmanager
async def responses_model(base_url: str, **more: Any) -> AsyncIterator[OpenAIWireModel]:
    session = HttpSession()
    keys = {"model": "gpt-5.5", "base_url": base_url, "wire": "responses", **more}
    yield OpenAIWireModel(OpenAIModel.model_validate(keys), session)
    await session.close()


async def answered(*replies: Reply, request: ModelRequest = WITH_TOOLS, **more: Any) -> tuple[Any, list[Any]]:
    """The answer, and the bodies that the provider received."""
    async with FakeUpstream(*replies) as upstream, responses_model(upstream.base_url, **more) as model:
        answer = await ask(model, request)
    return answer, [received.body for received in upstream.requests]


async def test_text_comes_as_it_is_streamed() -> None:
    answer, _ = await answered(response(message("Hello", " you")))

    assert answer.deltas == [TextDelta("Hell"), TextDelta("o you"), Finished("stop", REPORTED)]


async def test_parallel_calls_come_in_order_with_their_state() -> None:
    output = [
        reasoning_item(0),
        {**message("Let me see."), "phase": "commentary"},
        function_call("a", "look_up", '{"q": 1}'),
        function_call("b", "refund", "{}"),
    ]
    answer, _ = await answered(response(*output))

    assert answer.text == "Let me see."
    assert answer.calls == [("look_up", '{"q": 1}'), ("refund", "{}")]
    assert answer.reason == "tool_calls"
    assert answer.end.state.items == [
        reasoning_item(0),
        {"type": "message", "phase": "commentary"},
        {"type": "function_call"},
        {"type": "function_call"},
    ]


async def test_interleaved_calls_come_one_after_the_other() -> None:
    reported = response_events(
        [function_call("a", "look_up", '{"q": 1}'), function_call("b", "refund", '{"n": 2}')]
    )
    order = [0, 1, 6, 2, 7, 3, 8, 4, 9, 5, 10, 11]
    assert sorted(order) == list(range(len(reported)))

    answer, _ = await answered(events(*(reported[place] for place in order), done=False))

    assert answer.calls == [("look_up", '{"q": 1}'), ("refund", '{"n": 2}')]


async def test_summaries_are_reasoning_with_a_blank_line_between_parts() -> None:
    parts = [{"type": "summary_text", "text": "First"}, {"type": "summary_text", "text": "then"}]
    answer, _ = await answered(response({**reasoning_item(0), "summary": parts}, message("Hello")))

    assert [delta.text for delta in answer.deltas if isinstance(delta, ReasoningDelta)] == [
        "First",
        "\n\n",
        "then",
    ]
    assert answer.end.state is not None
    assert answer.end.state.items == [{**reasoning_item(0), "summary": parts}, {"type": "message"}]


async def test_a_refusal_is_not_text() -> None:
    answer, _ = await answered(response(message(refusal="I cannot.")))

    assert (answer.text, answer.refusal, answer.reason) == ("", "I cannot.", "stop")


@pytest.mark.parametrize(
    ("why", "reason"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
async def test_an_incomplete_answer_has_its_reason(why: str, reason: str) -> None:
    reply = response(message("Hello"), status="incomplete", incomplete_details={"reason": why})
    answer, _ = await answered(reply)

    assert (answer.text, answer.reason) == ("Hello", reason)


@pytest.mark.parametrize(
    "output",
    [
        [message("Hello")],
        [reasoning_item(0), function_call("a", "look_up", "{}")],
        [message(refusal="I cannot.")],
    ],
)
async def test_a_whole_answer_is_the_same_as_a_streamed_one(output: list[Any]) -> None:
    whole, _ = await answered(raw(json.dumps(whole_response(output)).encode(), content_type=JSON))
    terminal, _ = await answered(events(response_events(output)[-1], done=False))
    streamed, _ = await answered(response(*output))

    for other in (whole, terminal):
        assert other.failure is None
        assert (other.text, other.refusal, other.reasoning, other.calls) == (
            streamed.text,
            streamed.refusal,
            streamed.reasoning,
            streamed.calls,
        )
        assert other.end.reason == streamed.end.reason
        assert (other.end.state is None) == (streamed.end.state is None)


async def test_log_probabilities_have_the_form_of_chat_completions() -> None:
    reported = response_events([message("Hi")])
    for event in reported:
        if event["type"] == "response.output_text.delta":
            piece = event["delta"]
            other = {"token": "é", "logprob": -2.0}
            event["logprobs"] = [{"token": piece, "logprob": -0.1, "top_logprobs": [other]}]
    answer, bodies = await answered(
        events(*reported, done=False),
        request=ModelRequest(
            [UserMessage(content="Hi")], parameters=Parameters(logprobs=True, top_logprobs=1)
        ),
    )

    first = next(delta for delta in answer.deltas if isinstance(delta, TextDelta))
    assert first.logprobs == [
        {
            "token": "H",
            "logprob": -0.1,
            "bytes": [72],
            "top_logprobs": [{"token": "é", "logprob": -2.0, "bytes": [195, 169]}],
        }
    ]
    assert bodies[0]["top_logprobs"] == 1
    assert "message.output_text.logprobs" in bodies[0]["include"]


@pytest.mark.parametrize(
    ("reply", "failure", "is_retryable"),
    [
        (events({"type": "response.created"}, done=False), UpstreamIncomplete, True),
        (
            response(status="failed", error={"code": "rate_limit_exceeded", "message": "slow"}),
            UpstreamRateLimited,
            True,
        ),
        (response(status="failed", error={"code": "server_error", "message": "no"}), UpstreamFailed, True),
        (response(status="cancelled"), UpstreamFailed, True),
        (
            events({"type": "error", "code": "content_filter", "message": "no", "param": None}, done=False),
            ContentFiltered,
            False,
        ),
        (events({"error": {"code": 429, "message": "slow"}}, done=False), UpstreamRateLimited, True),
        (error(400, code="invalid_value"), UpstreamBadRequest, False),
    ],
)
async def test_a_failure_is_what_the_provider_says(
    reply: Reply, failure: type[UpstreamFailed], is_retryable: bool
) -> None:
    answer, _ = await answered(reply)

    assert type(answer.failure) is failure
    assert answer.failure.is_retryable is is_retryable


async def test_a_cut_answer_is_an_error_behind_its_text() -> None:
    answer, _ = await answered(response(message("Hello")).end(after=4))

    assert answer.text == "He"
    assert type(answer.failure) is UpstreamIncomplete


async def test_requests_have_the_form_of_the_api() -> None:
    call = ToolCall("call_1", FunctionCall("look_up", '{"q": 1}'))
    image = ImagePart(ImageUrl("https://example.com/a.png"))
    request = ModelRequest(
        messages=[
            SystemMessage(content="You sell."),
            UserMessage(content=[TextPart("See"), image, FilePart(FileData(file_id="file-1"))]),
            AssistantMessage(content="Let me see.", tool_calls=[call]),
            ToolMessage("call_1", "found"),
        ],
        tools=[FunctionTool("look_up", strict=True), FunctionTool("refund", "Refunds.")],
        tool_choice=NamedToolChoice("look_up"),
        parallel_tool_calls=False,
        parameters=Parameters(
            max_tokens=5,
            reasoning_effort="high",
            verbosity="low",
            seed=1,
            response_format={"type": "json_schema", "json_schema": {"name": "form", "schema": {}}},
        ),
    )

    _, [body] = await answered(
        response(message("Hello")),
        request=request,
        extra_body={"truncation": "auto"},
        parameters={"stop": "x"},
    )

    no_arguments = {"type": "object", "properties": {}}
    assert body == {
        "model": "gpt-5.5",
        "instructions": "You sell.",
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "See"},
                    {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"},
                    {"type": "input_file", "file_id": "file-1"},
                ],
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Let me see."}],
            },
            {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": '{"q": 1}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "found"},
        ],
        "tools": [
            {"type": "function", "name": "look_up", "parameters": no_arguments, "strict": True},
            {
                "type": "function",
                "name": "refund",
                "description": "Refunds.",
                "parameters": no_arguments,
                "strict": False,
            },
        ],
        "tool_choice": {"type": "function", "name": "look_up"},
        "parallel_tool_calls": False,
        "max_output_tokens": 16,
        "reasoning": {"effort": "high", "summary": "auto"},
        "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "form", "schema": {}}},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "stream": True,
        "truncation": "auto",
    }


@pytest.mark.parametrize(
    ("is_own", "wanted"), [(True, ["reasoning", "function_call"]), (False, ["function_call"])]
)
async def test_only_state_of_the_same_provider_and_model_is_sent(is_own: bool, wanted: list[str]) -> None:
    call = ToolCall("call_1", FunctionCall("look_up", "{}"))
    async with (
        FakeUpstream(response(message("Hello"))) as upstream,
        responses_model(upstream.base_url) as model,
    ):
        provider = model.provider if is_own else provider_of(upstream.base_url, "gpt-5.4")
        states = {"call_1": ProviderState(provider, items=[reasoning_item(0), {"type": "function_call"}])}
        await ask(model, ModelRequest([AssistantMessage(tool_calls=[call])], states=states))

    assert [item["type"] for item in upstream.requests[0].body["input"]] == wanted


async def test_state_over_the_limit_is_dropped() -> None:
    huge = {**reasoning_item(0), "encrypted_content": "x" * (MAX_STATE_BYTES // 2)}
    output = [huge, {**huge, "id": "rs_1"}, function_call("a", "look_up", "{}")]
    reported = response_events(output)[-1]
    answer, _ = await answered(raw(json.dumps(reported["response"]).encode(), content_type=JSON))

    assert (answer.calls, answer.end.state) == ([("look_up", "{}")], None)


# --- which wire ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "wire"),
    [
        ("https://api.openai.com/v1", "responses"),
        ("https://eu.api.openai.com/v1", "responses"),
        ("https://shop.openai.azure.com/openai/v1/", "responses"),
        ("https://shop.openai.azure.com/openai/deployments/gpt?api-version=2024-10-21", "chat"),
        ("https://api.openai.com.example.com/v1", "chat"),
        ("http://127.0.0.1:11434/v1", "chat"),
    ],
)
def test_auto_uses_responses_where_they_are_known_to_be(base_url: str, wire: str) -> None:
    assert first_wire(OpenAIModel(model="gpt-5.5", base_url=base_url)) == wire


async def test_a_provider_that_points_to_responses_is_called_there_from_then_on() -> None:
    async with (
        FakeUpstream(answer=Gpt55()) as upstream,
        responses_model(upstream.base_url, wire="auto") as model,
    ):
        answers = [await ask(model, WITH_TOOLS) for _ in range(2)]

    assert [answer.failure for answer in answers] == [None, None]
    assert [received.path for received in upstream.requests] == [
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/responses",
    ]
    assert not {"stop", "seed"} & model.abilities.parameters


async def test_a_provider_without_responses_is_called_for_chat_completions() -> None:
    async with (
        FakeUpstream(error(405), text("Hello"), text("Again")) as upstream,
        responses_model(upstream.base_url, wire="auto") as model,
    ):
        model._wire = "responses"
        answers = [await ask(model) for _ in range(2)]

    assert [answer.text for answer in answers] == ["Hello", "Again"]
    assert [received.path for received in upstream.requests] == [
        "/v1/responses",
        "/v1/chat/completions",
        "/v1/chat/completions",
    ]


async def test_a_provider_with_neither_wire_has_not_switched() -> None:
    async with (
        FakeUpstream(error(404), error(404), response(message("Hello"))) as upstream,
        responses_model(upstream.base_url, wire="auto") as model,
    ):
        model._wire = "responses"
        first, second = await ask(model), await ask(model)

    assert type(first.failure) is UpstreamModelNotFound
    assert second.text == "Hello"


@pytest.mark.parametrize(("wire", "code"), [("responses", None), ("auto", "model_not_found")])
async def test_an_unknown_model_or_a_fixed_wire_does_not_switch(wire: str, code: str | None) -> None:
    async with (
        FakeUpstream(error(404, code=code)) as upstream,
        responses_model(upstream.base_url, wire=wire) as model,
    ):
        model._wire = "responses"
        answer = await ask(model)

    assert type(answer.failure) is UpstreamModelNotFound
    assert len(upstream.requests) == 1


async def test_models_without_reasoning_are_called_without_its_fields() -> None:
    provider = Gpt55(has_reasoning=False)
    async with FakeUpstream(answer=provider) as upstream, responses_model(upstream.base_url) as model:
        answers = [await ask(model, WITH_TOOLS) for _ in range(2)]

    assert [answer.failure for answer in answers] == [None, None]
    assert provider.rejections == ["include", "reasoning.summary"]
    assert len(upstream.requests) == 4
