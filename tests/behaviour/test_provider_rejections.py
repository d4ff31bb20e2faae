"""Teams on providers that reject part of a request: what is learned, what is ignored, and what is an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.fakes.providers.chat import ANSWER, PLAN
from tests.fakes.providers.reasoning import Talkative
from tests.fakes.providers.rejecting import (
    STRUCTURED,
    Anthropic,
    AzureReasoning,
    Bedrock,
    Gemini3,
    Groq,
    Kimi,
    LmStudio,
    Mistral,
    Ollama,
    OpenAIReasoning,
    StrictProvider,
    Vllm,
)
from tests.fakes.upstream import FakeUpstream
from tests.server import TEAM_FILE, Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

FAMILIES = [
    pytest.param(Mistral, {"seed", "messages.name"}, id="Mistral"),
    pytest.param(Groq, {"messages.name"}, id="Groq"),
    pytest.param(Kimi, {"temperature"}, id="Kimi"),
    pytest.param(Bedrock, set(), id="Bedrock"),
    pytest.param(AzureReasoning, {"temperature", "stop"}, id="Azure"),
    pytest.param(OpenAIReasoning, {"temperature", "stop", "seed"}, id="OpenAI o-series"),
    pytest.param(Anthropic, set(), id="Anthropic"),
    pytest.param(Vllm, set(), id="vLLM"),
    pytest.param(Ollama, set(), id="Ollama"),
    pytest.param(LmStudio, set(), id="LM Studio"),
    pytest.param(Gemini3, set(), id="Gemini 3"),
]
"""The provider, and the parameters of ``WISHES`` that have no effect on it."""
PARAMETERS: dict[str, Any] = {"temperature": 0.2, "max_tokens": 300, "seed": 7, "stop": ["###"]}
REQUESTED = [{"role": "user", "content": "It broke", "name": "Ada"}]
FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"answer": {"type": "string"}},
            "required": ["answer"],
            "additionalProperties": False,
        },
    },
}
TRANSIENT = {"tool_use_failed"}
"""Rejections of what the model wrote, and not of the request."""
Family = Callable[..., StrictProvider]


def teams_at(folder: Path, upstream: FakeUpstream, family: Family, **changes: str) -> Path:
    file = folder / "strict.yaml"
    text = TEAM_FILE.format(upstream=upstream.base_url)
    if family is AzureReasoning:
        place = upstream.base_url.removesuffix("/v1")
        text = text.replace(
            f'base_url: "{upstream.base_url}", api_key: upstream-key',
            f'base_url: "{place}/openai/deployments/o?api-version=2024-10-21", headers: {{api-key: azure-key}}',
        )
    for old, new in changes.items():
        text = text.replace(old.replace("_", ":"), new)
    file.write_text(text)
    return file


async def ask(
    served: Served, *, is_streamed: bool, headers: dict[str, str] | None = None, **more: Any
) -> tuple[str, set[str]]:
    """The answer's text, and the parameters that were ignored."""
    requested = {"model": "shop", "messages": REQUESTED, "extra_headers": headers, **more}
    create = served.client().chat.completions.with_raw_response.create
    if not is_streamed:
        answer = await create(**requested)
        return answer.parse().choices[0].message.content, ignored_of(answer.headers)
    answer = await create(**requested, stream=True)
    chunks = [one async for one in answer.parse()]
    return "".join(one.choices[0].delta.content or "" for one in chunks if one.choices), ignored_of(
        answer.headers
    )


def ignored_of(headers: Any) -> set[str]:
    return set(filter(None, headers.get("x-ignored-parameters", "").split(", ")))


