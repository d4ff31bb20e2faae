"""AutoGen's Anthropic and Ollama clients against their APIs: what they need changed, seen in the requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.events import TextDelta
from proxy.messages import (
    AssistantMessage,
    FunctionTool,
    Message,
    NamedToolChoice,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.messages import FunctionCall as WireCall
from proxy.providers.autogen.client import ComponentChatModel
from proxy.providers.model import Finished, ModelRequest, ToolCallPiece
from proxy.teamfiles.definitions import ComponentModel
from tests.fakes.model_calls import ask
from tests.fakes.providers.native import AnthropicMessages, NativeProvider, OllamaNative
from tests.fakes.upstream import FakeUpstream

INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": False,
    "structured_output": False,
    "family": "unknown",
}
LOOK_UP = FunctionTool("look_up", "Look it up.", {"type": "object", "properties": {"q": {"type": "string"}}})
OTHER = FunctionTool("other", "Something else.")
PLAN = (("look_up", {"q": "x"}),)


@asynccontextmanager
async def model_of(provider: NativeProvider) -> AsyncIterator[ComponentChatModel]:
    async with FakeUpstream(answer=provider) as upstream:
        origin = upstream.base_url.removesuffix("/v1")
        if isinstance(provider, AnthropicMessages):
            name = "anthropic.AnthropicChatCompletionClient"
            config: dict[str, Any] = {"base_url": origin, "api_key": "k"}
        else:
            name, config = "ollama.OllamaChatCompletionClient", {"host": origin}
        definition = ComponentModel(
            provider=f"autogen_ext.models.{name}", config={"model": "m", "model_info": INFO, **config}
        )
        model = ComponentChatModel.load("native", definition)
        try:
            yield model
        finally:
            await model.close()


def history(arguments: str, text: str | None = None) -> Sequence[Message]:
    return [
        SystemMessage("Be brief."),
        UserMessage("What is it?"),
        AssistantMessage(text, tool_calls=[ToolCall("call_1", WireCall("look_up", arguments))]),
        ToolMessage(content="a rocket", tool_call_id="call_1"),
    ]


@pytest.mark.parametrize("kind", [AnthropicMessages, OllamaNative])
async def test_text_and_a_call_arrive_with_the_usage(kind: type[NativeProvider]) -> None:
    async with model_of(kind(PLAN, text="I look.")) as model:
        answer = await ask(model, ModelRequest(messages=[UserMessage("Hi")], tools=[LOOK_UP]))

    assert answer.failure is None
    assert "".join(delta.text for delta in answer.deltas if isinstance(delta, TextDelta)) == "I look."
    calls = [delta for delta in answer.deltas if isinstance(delta, ToolCallPiece)]
    assert [(one.name, json.loads(one.arguments)) for one in calls] == [("look_up", {"q": "x"})]
    ending = answer.deltas[-1]
    assert isinstance(ending, Finished)
    assert ending.reason == "tool_calls"
    assert ending.usage is not None
    assert ending.usage.total == 25


@pytest.mark.parametrize("kind", [AnthropicMessages, OllamaNative])
@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ('{"q": "x"}', {"q": "x"}),
        ("", {}),
        ("{q: x", {"arguments": "{q: x"}),
        ("[1]", {"arguments": "[1]"}),
    ],
)
async def test_arguments_of_earlier_calls_are_sent_as_objects(
    kind: type[NativeProvider], arguments: str, sent: Any
) -> None:
    provider = kind(PLAN)
    async with model_of(provider) as model:
        answer = await ask(model, ModelRequest(messages=history(arguments), tools=[LOOK_UP]))

    assert answer.failure is None
    assert provider.rejections == []
    messages = provider.requests[0]["messages"]
    if kind is AnthropicMessages:
        assert messages[1]["content"][0]["input"] == sent
    else:
        assert messages[2]["tool_calls"][0]["function"]["arguments"] == sent


async def test_ollama_receives_the_text_before_a_call() -> None:
    provider = OllamaNative(PLAN)
    async with model_of(provider) as model:
        await ask(model, ModelRequest(messages=history("{}", "I look."), tools=[LOOK_UP]))

    assert {"role": "assistant", "content": "I look."} in provider.requests[0]["messages"]


async def test_ollama_receives_the_definition_of_a_named_tool() -> None:
    provider = OllamaNative(PLAN)
    async with model_of(provider) as model:
        choice = NamedToolChoice("look_up")
        messages = [UserMessage("Hi")]
        await ask(model, ModelRequest(messages=messages, tools=[OTHER, LOOK_UP], tool_choice=choice))

    functions = [tool["function"] for tool in provider.requests[0]["tools"]]
    assert [(one["name"], [*one["parameters"]["properties"]]) for one in functions] == [("look_up", ["q"])]


async def test_ollamas_limit_of_tokens_is_reported_as_length() -> None:
    async with model_of(OllamaNative((), finish="length")) as model:
        answer = await ask(model, ModelRequest(messages=[UserMessage("Hi")]))

    ending = answer.deltas[-1]
    assert isinstance(ending, Finished)
    assert ending.reason == "length"


async def test_anthropic_receives_tools_of_the_same_request_only() -> None:
    provider = AnthropicMessages(())
    async with model_of(provider) as model:
        await ask(model, ModelRequest(messages=[UserMessage("Hi")], tools=[OTHER]))
        answer = await ask(model, ModelRequest(messages=history("{}")))

    assert answer.failure is None
    assert [tool["name"] for tool in provider.requests[1]["tools"]] == ["look_up"]
    assert provider.requests[1]["tool_choice"] == {"type": "none"}
