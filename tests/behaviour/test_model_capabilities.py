"""What a team's models cannot do: named where it changes little, refused where it would change the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.chat_client import WEATHER
from tests.behaviour.raw_http import HELLO, Wire
from tests.behaviour.test_request_parameters import PIXEL, SCHEMA
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

TEAM = """\
models:
  default: {{model: plain, base_url: "{upstream}", api_key: k}}
  component:
    provider: autogen_ext.models.openai.OpenAIChatCompletionClient
    config: {{model: gpt-5-mini, base_url: "{upstream}", api_key: k}}
  demo: {{demo: true}}
  replay: {{provider: autogen_ext.models.replay.ReplayChatCompletionClient, config: {{chat_completions: [Hi]}}}}
teams:
  shop:
    entry: clerk
    side_model: default
    agents:
      clerk: {{instructions: You are the clerk., model: MODEL, fallbacks: FALLBACKS}}
"""


def serving(folder: Path, upstream: FakeUpstream, model: str, fallbacks: str = "[]") -> Any:
    teams = folder / "teams.yaml"
    teams.write_text(
        TEAM.format(upstream=upstream.base_url).replace("MODEL", model).replace("FALLBACKS", fallbacks)
    )
    return serve(folder, teams=teams)


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]
SOUND = [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}]
BEHIND = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": [*SOUND]}]
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a schema": ("replay", {"response_format": SCHEMA}, "response_format", "unsupported_parameter"),
    "json": ("replay", {"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    "logprobs": ("demo", {"logprobs": True}, "logprobs", "unsupported_parameter"),
    "an image": ("demo", {"messages": IMAGE}, "messages[0].content[0].type", "unsupported_value"),
    "logprobs of a component": ("component", {"logprobs": True}, "logprobs", "unsupported_parameter"),
    "a sound for a component": (
        "component", {"messages": BEHIND}, "messages[2].content[0].type", "unsupported_value",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
async def test_what_would_change_the_answer_is_refused_before_anything_happens(
    tmp_path: Path, upstream: FakeUpstream, what: str
) -> None:
    model, fields, param, code = REFUSED[what]
    async with serving(tmp_path, upstream, model) as served, Wire(served) as wire:
        refused = await wire.ask(**fields)

    assert refused.status_code == 400, refused.text
    reported = refused.json()["error"]
    assert (reported["type"], reported["param"], reported["code"]) == ("invalid_request_error", param, code)
    assert not upstream.requests


async def test_a_fallback_that_cannot_do_it_counts_too(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serving(tmp_path, upstream, "default", "[component]") as served, Wire(served) as wire:
        refused = await wire.ask(logprobs=True)

    assert refused.json()["error"]["param"] == "logprobs"


async def test_what_has_no_effect_is_named(tmp_path: Path, upstream: FakeUpstream) -> None:
    parameters: dict[str, Any] = {"temperature": 0.5, "seed": 1, "max_tokens": 3, "stop": "x", "top_k": 1}
    async with serving(tmp_path, upstream, "demo") as served, Wire(served) as wire:
        answer = await wire.ask(
            **parameters, tools=[WEATHER], tool_choice="required", safety_identifier="ann"
        )

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ignored-parameters"] == "top_k, temperature, seed, tool_choice"


async def test_a_component_is_called_with_all_that_it_supports(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text('{"ok": true}'))
    parameters: dict[str, Any] = {"temperature": 0.5, "response_format": SCHEMA, "reasoning_effort": "low"}
    async with serving(tmp_path, upstream, "component") as served, Wire(served) as wire:
        answer = await wire.ask(**parameters, safety_identifier="ann")

    assert answer.status_code == 200, answer.text
    assert "x-ignored-parameters" not in answer.headers
    sent = upstream.requests[0].body
    assert {name: sent[name] for name in parameters} == parameters
    assert "safety_identifier" not in sent


# --- a prediction goes with calls that have no tools, since the official API refuses the two together ---

PREDICTION = {"type": "content", "content": [{"type": "text", "text": "Hello you"}]}


async def test_a_prediction_reaches_an_agent_without_tools(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello you"), text("Hello you"))
    async with serving(tmp_path, upstream, "default") as served, Wire(served) as wire:
        heeded = await wire.ask(prediction=PREDICTION)
        check_parameters = await wire.ask(prediction=PREDICTION, tools=[WEATHER])

    assert "x-ignored-parameters" not in heeded.headers
    assert check_parameters.headers["x-ignored-parameters"] == "prediction"
    assert upstream.requests[0].body["prediction"] == PREDICTION
    assert "prediction" not in upstream.requests[1].body


async def test_a_prediction_for_agents_with_tools_is_ignored(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello you"))
    async with Wire(served) as wire:
        answer = await wire.ask(prediction=PREDICTION)

    assert answer.headers["x-ignored-parameters"] == "prediction"
    assert "prediction" not in upstream.requests[0].body


# --- the side model of the team ---


async def test_a_side_request_may_want_its_title_as_a_call(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"})))
    forced = {"type": "function", "function": {"name": "weather"}}
    async with Wire(served) as wire:
        completion = await wire.completion(model="shop/side", tools=[WEATHER], tool_choice=forced)

    call = (completion.choices[0].message.tool_calls or [])[0]
    assert completion.choices[0].finish_reason == "tool_calls"
    assert call.model_dump()["function"] == {"name": "weather", "arguments": '{"city": "Bonn"}'}
    assert upstream.requests[0].body["tool_choice"] == forced


async def test_the_form_of_a_side_answer_is_held_as_well(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text('{"ok": true}'), text("no JSON"))
    async with Wire(served) as wire:
        good = await wire.ask(model="shop/side", response_format=SCHEMA)
        bad = await wire.ask(model="shop/side", response_format=SCHEMA)

    assert good.json()["choices"][0]["message"]["content"] == '{"ok": true}'
    assert (bad.status_code, bad.json()["error"]["code"]) == (502, "response_format_not_met")