def lasting(provider: StrictProvider) -> list[str]:
    return [one for one in provider.rejections if one not in TRANSIENT]


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("family", "ignored"), FAMILIES)
async def test_teams_work_and_learn_what_the_provider_rejects(
    tmp_path: Path, family: Family, ignored: set[str], is_streamed: bool
) -> None:
    provider = family()
    async with FakeUpstream(answer=provider) as upstream:
        teams = teams_at(tmp_path, upstream, family)
        async with serve(tmp_path, teams=teams) as served:
            first = await ask(served, is_streamed=is_streamed, **PARAMETERS)
            learned = lasting(provider)
            second = await ask(served, is_streamed=is_streamed, **PARAMETERS)
            without = await ask(served, is_streamed=is_streamed)
        last = upstream.requests[-1].body

    assert first == (ANSWER, ignored)
    assert second == (ANSWER, ignored)
    assert without == (ANSWER, ignored & {"messages.name"})
    assert lasting(provider) == learned, "learned once"
    assert not last.keys() & PARAMETERS.keys()


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("family", "ignored"), FAMILIES)
async def test_structured_answers_of_teams_with_tools(
    tmp_path: Path, family: Family, ignored: set[str], is_streamed: bool
) -> None:
    provider = family()
    async with (
        FakeUpstream(answer=provider) as upstream,
        serve(tmp_path, teams=teams_at(tmp_path, upstream, family)) as served,
    ):
        text, _ = await ask(served, is_streamed=is_streamed, response_format=FORM)
        again, _ = await ask(served, is_streamed=is_streamed, response_format=FORM)

    assert (json.loads(text), json.loads(again)) == (STRUCTURED, STRUCTURED)
    assert provider.rejections.count("form") == (1 if family in (Groq, Gemini3) else 0)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("family", "ignored"), FAMILIES)
async def test_conversations_of_many_shapes(
    tmp_path: Path, family: Family, ignored: set[str], is_streamed: bool
) -> None:
    """Client tools without properties, a result that is missing, an empty answer, and a last assistant message."""
    provider = family((("clock", {}),))
    clock = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    async with (
        FakeUpstream(answer=provider) as upstream,
        serve(tmp_path, teams=teams_at(tmp_path, upstream, family)) as served,
    ):
        caller = Caller(served)
        requested = [user("What time is it?")]
        message = (await caller.completion(requested, tools=[clock])).choices[0].message
        assert message.tool_calls
        reported = [*requested, assistant("", tool_calls=message.model_dump()["tool_calls"])]
        reported.append(result(message.tool_calls[0].id, "noon"))
        answer, _ = await ask(served, is_streamed=is_streamed, messages=reported, tools=[clock])
        impatient = [*reported, user("Well?"), assistant(""), user("Hello?")]
        second, _ = await ask(served, is_streamed=is_streamed, messages=impatient, tools=[clock])
        open_end = [*reported, user("Well?"), assistant("It is")]
        third, _ = await ask(served, is_streamed=is_streamed, messages=open_end, tools=[clock])

    # Separated from the text that it continues.
    assert (answer, second, third) == (ANSWER, ANSWER, f" {ANSWER}")


EXPERT = """\
  expert_team:
    entry: triage
    agents:
      triage:
        instructions: You are triage.
        handoffs: [{to: expert, when: anything, tool: transfer_to_repairs}]
      expert:
        instructions: You are expert.
"""


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("family", "ignored"), FAMILIES)
async def test_the_last_agent_has_no_tools(
    tmp_path: Path, family: Family, ignored: set[str], is_streamed: bool
) -> None:
    provider = family(PLAN[:1])
    async with FakeUpstream(answer=provider) as upstream:
        teams = teams_at(tmp_path, upstream, family)
        teams.write_text(teams.read_text() + EXPERT)
        async with serve(tmp_path, teams=teams) as served:
            answer, _ = await ask(served, is_streamed=is_streamed, model="expert_team")
        last = upstream.requests[-1].body

    assert answer == ANSWER
    if family in (Bedrock, Anthropic):
        assert [tool["function"]["name"] for tool in last["tools"]] == ["transfer_to_repairs"]
    if family is Anthropic:
        assert last["tool_choice"] == "none"


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
async def test_strict_parameters_name_what_the_provider_rejects(tmp_path: Path, is_streamed: bool) -> None:
    provider = OpenAIReasoning()
    async with FakeUpstream(answer=provider) as upstream:
        teams = teams_at(tmp_path, upstream, OpenAIReasoning)
        async with serve(tmp_path, teams=teams, strict_parameters=True) as served:
            errors = []
            for _ in range(2):
                with pytest.raises(openai.BadRequestError) as caught:
                    await ask(served, is_streamed=is_streamed, seed=7)
                errors.append(caught.value)
            text, _ = await ask(served, is_streamed=is_streamed, max_tokens=300)

    # The first is an answer of the provider; the second is known before a turn begins.
    assert [error.param for error in errors] == ["seed", "seed"]
    assert [error.code for error in errors] == ["upstream_bad_request", "unsupported_parameter"]
    assert text == ANSWER
    assert provider.rejections.count("seed") == 1


