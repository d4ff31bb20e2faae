"""Approvals that agent frameworks ask for are approvals of the proxy, with the packages of each framework."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.behaviour.frameworks import (  # noqa: F401
    FRAMEWORK_MARKS,
    framework,
    only,
    provider_of_frameworks,
    texts,
    unclosed_clients,
    upstream_of_frameworks,
)
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.polling import until
from tests.server import Served, serve

pytestmark = FRAMEWORK_MARKS

TOOLS = """\
import asyncio

paid = []


def count(city: str) -> str:
    "Count the people of a city."
    return "330,000"


async def pay(amount: int) -> str:
    "Pay."
    paid.append(amount)
    if amount == 0:
        await asyncio.Event().wait()
    return f"paid {amount}"


"""
AGENTS = {
    "pydantic-ai": """\
from pydantic_ai import Agent, Tool
from pydantic_ai.models.openai import OpenAIChatModel

agent = Agent(
    OpenAIChatModel("gpt-5-mini"), instructions="You pay.", tools=[count, Tool(pay, requires_approval=True)]
)
""",
    "openai-agents": """\
from agents import Agent, OpenAIChatCompletionsModel, function_tool
from openai import AsyncOpenAI

agent = Agent(
    "Payer",
    instructions="You pay.",
    model=OpenAIChatCompletionsModel("gpt-5-mini", AsyncOpenAI()),
    tools=[function_tool(count), function_tool(pay, needs_approval=True)],
)
""",
    "agent-framework": """\
from agent_framework import Agent, tool
from agent_framework.openai import OpenAIChatCompletionClient

agent = Agent(
    OpenAIChatCompletionClient(model="gpt-5-mini"),
    instructions="You pay.",
    name="Payer",
    tools=[count, tool(pay, approval_mode="always_require")],
)
""",
    "langgraph": """\
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_openai import ChatOpenAI

