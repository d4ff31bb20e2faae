"""Handoffs with ``history``, ``input`` and ``return``: what the next agent sees, and who answers afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.behaviour.chat_client import Caller, Messages, agent_of, assistant, shape_of, user
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k}}
teams:
  desk:
    entry: triage
    agents:
      triage:
        instructions: You are triage.
        handoffs:
          - {{to: open, tool: to_open}}
          - {{to: since, tool: to_since, history: since_handoff}}
          - {{to: blank, tool: to_blank, history: none}}
          - {{to: summed, tool: to_summed, history: summary}}
          - to: clerk
            tool: to_clerk
            return: true
            input:
              type: object
              properties: {{order: {{type: integer}}, colour: {{type: string}}}}
              required: [order]
              additionalProperties: false
      open: {{instructions: You are open.}}
      since:
        instructions: You are since.
        handoffs: [{{to: triage, tool: back}}]
      blank: {{instructions: You are blank.}}
      summed: {{instructions: You are summed.}}
      clerk:
        instructions: You are clerk.
        handoffs: [{{to: expert, tool: to_expert, return: true}}]
      expert: {{instructions: You are expert.}}
"""
RESULT = (
    "Follow your own instructions and answer the user's last message yourself. Do not mention a transfer."
)


@dataclass
class Client:
    """A stateless client of the team."""

    caller: Caller
    upstream: FakeUpstream
    messages: Messages

    async def say(self, content: str, *replies: Any) -> str:
        self.upstream.reply(*replies)
        self.messages.append(user(content))
        answer = await self.caller.ask(self.messages, model="desk")
        self.messages.append(assistant(answer))
        return answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    folder = tmp_path_factory.mktemp("options")
    async with FakeUpstream() as upstream:
        (folder / "team.yaml").write_text(TEAM.format(upstream=upstream.base_url))
        async with serve(folder, teams=folder / "team.yaml") as served:
            yield served, upstream


@pytest.fixture
def client(open_desk: tuple[Served, FakeUpstream], request: pytest.FixtureRequest) -> Client:
    served, upstream = open_desk
    return Client(Caller(served, key=request.node.name), upstream.forget(), [])


async def test_by_default_the_next_agent_sees_everything(client: Client) -> None:
    await client.say("Hello", text("Hi"))
    await client.say("Open it", calls(("to_open", {"reason": "asked"})), text("TurnHandle"))

    assert shape_of(client.upstream) == [
        "system",
        "user:Hello",
        "assistant:Hi",
        "user:Open it",
        "calls:to_open",
        "result",
    ]


async def test_since_handoff_begins_with_the_message_that_led_to_it(client: Client) -> None:
    await client.say("Hello", text("Hi"))
    await client.say("Since", calls(("to_since", {"reason": "asked"})), text("From here"))
    assert shape_of(client.upstream) == ["system", "user:Since", "calls:to_since", "result"]

    await client.say("More", text("Yes"))
    assert shape_of(client.upstream) == [
        "system",
        "user:Since",
        "calls:to_since",
        "result",
        "assistant:From here",
        "user:More",
    ]

    await client.say("Back", calls(("back", {})), text("I know all"))
    assert agent_of(client.upstream) == "triage"
    assert shape_of(client.upstream)[1:3] == ["user:Hello", "assistant:Hi"]


async def test_none_leaves_only_the_reason_and_what_follows(client: Client) -> None:
    await client.say("A secret", text("Hi"))
    await client.say("Blank", calls(("to_blank", {"reason": "wants a new start"})), text("Fresh"))
    assert shape_of(client.upstream) == [
        "system",
        "user:triage hands this task over to you.\n\nwants a new start",
    ]

    await client.say("Next", text("Ok"))
    assert shape_of(client.upstream)[2:] == ["assistant:Fresh", "user:Next"]


async def test_summary_replaces_what_was_before(client: Client) -> None:
    await client.say("I am Ann", text("Hi"))
    await client.say("Sum", calls(("to_summed", {})), text("The user is Ann."), text("Hello Ann"))

    requested = client.upstream.requests[-2].body["messages"]
    assert requested[0]["content"].startswith("You write the summary")
    assert "I am Ann" in requested[1]["content"]
    assert shape_of(client.upstream) == [
        "system",
        "user:Summary of the conversation before the handover:\n\nThe user is Ann.",
        "user:Sum",
        "calls:to_summed",
        "result",
    ]


async def test_structured_data_is_checked_and_given_to_the_next_agent(client: Client) -> None:
    await client.say(
        "Order 7",
        calls(("to_clerk", {"order": "seven"})),
        calls(("to_clerk", {"order": 7, "colour": "red"})),
        text("Order 7 is on its way."),
    )

    tool = next(
        t["function"]
        for t in client.upstream.requests[0].body["tools"]
        if t["function"]["name"] == "to_clerk"
    )
    first = client.upstream.requests[1].body["messages"][-1]["content"]
    given = client.upstream.requests[2].body["messages"][-1]["content"]
    assert tool["parameters"]["required"] == ["order"]
    assert first.startswith("error: not transferred: ")
    assert (
        given
        == f'You are clerk, now the active agent. {RESULT}\n\nHandover data: {{"order": 7, "colour": "red"}}'
    )


async def test_return_gives_control_back_after_the_answer(client: Client) -> None:
    await client.say("Order 7", calls(("to_clerk", {"order": 7})), text("On its way."))
    await client.say("Thanks", text("You are welcome."))
    assert agent_of(client.upstream) == "triage"


async def test_returns_nest(client: Client) -> None:
    await client.say(
        "Order 7",
        calls(("to_clerk", {"order": 7})),
        calls(("to_expert", {"reason": "hard"})),
        text("The expert answers."),
    )
    await client.say("And?", text("The clerk answers."))
    assert agent_of(client.upstream) == "clerk"
    await client.say("And now?", text("Triage answers."))
    assert agent_of(client.upstream) == "triage"


async def test_a_return_is_reported_as_a_handoff(client: Client) -> None:
    client.upstream.reply(calls(("to_clerk", {"order": 7})), text("On its way."))
    answer = await client.caller.completion(
        [user("Order 7")], model="desk", headers={"X-Handoff-Events": "all"}
    )

    extension: Any = (answer.model_extra or {})["handoff"]
    assert (extension["agent"], extension["agents"]) == ("triage", ["triage", "clerk", "triage"])
