"""Agents and teams of AutoGen AgentChat: swarms, components of AutoGen Studio, users in teams, tools of the client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.behaviour.frameworks import (  # noqa: F401
    EXAMPLES,
    FRAMEWORK_MARKS,
    only,
    provider_of_frameworks,
    texts,
    unclosed_clients,
    upstream_of_frameworks,
)
from tests.fakes.upstream import FakeUpstream, calls, hang, text
from tests.server import serve

pytestmark = [*FRAMEWORK_MARKS, only("agentchat")]


async def conversation(folder: Path, teams: Path, model: str, contents: list[str], **more: Any) -> list[str]:
    """Return the answers to messages of a user, each by a new server with the same data."""
    messages: list[Any] = []
    answers = []
    for content in contents:
        messages.append(user(content))
        async with serve(folder, teams=teams) as served:
            answers.append(await Caller(served).ask(messages, model=model, **more))
        messages.append(assistant(answers[-1]))
    return answers


async def test_a_swarm_hands_over_to_the_user_and_to_the_team(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_letters", {})),
        calls(("transfer_to_user", {})),
        calls(("transfer_to_writer", {})),
        text("Dear Anna"),
        calls(("transfer_to_desk", {})),
        text("At nine."),
    )
    answers = await conversation(
        tmp_path, EXAMPLES / "agentchat-swarm", "office", ["A letter", "To Anna", "When do you open?"]
    )

    assert answers == [
        "Transferred to user, adopting the role of user immediately.",
        "Dear Anna",
        "At nine.",
    ]
    of_writer = next(
        shown for at in range(6) if (shown := texts(upstream, at))[0].startswith("system: You write")
    )
    assert "user: To Anna" in of_writer


async def test_an_answer_without_a_handoff_ends_the_turn_of_the_swarm(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(
        calls(("transfer_to_letters", {})),
        text("To whom?"),
        calls(("transfer_to_writer", {})),
        text("Dear Anna"),
    )
    answers = await conversation(tmp_path, EXAMPLES / "agentchat-swarm", "office", ["A letter", "To Anna"])

    assert answers == ["To whom?", "Dear Anna"]


async def test_a_component_of_autogen_studio_asks_the_user(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(
        text("author"),
        text("Fast."),
        text("user"),
        text("critic"),
        text("APPROVE"),
        text("author"),
        text("Faster."),
        text("critic"),
        text("APPROVE"),
    )
    answers = await conversation(
        tmp_path, EXAMPLES / "autogen-studio-team", "slogans", ["A slogan", "Good", "Another"]
    )

    assert answers == ["Fast.", "APPROVE", "Faster.\n\nAPPROVE"]
    # The answer of the user belongs to the agent that stands for the user.
    assert texts(upstream, 4)[-1] == "user: Good"
    assert "user: Fast." in texts(upstream, 4)


ROUND = """\
from autogen_agentchat.agents import AssistantAgent, UserProxyAgent
from autogen_agentchat.conditions import TextMentionTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

model = OpenAIChatCompletionClient(model="gpt-5-mini")
author = AssistantAgent("author", model, system_message="You write.")
team = RoundRobinGroupChat([author, UserProxyAgent("person")], termination_condition=TextMentionTermination("END"))
"""


def written(folder: Path, module: str, code: str) -> Path:
    """Write a team with one agent, which is the object ``team`` of a module."""
    teams = folder / "team"
    teams.mkdir()
    (teams / f"{module}.py").write_text(code)
    (teams / "team.yaml").write_text(f'teams: {{writers: {{python: "{module}:team"}}}}')
    return teams


async def test_a_single_team_asks_its_user_again_and_again(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("One."), text("Two."), text("END"))
    teams = written(tmp_path, "round_of_author", ROUND)
    messages: list[Any] = []
    async with serve(tmp_path, teams=teams) as served:
        for content in ("Count", "Go on", "Stop"):
            messages.append(user(content))
            messages.append(assistant(await Caller(served).ask(messages, model="writers")))

    assert [one["content"] for one in messages[1::2]] == ["One.", "Two.", "END"]
    assert texts(upstream)[1:] == [
        "user: Count", "assistant: One.", "user: Go on", "assistant: Two.", "user: Stop",
    ]  # fmt: skip


PAIR = """\
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import TextMessageTermination
from autogen_agentchat.teams import Swarm
from autogen_ext.models.openai import OpenAIChatCompletionClient