agent = create_agent(
    ChatOpenAI(model="gpt-5-mini", stream_usage=True),
    tools=[count, pay],
    system_prompt="You pay.",
    middleware=[HumanInTheLoopMiddleware({"pay": True})],
)
""",
}
PAYS = calls(("pay", {"amount": 5}))
QUESTION = "pay(amount: 5)"


class Payer:
    """A team with one agent of a framework, served several times with the same data."""

    def __init__(self, name: str, folder: Path, upstream: FakeUpstream) -> None:
        self.upstream = upstream
        self._folder = folder
        self._module = f"payer_{name.replace('-', '_')}_{folder.name.replace('-', '_')}"
        team = folder / "team"
        team.mkdir()
        (team / f"{self._module}.py").write_text(TOOLS + AGENTS[name])
        (team / "team.yaml").write_text(f'teams:\n  payer: {{python: "{self._module}:agent"}}')

    def add_team(self, definition: str) -> None:
        """Add a team to the file; ``MEMBER`` is the agent."""
        with (self._folder / "team" / "team.yaml").open("a") as file:
            member = f'{{python: "{self._module}:agent"}}'
            file.write("\n  " + definition.replace("MEMBER", member))

    @property
    def paid(self) -> list[int]:
        found: list[int] = sys.modules[self._module].paid
        return found

    def serve(self) -> AbstractAsyncContextManager[Served]:
        return serve(self._folder, teams=self._folder / "team")

    async def ask(self, messages: list[Any], *replies: Any, **more: Any) -> str:
        """Ask a new server; its answer is appended to the messages."""
        self.upstream.reply(*replies)
        async with self.serve() as served:
            answer = await Caller(served).ask(messages, **{"model": "payer", **more})
        messages.append(assistant(answer))
        return answer

    @property
    def shown(self) -> list[str]:
        """The messages of the last request to the model, without instructions."""
        return [line for line in texts(self.upstream) if not line.startswith("system:")]


@pytest.fixture(params=[framework(name) for name in AGENTS])
def payer(request: pytest.FixtureRequest, tmp_path: Path, upstream: FakeUpstream) -> Payer:
    return Payer(request.param, tmp_path, upstream)


async def test_an_approved_call_is_executed_once_after_a_restart(payer: Payer) -> None:
    messages = [user("Pay 5")]
    question = await payer.ask(messages, PAYS)
    requested = len(payer.upstream.requests)
    messages.append(user("yes"))
    await payer.ask(messages, text("Done."))
    after = payer.shown
    regenerated = messages[:-1]
    await payer.ask(regenerated, text("All done."))
    again = payer.shown
    messages.append(user("Thanks"))
    last = await payer.ask(messages, text("Welcome."))

    assert QUESTION in question
    assert (requested, payer.paid) == (1, [5])
    assert messages[3] == assistant("Done.")
    assert after == ["user: Pay 5", "assistant: pay", "tool: paid 5"]
    # The same decision again gives the model the recorded result.
    assert again == after
    assert regenerated[-1] == assistant("All done.")
    assert last == "Welcome."
    assert payer.shown == [*after, "assistant: Done.", "user: Thanks"]


async def test_a_refused_call_is_not_executed(payer: Payer) -> None:
    messages = [user("Pay 5")]
    await payer.ask(messages, PAYS)
    messages.append(user("no"))
    answer = await payer.ask(messages, text("Then not."))

    assert (answer, payer.paid) == ("Then not.", [])
    assert payer.shown[:2] == ["user: Pay 5", "assistant: pay"]
    assert "not executed: the user refused this call" in payer.shown[2]
    assert len(payer.shown) == 3


async def test_a_call_is_approved_at_the_api(payer: Payer) -> None:
    payer.upstream.reply(PAYS, text("Done."))
    async with payer.serve() as served:
        caller = Caller(served)
        await caller.ask([user("Pay 5")], model="payer")
        listed: Any = await caller.client.get("/approvals", cast_to=object)
        [approval] = listed["data"]
        decided: Any = await caller.client.post(
            f"/approvals/{approval['id']}", body={"decision": "approve"}, cast_to=object
        )
        types = "tool.started,tool.completed,text.delta,turn.failed"
        path = f"/turns/{decided['resumed_turn_id']}/events?types={types}"
        events = (await caller.client.get(path, cast_to=httpx2.Response)).text

    assert (approval["tool"], payer.paid) == ("pay", [5])
    seen = [json.loads(line[6:])["type"] for line in events.splitlines() if line.startswith("data: {")]
    assert list(dict.fromkeys(seen)) == ["tool.started", "tool.completed", "text.delta"]


@pytest.mark.parametrize("payer", [framework(name) for name in AGENTS if name != "langgraph"], indirect=True)
async def test_other_calls_of_the_same_reply_are_executed_once(payer: Payer) -> None:
    payer.upstream.reply(
        calls(("count", {"city": "Bonn"}), ("pay", {"amount": 5}), ("weather", {"city": "Bonn"}))
    )
    messages = [user("Pay 5")]
    async with payer.serve() as served:
        first = await Caller(served).completion(messages, model="payer", tools=[WEATHER])
    message: Any = first.choices[0].message
    [call] = message.tool_calls
    messages += [message.model_dump(exclude_none=True), result(call.id, "wet")]
    question = await payer.ask(messages, tools=[WEATHER])
    messages.append(user("yes"))
    answer = await payer.ask(messages, text("Done."), tools=[WEATHER])

    assert call.function.name == "weather"
    assert QUESTION in question
    assert (answer, payer.paid) == ("Done.", [5])
    assert payer.shown[:2] == ["user: Pay 5", "assistant: count,pay,weather"]
    assert sorted(payer.shown[2:]) == ["tool: 330,000", "tool: paid 5", "tool: wet"]


async def test_a_conversation_continues_without_a_decision(payer: Payer) -> None:
    messages = [user("Pay 5")]
    question = await payer.ask(messages, PAYS)
    messages.append(user("What is the weather like?"))
    answer = await payer.ask(messages, text("Wet."))

    assert (answer, payer.paid) == ("Wet.", [])
    assert payer.shown[:2] == ["user: Pay 5", "assistant: pay"]
    assert payer.shown[2].startswith("tool: ")
    assert payer.shown[-1] == "user: What is the weather like?"
    assert question


async def test_the_same_call_again_is_a_new_question(payer: Payer) -> None:
    messages = [user("Pay 5 twice")]
    await payer.ask(messages, PAYS)
    messages.append(user("yes"))
    question = await payer.ask(messages, PAYS)
    between = list(payer.paid)
    messages.append(user("yes"))
    answer = await payer.ask(messages, text("Done."))

    assert QUESTION in question
    assert (between, payer.paid, answer) == ([5], [5, 5], "Done.")
    assert payer.shown == [
        "user: Pay 5 twice",
        "assistant: pay",
        "tool: paid 5",
        "assistant: pay",
        "tool: paid 5",
    ]


async def test_a_call_that_was_interrupted_is_not_executed_again(payer: Payer) -> None:
    messages = [user("Pay 0")]
    await payer.ask(messages, calls(("pay", {"amount": 0})))
    messages.append(user("yes"))
    async with payer.serve() as served:
        asked = asyncio.create_task(
            Caller(served).ask(messages, model="payer", headers={"X-On-Disconnect": "cancel"})
        )
        await until(lambda: payer.paid == [0], within=20)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    answer = await payer.ask(messages, text("I do not know."))

    assert (answer, payer.paid) == ("I do not know.", [0])
    assert "not known whether this call was executed" in payer.shown[-1]


async def test_a_delegate_asks_for_approval(payer: Payer) -> None:
    payer.add_team(
        "desk: {entry: Desk, agents: {Desk: {instructions: You delegate., delegates: [{to: Payer}]}, Payer: MEMBER}}"
    )
    messages = [user("Pay 5")]
    question = await payer.ask(messages, calls(("ask_payer", {"task": "Pay 5"})), PAYS, model="desk")
    messages.append(user("yes"))
    answer = await payer.ask(messages, text("Paid it."), text("Done."), model="desk")

    assert QUESTION in question
    assert (payer.paid, answer) == ([5], "Done.")
    assert texts(payer.upstream, -2)[-2:] == ["assistant: pay", "tool: paid 5"]
    assert payer.shown[-1] == "tool: Paid it."


NESTED = """\
from agents import Agent, OpenAIChatCompletionsModel, function_tool
from openai import AsyncOpenAI

model = OpenAIChatCompletionsModel("gpt-5-mini", AsyncOpenAI())
treasurer = Agent(
    "Treasurer", instructions="You pay.", model=model, tools=[function_tool(pay, needs_approval=True)]
)
agent = Agent(
    "Payer",
    instructions="You let the treasurer pay.",
    model=model,
    tools=[treasurer.as_tool("treasurer", "Pays."), function_tool(count)],
)
"""


@only("openai-agents")
async def test_a_tool_of_a_nested_agent_of_the_sdk_is_approved(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AGENTS, "nested-agents", NESTED)
    payer = Payer("nested-agents", tmp_path, upstream)
    messages = [user("Pay 5")]
    asks = calls(("treasurer", {"input": "5"}), ("count", {"city": "Bonn"}))
    question = await payer.ask(messages, asks, PAYS)
    messages.append(user("yes"))
    answer = await payer.ask(messages, text("Paid it."), text("Done."))

    assert QUESTION in question
    assert (payer.paid, answer) == ([5], "Done.")
    assert payer.shown[:2] == ["user: Pay 5", "assistant: treasurer,count"]
    assert sorted(payer.shown[2:]) == ["tool: 330,000", "tool: Paid it."]
