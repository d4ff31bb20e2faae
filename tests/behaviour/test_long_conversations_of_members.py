"""External agents that get the whole conversation get a shortened one when it outgrows their context window."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.fakes.providers.windowed import WindowedProvider, calls_of, prompt_text, says
from tests.fakes.upstream import FakeUpstream
from tests.server import Served, serve

TEXT = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt " * 16
HEADING = "Summary of the earlier part of this conversation"
TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k, context_window: 100000}}
  writer: {{model: writer-model, base_url: "{upstream}", api_key: k, context_window: 1000000}}
teams:
  desk:
    entry: triage
    side_model: writer
    {settings}
    agents:
      triage:
        instructions: You are triage.
        tools: [look_up_item]
        handoffs: [{{to: expert}}]
      expert:
        remote: {{base_url: "{upstream}", model: far-model{window}}}
        handoffs: [{{to: triage}}]
  far:
    side_model: writer
    {settings}
    remote: {{base_url: "{upstream}", model: far-model{window}}}
  code: {{python: "long_member:run", side_model: writer, {settings}{window}}}
"""
MEMBER = """\
from proxy.errors import ContextLengthExceeded

WINDOW = 4000
SEEN = []


async def run(messages, context):
    size = sum(len(str(message.content)) for message in messages) // 4
    SEEN.append([str(message.content) for message in messages])
    if size > WINDOW:
        raise ContextLengthExceeded(window=WINDOW, tokens=size)
    context.state = (context.state or 0) + 1
    yield f"Answer {context.state}."
"""


@asynccontextmanager
async def servers(
    folder: Path, provider: WindowedProvider, *, window: int | None, settings: str = "compaction: true"
) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    async with FakeUpstream(answer=provider) as upstream:
        known = "" if window is None else f", context_window: {window}"
        (folder / "team.yaml").write_text(
            TEAM.format(upstream=upstream.base_url, window=known, settings=settings)
        )
        (folder / "long_member.py").write_text(MEMBER)
        async with serve(folder, teams=folder / "team.yaml") as served:
            yield served, upstream


async def converse(caller: Caller, turns: int, model: str, messages: list[Any] | None = None) -> list[Any]:
    messages = messages if messages is not None else []
    for _ in range(turns):
        number = len(messages) // 2
        messages.append(user(f"fact-{number}-x message {number}: {TEXT}"))
        messages.append(assistant(await caller.ask(messages, model=model)))
    return messages


@pytest.mark.parametrize("window", [4000, None], ids=["known window", "learned window"])
async def test_a_remote_agent_continues_with_a_summary(tmp_path: Path, window: int | None) -> None:
    provider = WindowedProvider(4000)
    async with servers(tmp_path, provider, window=window) as (served, _):
        caller = Caller(served)
        messages = await converse(caller, 16, "far")
        visible: Any = await caller.client.get(
            f"/conversations/{caller.conversation}/items?limit=100", cast_to=object
        )

    assert len(provider.rejected) == (0 if window else 1)
    assert not provider.violations
    assert 1 <= len(provider.summaries) <= 5
    last = prompt_text(provider.accepted[-1])
    assert HEADING in last
    assert all(f"fact-{number}-x" in last for number in range(16))
    assert len(messages) == 32
    assert len([one for one in visible["data"] if one["type"] == "message"]) == 32


async def test_a_restart_continues_behind_the_summary(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with servers(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        while not provider.summaries:
            await converse(caller, 1, "far", messages)
    async with servers(tmp_path, provider, window=4000) as (served, _):
        await converse(Caller(served), 1, "far", messages)

    assert len(provider.summaries) == 1
    assert HEADING in prompt_text(provider.accepted[-1])


async def test_other_agents_of_the_team_see_the_whole_conversation(tmp_path: Path) -> None:
    """A compaction for one agent is not one for an agent with a larger window."""
    provider = WindowedProvider(100_000)
    async with servers(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        provider.then(calls_of(("transfer_to_expert", {})))
        messages = await converse(caller, 16, "desk")
        assert HEADING in prompt_text(provider.accepted[-1])
        provider.then(calls_of(("transfer_to_triage", {})), says("Triage again."))
        messages.append(user("And now?"))
        answer = await caller.ask(messages, model="desk")

    assert answer == "Triage again."
    last = provider.accepted[-1]["messages"]
    assert last[0]["content"].startswith("You are triage.")
    assert HEADING not in json.dumps(last)
    assert json.dumps(last).count("lorem ipsum") == 16 * 16


async def test_hidden_tool_results_of_others_do_not_count(tmp_path: Path) -> None:
    """The endpoint does not get them."""
    provider = WindowedProvider(100_000)
    async with servers(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        for _ in range(20):
            provider.then(calls_of(("look_up_item", {"search_query": "rocket " * 300})))
        provider.then(calls_of(("transfer_to_expert", {})), says("Hello."))
        answer = await caller.ask([user("Find a rocket.")], model="desk", max_tokens=100)

    assert answer == "Hello."
    assert not provider.summaries


async def test_without_compaction_the_error_says_what_to_do(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with servers(tmp_path, provider, window=None, settings="compaction: false") as (served, _):
        caller = Caller(served)
        with pytest.raises(openai.BadRequestError) as rejected:
            await converse(caller, 16, "far")

    assert rejected.value.code == "context_length_exceeded"
    assert "Start a new conversation" in str(rejected.value)


async def test_one_message_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with servers(tmp_path, provider, window=4000) as (served, _):
        with pytest.raises(openai.BadRequestError) as rejected:
            await Caller(served).ask([user(TEXT * 20)], model="far")

    assert rejected.value.code == "context_length_exceeded"


async def test_the_result_of_a_client_tool_finds_its_call_after_a_compaction(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with servers(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        while not provider.summaries:
            await converse(caller, 1, "far", messages)
        provider.then(calls_of(("weather", {"city": "Bonn"})), says("Rain."))
        messages.append(user(f"Weather? {TEXT * 4}"))
        called = await caller.completion(messages, model="far", tools=[WEATHER])
        [call] = called.choices[0].message.tool_calls or []
        messages += [called.choices[0].message.model_dump(exclude_none=True), result(call.id, "wet")]
        answer = await caller.ask(messages, model="far", tools=[WEATHER])

    assert answer == "Rain."
    assert not provider.violations
    assert not provider.rejected
    assert HEADING in prompt_text(provider.accepted[-1])


@pytest.mark.parametrize("window", [4000, None], ids=["known window", "learned window"])
async def test_a_python_function_gets_a_shortened_list(tmp_path: Path, window: int | None) -> None:
    """It keeps its state; without a known window, it is run again after it reports the overflow."""
    provider = WindowedProvider(4000)
    async with servers(tmp_path, provider, window=window) as (served, _):
        messages = await converse(Caller(served), 16, "code")

    assert messages[-1]["content"] == "Answer 16."
    assert 1 <= len(provider.summaries) <= 5


async def test_the_size_of_the_next_call_is_that_of_the_shortened_list(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with servers(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        answer = await caller.client.responses.create(model="far", input=f"First. {TEXT}")
        for _ in range(15):
            answer = await caller.client.responses.create(
                model="far", input=f"More. {TEXT}", previous_response_id=answer.id
            )
        counted = await caller.client.responses.input_tokens.count(
            model="far", input="And?", previous_response_id=answer.id
        )

    assert provider.summaries
    assert 500 < counted.input_tokens < 4000
