"""Teams of frameworks as one agent: their handoffs are nested events in the extension and the event feed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.chat_client import Caller, user
from tests.behaviour.frameworks import (  # noqa: F401
    EXAMPLES,
    FRAMEWORK_MARKS,
    framework,
    only,
    provider_of_frameworks,
    unclosed_clients,
    upstream_of_frameworks,
)
from tests.fakes.upstream import FakeUpstream, Reply, calls, text
from tests.server import serve

pytestmark = FRAMEWORK_MARKS

SWARM = """\
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import TextMessageTermination
from autogen_agentchat.teams import Swarm
from autogen_ext.models.openai import OpenAIChatCompletionClient


def team():
    model = OpenAIChatCompletionClient(model="gpt-5-mini")
    first = AssistantAgent("first", model, system_message="You are first.", handoffs=["second"])
    second = AssistantAgent("second", model, system_message="You are second.")
    return Swarm([first, second], termination_condition=TextMessageTermination("second"))
"""
SDK = """\
from agents import Agent, OpenAIChatCompletionsModel
from openai import AsyncOpenAI


def team():
    model = OpenAIChatCompletionsModel("gpt-5-mini", AsyncOpenAI())
    second = Agent(name="second", instructions="You are second.", model=model)
    return Agent(name="first", instructions="You are first.", model=model, handoffs=[second])
"""
GRAPH = """\
from typing import Annotated, Any

from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState
from langgraph.types import Command


@tool
def transfer_to_second(call_id: Annotated[str, InjectedToolCallId], state: Annotated[Any, InjectedState]) -> Command:
    "Hand over to the second agent."
    messages = [*state["messages"], ToolMessage("transferred", tool_call_id=call_id)]
    return Command(goto="second", graph=Command.PARENT, update={"messages": messages})


def team():
    model = ChatOpenAI(model="gpt-5-mini", stream_usage=True)
    first = create_agent(model, tools=[transfer_to_second], system_prompt="You are first.", name="first")
    second = create_agent(model, tools=[], system_prompt="You are second.", name="second")
    graph = StateGraph(MessagesState)
    graph.add_node(first, destinations=("second",))
    graph.add_node(second)
    graph.add_edge(START, "first")
    return graph.compile()
"""
TOOL_AGENT = """\
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

inner = create_agent(ChatOpenAI(model="gpt-5-mini"), tools=[], system_prompt="You are inner.", name="inner")


@tool
async def ask(question: str) -> str:
    "Ask the inner agent."
    found = await inner.ainvoke({"messages": [("user", question)]})
    return found["messages"][-1].content


outer = create_agent(ChatOpenAI(model="gpt-5-mini"), tools=[ask], system_prompt="You are outer.", name="outer")
"""
TEAMS = {"agentchat": SWARM, "openai-agents": SDK, "langgraph": GRAPH}
CUT = {"pydantic-ai", "langgraph", "agent-framework"}
"""Frameworks whose events have the finish reason of the model."""


async def streamed(caller: Caller, model: str) -> tuple[str, str, list[dict[str, Any]], str]:
    """Return the text, the reasoning, the events and the turn id of an answer."""
    stream = await caller.client.chat.completions.create(
        model=model, messages=[user("Hi")], stream=True, extra_headers={"X-Handoff-Events": "all"}
    )
    content, reasoning, events, turn_id = "", "", [], ""
    async for chunk in stream:
        turn_id = chunk.id
        events.append((chunk.model_extra or {}).get("handoff") or {})
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
    return content, reasoning, events, turn_id


@pytest.mark.parametrize("name", [framework(name) for name in TEAMS])
async def test_a_handoff_inside_is_a_nested_event(name: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    folder = tmp_path / "team"
    folder.mkdir()
    module = f"inner_{name.replace('-', '_')}"
    (folder / f"{module}.py").write_text(TEAMS[name])
    (folder / "team.yaml").write_text(f'teams: {{pair: {{python: "{module}:team"}}}}')
    upstream.reply(calls(("transfer_to_second", {})), text("From the second."))

    async with serve(tmp_path, teams=folder) as served:
        caller = Caller(served)
        content, reasoning, events, turn_id = await streamed(caller, "pair")
        feed = await caller.client.get(f"/turns/{turn_id}/events", cast_to=str)

    assert content == "From the second."
    nested = [event["event"] for event in events if event.get("type") == "member.event"]
    assert {event["agent"] for event in events if event.get("type") == "member.event"} == {"pair"}
    kinds = [(event["type"], event["agent"]) for event in nested]
    assert kinds == [("handoff", "first"), ("agent.speaking", "second")]
    assert (nested[0]["from"], nested[0]["to"]) == ("first", "second")
    assert reasoning.count("first hands over to second") == 1
    frames = [json.loads(line[6:]) for line in feed.splitlines() if line.startswith("data: ")]
    inner = [frame["data"]["event"] for frame in frames if frame["type"] == "member.event"]
    assert [(one["type"], one["agent"]) for one in inner] == kinds


@only("langgraph")
async def test_text_of_an_agent_inside_of_a_tool_is_not_part_of_the_answer(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    folder = tmp_path / "team"
    folder.mkdir()
    (folder / "tool_agent.py").write_text(TOOL_AGENT)
    (folder / "team.yaml").write_text('teams: {outer: {python: "tool_agent:outer"}}')
    upstream.reply(calls(("ask", {"question": "Why?"})), text("Because.", finish="length"), text("It is so."))

    async with serve(tmp_path, teams=folder) as served:
        content, reasoning, events, _ = await streamed(Caller(served), "outer")

    assert content == "It is so."
    assert "Because." in reasoning
    assert not [event for event in events if event.get("type") == "member.event"]


@pytest.mark.parametrize(
    ("reply", "finish_reason"),
    [
        (text("Bonn has many", finish="length"), "length"),
        (text("Bonn has many", finish="content_filter"), "content_filter"),
        # The stream ends without a finish reason.
        (text("Bonn has many").end(after=3), "length"),
        (text("Bonn has many"), "stop"),
    ],
    ids=["length", "content_filter", "cut", "complete"],
)
@pytest.mark.parametrize("name", [framework(name) for name in sorted(CUT)])
async def test_an_incomplete_answer_is_reported(
    name: str, reply: Reply, finish_reason: str, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_expert", {})), reply)
    async with serve(tmp_path, teams=EXAMPLES / f"{name}-agent") as served:
        answer = await Caller(served).completion([user("Bonn?")], model="cities")

    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == (finish_reason, "Bonn has many")
