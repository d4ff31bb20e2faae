"""Agents of other frameworks next to an agent with a model: one behaviour, with the packages of each framework."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.behaviour.frameworks import (  # noqa: F401
    EXAMPLES,
    FRAMEWORK_MARKS,
    PACKAGES,
    framework,
    only,
    provider_of_frameworks,
    texts,
    unclosed_clients,
    upstream_of_frameworks,
)
from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.server import Served, serve

pytestmark = FRAMEWORK_MARKS

Serve = Callable[..., AbstractAsyncContextManager[Caller]]


@pytest.fixture(params=[framework(name) for name in PACKAGES])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served_by(tmp_path: Path, upstream: FakeUpstream) -> Callable[[str], AbstractAsyncContextManager[Served]]:
    """Serve the example of a framework; several times in the same data folder."""

    @asynccontextmanager
    async def start(framework: str) -> AsyncIterator[Served]:
        async with serve(tmp_path, teams=EXAMPLES / f"{framework}-agent") as started:
            yield started

    return start


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk"
    "+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
AT_ONCE = {"X-On-Disconnect": "cancel"}
TO_EXPERT = calls(("transfer_to_expert", {"reason": "about Bonn"}))
LOOKS_UP = calls(("population", {"city": "Bonn"}))


async def test_text_and_tool_events_come_through(name: str, served_by: Any, upstream: FakeUpstream) -> None:
    upstream.reply(TO_EXPERT, LOOKS_UP, text("Bonn has 330,000 people."))
    async with served_by(name) as served:
        stream = await served.client().chat.completions.create(
            model="cities",
            messages=[user("How many people live in Bonn?")],
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"X-Handoff-Events": "extension"},
        )
        content, events, usage = [], [], None
        async for chunk in stream:
            events.append((chunk.model_extra or {}).get("handoff") or {})
            content += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            usage = chunk.usage or usage

    assert "".join(content) == "Bonn has 330,000 people."
    assert len(content) > 1
    types = [event.get("type") for event in events]
    assert [one for one in types if one in ("handoff", "tool.started", "tool.completed")] == [
        "handoff",
        "tool.started",
        "tool.completed",
    ]
    started = next(event for event in events if event.get("type") == "tool.started")
    ended = next(event for event in events if event.get("type") == "tool.completed")
    assert (started["agent"], started["name"]) == ("Expert", "population")
    assert re.sub(r"\s", "", started["arguments"]) == '{"city":"Bonn"}'
    assert "330,000" in ended["result"]
    assert usage is not None
    assert usage.completion_tokens == 3 * 7
    assert any("You are an expert for cities." in line for line in texts(upstream))


async def test_the_framework_remembers_after_a_restart_and_hands_over_back(
    name: str, served_by: Any, upstream: FakeUpstream
) -> None:
    messages = [user("How many people live in Bonn?")]
    async with served_by(name) as served:
        upstream.reply(TO_EXPERT, LOOKS_UP, text("330,000."))
        messages += [assistant(await Caller(served).ask(messages, model="cities")), user("Sure?")]
    async with served_by(name) as served:
        caller = Caller(served)
        upstream.reply(text("Yes."), calls(("transfer_to_desk", {"reason": "smalltalk"})), text("Hello!"))
        messages += [assistant(await caller.ask(messages, model="cities")), user("Hi!")]
        remembered = texts(upstream)
        messages += [assistant(await caller.ask(messages, model="cities")), user("And Berlin?")]
        of_desk = texts(upstream)
        upstream.reply(TO_EXPERT, text("More."))
        last = await caller.ask(messages, model="cities")
        again = texts(upstream)

    assert [one["content"] for one in messages if one["role"] == "assistant"] == [
        "330,000.",
        "Yes.",
        "Hello!",
    ]
    assert last == "More."
    assert "assistant: population" in remembered
    assert "tool: 330,000" in remembered
    assert remembered[-2:] == ["assistant: 330,000.", "user: Sure?"]
    assert of_desk[0] == "system: You are the desk. Hand over questions about cities without announcing it."
    assert of_desk[-1].startswith("tool: You are Desk")
    assert "assistant: population" in again
    assert any(line.endswith(": Hello!") for line in again)
    assert again[-1] == "user: And Berlin?"


async def test_a_cancelled_turn_cancels_the_call_of_the_framework(
    name: str, served_by: Any, upstream: FakeUpstream
) -> None:
    upstream.reply(TO_EXPERT, text("One two").hang(after=2))
    async with served_by(name) as served:
        stream = await served.client().chat.completions.create(
            model="cities", messages=[user("Bonn?")], stream=True, extra_headers=AT_ONCE
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        await stream.close()
        request = await upstream.received(2)
        await request.closed()


async def test_a_failure_of_the_framework_is_a_typed_error(
    name: str, served_by: Any, upstream: FakeUpstream
) -> None:
    upstream.reply(TO_EXPERT, *[error(401)] * 4)
    async with served_by(name) as served:
        with pytest.raises(openai.APIStatusError) as failed:
            await Caller(served).ask([user("Bonn?")], model="cities")

    assert failed.value.code == "agent_failed"
    assert "key" not in failed.value.message


async def test_images_reach_the_framework(name: str, served_by: Any, upstream: FakeUpstream) -> None:
    upstream.reply(TO_EXPERT, text("A city."))
    image = {"type": "image_url", "image_url": {"url": PIXEL}}
    async with served_by(name) as served:
        await Caller(served).ask([user([{"type": "text", "text": "What is it?"}, image])], model="cities")

    assert "user: What is it?<image_url>" in "".join(texts(upstream)).replace("?user: ", "?")


@pytest.mark.parametrize(
    "tools", [framework(name) for name in ("pydantic-ai", "openai-agents", "agent-framework")]
)
async def test_tools_of_the_client_are_tools_of_the_framework(
    tools: str, served_by: Any, upstream: FakeUpstream
) -> None:
    upstream.reply(TO_EXPERT, LOOKS_UP, calls(("weather", {"city": "Bonn"})), text("330,000 and rain."))
    messages = [user("Bonn?")]
    async with served_by(tools) as served:
        first = await Caller(served).completion(messages, model="cities", tools=[WEATHER])
        [call] = first.choices[0].message.tool_calls or []
        messages += [first.choices[0].message.model_dump(exclude_none=True), result(call.id, "wet")]
    async with served_by(tools) as served:
        answer = await Caller(served).ask(messages, model="cities", tools=[WEATHER])

    assert answer == "330,000 and rain."
    assert texts(upstream)[-4:] == [
        "assistant: population",
        "tool: 330,000",
        "assistant: weather",
        "tool: wet",
    ]


@pytest.mark.parametrize(
    "name",
    [framework(name) for name in ("pydantic-ai", "openai-agents", "agent-framework", "langgraph")],
    indirect=True,
)
async def test_the_limit_of_model_calls_ends_a_loop_of_tool_calls(
    name: str, served_by: Any, upstream: FakeUpstream
) -> None:
    upstream.reply(TO_EXPERT, *[LOOKS_UP] * 40)
    async with served_by(name) as served:
        answer = await Caller(served).completion([user("Bonn?")], model="cities")

    assert answer.choices[0].finish_reason == "length"
    # The one of the desk, and possibly one that had begun.
    assert 25 <= len(upstream.requests) <= 26
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 25 * 7


async def test_a_hanging_model_of_the_framework_does_not_outlive_the_turn(
    name: str, served_by: Any, upstream: FakeUpstream
) -> None:
    upstream.reply(TO_EXPERT, hang())
    async with served_by(name) as served:
        requested = asyncio.create_task(Caller(served).ask([user("Bonn?")], model="cities", headers=AT_ONCE))
        request = await upstream.received(2)
        requested.cancel()
        await request.closed()
        await asyncio.gather(requested, return_exceptions=True)


THREE = """\
teams:
  cities:
    entry: Desk
    agents:
      Desk:
        instructions: You are the desk.
        handoffs: [{to: Pydantic}, {to: Graph}, {to: Sdk}]
      Pydantic:
        python: pydantic_ai_expert:expert
        handoffs: [{to: Desk}, {to: Sdk}]
      Graph:
        python: langgraph_expert:expert
        handoffs: [{to: Desk}]
      Sdk:
        python: openai_agents_expert:expert
        handoffs: [{to: Desk}, {to: Graph}]