model = OpenAIChatCompletionClient(model="gpt-5-mini")
team = Swarm([AssistantAgent("author", model)], termination_condition=TextMessageTermination("author"))
"""


async def test_a_single_team_works_after_a_cancelled_turn(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(hang(), text("Here."))
    teams = written(tmp_path, "cancelled_pair", PAIR)
    async with serve(tmp_path, teams=teams) as served:
        requested = asyncio.create_task(
            Caller(served).ask([user("Hi")], model="writers", headers={"X-On-Disconnect": "cancel"})
        )
        request = await upstream.received(1)
        requested.cancel()
        await request.closed()
        await asyncio.gather(requested, return_exceptions=True)
        async with asyncio.timeout(30):
            answer = await Caller(served).ask([user("Are you there?")], model="writers")

    assert answer == "Here."


async def test_calls_of_own_tools_and_of_the_client_in_one_reply_are_made_once(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(
        calls(("population", {"city": "Bonn"}), ("weather", {"city": "Bonn"}), ("weather", {"city": "Ulm"})),
        text("330,000 and rain."),
        text("Sure."),
    )
    messages = [user("Bonn?")]
    team = EXAMPLES / "agentchat-agent"
    async with serve(tmp_path, teams=team) as served:
        first = await Caller(served).completion(messages, model="cities/Expert", tools=[WEATHER])
        message: Any = first.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        messages += [result(call.id, f"wet {at}") for at, call in enumerate(message.tool_calls or ())]
    async with serve(tmp_path, teams=team) as served:
        caller = Caller(served)
        answer = await caller.ask(messages, model="cities/Expert", tools=[WEATHER])
        resumed = texts(upstream)
        messages += [assistant(answer), user("Sure?")]
        last = await caller.ask(messages, model="cities/Expert", tools=[WEATHER])

    assert [call.function.name for call in message.tool_calls or ()] == ["weather", "weather"]
    assert (answer, last) == ("330,000 and rain.", "Sure.")
    assert resumed[1:] == [
        "user: Bonn?",
        "assistant: population,weather,weather",
        "tool: 330,000",
        "tool: wet 0",
        "tool: wet 1",
    ]
    assert texts(upstream)[1:] == [*resumed[1:], "assistant: 330,000 and rain.", "user: Sure?"]


async def test_an_empty_result_of_the_client_is_a_result(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"})), text("Nothing is known."))
    messages = [user("Bonn?")]
    async with serve(tmp_path, teams=EXAMPLES / "agentchat-agent") as served:
        caller = Caller(served)
        first: Any = await caller.completion(messages, model="cities/Expert", tools=[WEATHER])
        messages.append(first.choices[0].message.model_dump(exclude_none=True))
        messages.append(result(first.choices[0].message.tool_calls[0].id, ""))
        answer = await caller.ask(messages, model="cities/Expert", tools=[WEATHER])

    assert answer == "Nothing is known."
    assert texts(upstream)[-1] == "tool: "


async def test_a_call_without_a_result_is_not_repeated(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"})), text("Never mind."))
    messages = [user("Bonn?")]
    async with serve(tmp_path, teams=EXAMPLES / "agentchat-agent") as served:
        caller = Caller(served)
        first = await caller.completion(messages, model="cities/Expert", tools=[WEATHER])
        conversation_id = caller.conversation
        answer = await caller.ask(
            [user("Forget it")],
            model="cities/Expert",
            tools=[WEATHER],
            headers={"X-Conversation-Id": conversation_id},
        )

    assert first.choices[0].finish_reason == "tool_calls"
    assert answer == "Never mind."
    assert texts(upstream)[1:] == [
        "user: Bonn?",
        "assistant: weather",
        "tool: not executed: no result was given for this call",
        "user: Forget it",
    ]