async def test_a_rejected_value_of_one_caller_does_not_change_another_callers_request(tmp_path: Path) -> None:
    provider = OpenAIReasoning()
    async with FakeUpstream(answer=provider) as upstream:
        async with serve(tmp_path, teams=teams_at(tmp_path, upstream, OpenAIReasoning)) as served:
            minimal = await ask(served, is_streamed=False, reasoning_effort="minimal")
            high = await ask(served, is_streamed=False, reasoning_effort="high")
        efforts = [request.body.get("reasoning_effort") for request in upstream.requests[-3:]]

    assert minimal == (ANSWER, {"reasoning_effort"})
    assert high == (ANSWER, set())
    assert efforts == ["high"] * 3


async def test_an_echoed_request_does_not_change_another_callers_request(tmp_path: Path) -> None:
    async with FakeUpstream(answer=Vllm()) as upstream:
        async with serve(tmp_path, teams=teams_at(tmp_path, upstream, Vllm)) as served:
            echoed = [user("Why is stream_options, and service_tier, in there? temperature too")]
            first = await ask(served, is_streamed=False, messages=echoed, service_tier="flex")
            second = await ask(served, is_streamed=False, temperature=0.5)
        last = upstream.requests[-1].body

    assert first == (ANSWER, {"service_tier"})
    assert second == (ANSWER, set())
    assert last["stream_options"] == {"include_usage": True}
    assert last["temperature"] == 0.5


async def test_a_wrong_value_is_the_callers_error_and_named(tmp_path: Path) -> None:
    class Bounded(StrictProvider):
        def problems(self, body: Any) -> Any:
            if body.get("temperature", 0) > 1:
                detail = {"type": "less_than_equal", "loc": ["body", "temperature"], "msg": "at most 1"}
                from tests.fakes.upstream import error

                yield "temperature", error(422, {"detail": [detail]})

    provider = Bounded()
    async with FakeUpstream(answer=provider) as upstream:
        async with serve(tmp_path, teams=teams_at(tmp_path, upstream, Bounded)) as served:
            with pytest.raises(openai.BadRequestError) as caught:
                await ask(served, is_streamed=False, temperature=1.5)
            good = await ask(served, is_streamed=False, temperature=0.5)
        last = upstream.requests[-1].body

    assert (caught.value.param, caught.value.code) == ("temperature", "upstream_bad_request")
    assert good == (ANSWER, set())
    assert last["temperature"] == 0.5
    assert provider.rejections == ["temperature"]


async def test_names_of_the_responses_api_are_used_there(tmp_path: Path) -> None:
    async with (
        FakeUpstream(answer=OpenAIReasoning()) as upstream,
        serve(tmp_path, teams=teams_at(tmp_path, upstream, OpenAIReasoning)) as served,
    ):
        create = served.client().responses.with_raw_response.create
        answer = await create(
            model="shop", input="It broke", reasoning={"effort": "minimal"}, temperature=0.1
        )

    assert answer.parse().output_text == ANSWER
    assert ignored_of(answer.headers) >= {"reasoning.effort", "temperature"}


async def test_client_tools_of_a_stored_conversation_keep_their_ids(tmp_path: Path) -> None:
    provider = Mistral((("transfer_to_repairs", {}), ("weather", {"city": "Bonn"})))
    async with FakeUpstream(answer=provider) as upstream:
        async with serve(tmp_path, teams=teams_at(tmp_path, upstream, Mistral)) as served:
            caller = Caller(served)
            requested = [user("Is it wet?")]
            message = (await caller.completion(requested, tools=[WEATHER])).choices[0].message
            assert message.tool_calls
            call_id = message.tool_calls[0].id
            answer = await caller.ask(
                [*requested, message.model_dump(), result(call_id, "rain")], tools=[WEATHER]
            )
        sent = upstream.requests[-1].body["messages"]

    assert call_id.startswith("call_")
    assert answer == ANSWER
    created = [call["id"] for one in sent for call in one.get("tool_calls") or ()]
    assert created == [one["tool_call_id"] for one in sent if one["role"] == "tool"]
    assert {len(one) for one in created} == {9}


async def test_unknown_members_that_the_provider_rejects_are_sent_once(tmp_path: Path) -> None:
    provider = Talkative()
    async with (
        FakeUpstream(answer=provider) as upstream,
        serve(tmp_path, upstream.base_url) as served,
    ):
        first = await ask(served, is_streamed=False)
        second = await ask(served, is_streamed=True)

    assert (first[0], second[0]) == (ANSWER, ANSWER)
    assert provider.rejections == ["member vendor_host"], "learned once"