"""


@only("pydantic-ai", "openai-agents", "langgraph")
async def test_three_frameworks_work_in_one_team_on_two_workers(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "team.yaml").write_text(THREE)
    for file in EXAMPLES.glob("*-agent/*_expert.py"):
        (tmp_path / "team" / file.name).symlink_to(file)
    messages: list[Any] = []
    agents: list[str] = []

    async def ask(served: Served, content: str, *replies: Any) -> str:
        upstream.reply(*replies)
        messages.append(user(content))
        completion = await served.client().chat.completions.create(
            model="cities", messages=messages, extra_headers={"X-Handoff-Events": "extension", **AT_ONCE}
        )
        answer = completion.choices[0].message.content or ""
        messages.append(assistant(answer))
        agents.extend(completion.model_extra["handoff"]["agents"])  # type: ignore[index]
        return answer

    async with (
        serve(tmp_path, teams=tmp_path / "team") as one,
        serve(tmp_path, teams=tmp_path / "team") as two,
    ):
        await ask(one, "Bonn?", calls(("transfer_to_pydantic", {})), LOOKS_UP, text("330,000."))
        await ask(
            two, "In the SDK?", calls(("transfer_to_sdk", {"reason": "SDK"})), LOOKS_UP, text("As I said.")
        )
        of_sdk = texts(upstream)
        await ask(one, "As a graph?", calls(("transfer_to_graph", {})), LOOKS_UP, text("A graph."))
        await ask(
            two, "Bye", calls(("transfer_to_desk", {})), calls(("transfer_to_sdk", {})), text("Again me.")
        )
        again = texts(upstream)
        cancelled = asyncio.create_task(ask(one, "More?", hang()))
        request = await upstream.received(len(upstream.requests) + 1)
        cancelled.cancel()
        await request.closed()
        messages.pop()
        await asyncio.gather(cancelled, return_exceptions=True)
    async with serve(tmp_path, teams=tmp_path / "team") as three:
        last = await ask(three, "Still there?", text("Yes."))

    assert agents == [
        "Desk", "Pydantic", "Pydantic", "Sdk", "Sdk", "Graph", "Graph", "Desk", "Sdk", "Sdk",
    ]  # fmt: skip
    assert last == "Yes."
    # What another framework called is not part of the prompt; its answer is.
    assert of_sdk[2:] == [
        "user: Bonn?",
        "assistant: 330,000.",
        "user: In the SDK?",
        "assistant: population",
        "tool: 330,000",
    ]
    assert again[-5:] == [
        "user: As a graph?",
        "assistant: transfer_to_graph",
        "tool: transferred",
        "assistant: A graph.",
        "user: Bye",
    ]
    assert texts(upstream)[-1] == "user: Still there?"


@only("openai-agents")
async def test_handoffs_of_the_sdk_survive_a_restart(served_by: Any, upstream: FakeUpstream) -> None:
    upstream.reply(
        TO_EXPERT, calls(("transfer_to_historian", {})), text("Founded by Romans."), text("In 11 BC.")
    )
    messages = [user("Who founded Bonn?")]
    async with served_by("openai-agents") as served:
        messages += [assistant(await Caller(served).ask(messages, model="cities")), user("When?")]
    async with served_by("openai-agents") as served:
        answer = await Caller(served).ask(messages, model="cities")

    assert answer == "In 11 BC."
    assert texts(upstream)[0] == "system: You know the history of cities."
    # It has the handoffs of the team too.
    assert [tool["function"]["name"] for tool in upstream.requests[-1].body["tools"]] == ["transfer_to_desk"]


@only("openai-agents")
async def test_the_sdk_receives_parameters_and_a_schema(served_by: Any, upstream: FakeUpstream) -> None:
    upstream.reply(text('{"people": 3}'))
    schema = {"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    async with served_by("openai-agents") as served:
        caller = Caller(served)
        answer = await caller.ask(
            [user("Bonn?")], model="cities/Expert", response_format=form, temperature=0.5, seed=7
        )

    assert answer == '{"people": 3}'
    body = upstream.requests[0].body
    assert body["temperature"] == 0.5
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert caller.headers["x-ignored-parameters"] == "seed"


GRAPH = """\
from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt


async def ask(state, config):
    get_stream_writer()("thinking")
    name = interrupt("What is your name?")
    city = await config["configurable"]["member_context"].call_tool("where", {"name": name})
    return {"messages": [AIMessage(f"Hello {name} from {city}.")]}


graph = StateGraph(MessagesState).add_node(ask).add_edge(START, "ask").compile()
"""


@only("langgraph")
async def test_an_interrupted_graph_continues_with_the_next_message(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "interrupted_graph.py").write_text(GRAPH)
    (tmp_path / "team" / "team.yaml").write_text('teams: {greeter: {python: "interrupted_graph:graph"}}')
    where: Any = {"type": "function", "function": {"name": "where", "parameters": {"type": "object"}}}
    messages: list[Any] = [user("Hi")]
    for _ in range(2):
        async with serve(tmp_path, teams=tmp_path / "team") as served:
            caller = Caller(served)
            completion = await caller.completion(messages, model="greeter", tools=[where])
        message = completion.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if message.tool_calls:
            messages.append(result(message.tool_calls[0].id, "Bonn"))
        else:
            assert message.content == "What is your name?"
            messages.append(user("Anna"))
    async with serve(tmp_path, teams=tmp_path / "team") as served:
        assert await Caller(served).ask(messages, model="greeter", tools=[where]) == "Hello Anna from Bonn."


SWARM = """\
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import HandoffTermination, TextMessageTermination
from autogen_agentchat.teams import Swarm
from autogen_ext.models.openai import OpenAIChatCompletionClient

model = OpenAIChatCompletionClient(model="gpt-5-mini")
planner = AssistantAgent("planner", model, system_message="You plan.", handoffs=["writer"])
writer = AssistantAgent("writer", model, system_message="You write.", handoffs=["Desk"])
team = Swarm([planner, writer], termination_condition=HandoffTermination("Desk") | TextMessageTermination("writer"))
"""


@only("agentchat")
@pytest.mark.parametrize("form", ["object", "component"])
async def test_a_swarm_is_one_agent_of_a_team(form: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    folder = tmp_path / "team"
    folder.mkdir()
    if form == "object":
        (folder / "swarm_team.py").write_text(SWARM)
        reference = '{python: "swarm_team:team", handoffs: [{to: Desk}]}'
    else:
        names: dict[str, Any] = {}
        exec(SWARM, names)
        (folder / "studio.json").write_text(names["team"].dump_component().model_dump_json())
        reference = "{component: studio.json, handoffs: [{to: Desk}]}"
    (folder / "team.yaml").write_text(
        "teams: {desk: {entry: Desk, agents: {Desk: {instructions: You are the desk., handoffs: [{to: Swarm}]}, "
        f"Swarm: {reference}}}}}}}"
    )
    upstream.reply(
        calls(("transfer_to_swarm", {})),
        calls(("transfer_to_writer", {})),
        text("Written."),
        calls(("transfer_to_desk", {})),
        text("Desk."),
        calls(("transfer_to_swarm", {})),
        text("Again."),
    )
    messages = [user("Write")]
    answers = []
    for content in ("Thanks", "More", ""):
        async with serve(tmp_path, teams=folder) as served:
            answers.append(await Caller(served).ask(messages, model="desk"))
        messages += [assistant(answers[-1]), user(content)]

    assert answers == ["Written.", "Desk.", "Again."]
    assert texts(upstream)[0] == "system: You write."
    assert "user: Write" in texts(upstream)
    assert texts(upstream)[-1] == "user: More"


ASKING = """\
from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

counted = []


@tool
async def count(city: str) -> str:
    "Count the people of a city."
    counted.append(city)
    return "330,000"


@tool
async def look(city: str, config: RunnableConfig) -> str:
    "Look out of the window."
    return await config["configurable"]["member_context"].call_tool("weather", {"city": city})


agent = create_agent(ChatOpenAI(model="gpt-5-mini"), tools=[count, look], system_prompt="You look.")
"""


@only("langgraph")
async def test_a_graph_resumes_behind_a_call_of_the_client(tmp_path: Path, upstream: FakeUpstream) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "asking_graph.py").write_text(ASKING)
    (tmp_path / "team" / "team.yaml").write_text('teams: {looker: {python: "asking_graph:agent"}}')
    upstream.reply(calls(("count", {"city": "Bonn"}), ("look", {"city": "Bonn"})), text("Wet."), text("Yes."))
    messages = [user("Bonn?")]
    async with serve(tmp_path, teams=tmp_path / "team") as served:
        first = await Caller(served).completion(messages, model="looker", tools=[WEATHER])
    message: Any = first.choices[0].message
    messages += [message.model_dump(exclude_none=True), result(message.tool_calls[0].id, "rain")]
    async with serve(tmp_path, teams=tmp_path / "team") as served:
        caller = Caller(served)
        answer = await caller.ask(messages, model="looker", tools=[WEATHER])
        resumed = texts(upstream)
        messages += [assistant(answer), user("Sure?")]
        last = await caller.ask(messages, model="looker", tools=[WEATHER])

    assert (answer, last, len(upstream.requests)) == ("Wet.", "Yes.", 3)
    assert sys.modules["asking_graph"].counted == ["Bonn"]
    assert resumed == [
        "system: You look.", "user: Bonn?", "assistant: count,look", "tool: 330,000", "tool: rain",
    ]  # fmt: skip
    assert texts(upstream) == [*resumed, "assistant: Wet.", "user: Sure?"]


@pytest.mark.parametrize(
    "tools", [framework(name) for name in ("pydantic-ai", "openai-agents", "agent-framework")]
)
async def test_a_client_without_stored_conversations_gets_its_tool_called_once(
    tools: str, served_by: Any, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"})), text("Rain."))
    messages = [user("Bonn?")]
    async with served_by(tools) as served:
        caller = Caller(served)
        more: Any = {"model": "cities/Expert", "tools": [WEATHER], "store": False}
        first = await caller.completion(messages, **more)
        message: Any = first.choices[0].message
        messages += [message.model_dump(exclude_none=True), result(message.tool_calls[0].id, "wet")]
        answer = await caller.ask(messages, **more)

    assert answer == "Rain."
    assert texts(upstream)[-3:] == ["user: Bonn?", "assistant: weather", "tool: wet"]
