"""Agents behind an OpenAI-compatible API: a scripted one, and a team of another handoff-proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, shape_of, user
from tests.fakes.upstream import FakeUpstream, calls, error, text
from tests.server import Served, serve

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  desk:
    entry: triage
    agents:
      triage:
        instructions: You are triage.
        handoffs: [{{to: expert, when: it is hard}}]
      expert:
        remote: {{base_url: "{remote}", model: far-model, api_key: far-key, headers: {{X-Tenant: library}}}}
        handoffs: [{{to: triage, when: it is easy}}]
  boss:
    entry: boss
    agents:
      boss: {{instructions: You are boss., delegates: [{{to: expert}}]}}
      expert: {{remote: {{base_url: "{remote}", model: far-model}}}}
  quiet:
    remote: {{base_url: "{remote}", model: far-model, conversation_header: "", send_end_user: false}}
"""


@pytest.fixture
async def remote() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as started:
        yield started


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeUpstream, remote: FakeUpstream) -> AsyncIterator[Served]:
    teams = tmp_path / "teams.yaml"
    teams.write_text(TEAM.format(upstream=upstream.base_url, remote=remote.base_url))
    async with serve(tmp_path, teams=teams) as started:
        yield started


async def test_a_remote_agent_receives_the_transcript_and_the_caller(
    served: Served, upstream: FakeUpstream, remote: FakeUpstream
) -> None:
    upstream.reply(text("Hello!"), calls(("transfer_to_expert", {"reason": "physics"})))
    remote.reply(text("It bends."))
    caller = Caller(served)
    messages = [{"role": "system", "content": "Be brief."}, user("Hi")]
    messages += [assistant(await caller.ask(messages, model="desk")), user("Why does light bend?")]

    answer = await caller.ask(messages, model="desk", user="anna", temperature=0.2)

    assert answer == "It bends."
    [request] = remote.requests
    assert request.headers["authorization"] == "Bearer far-key"
    assert request.headers["x-tenant"] == "library"
    assert request.headers["x-conversation-id"] == f"{caller.conversation}:expert"
    assert request.body["model"] == "far-model"
    assert request.body["safety_identifier"] == "anna"
    assert request.body["temperature"] == 0.2
    assert shape_of(remote) == ["system", "user:Hi", "assistant:Hello!", "user:Why does light bend?"]
    system = request.body["messages"][0]["content"]
    assert system.startswith("Be brief.\n\ntriage has handed the conversation over to you: physics.")
    assert [tool["function"]["name"] for tool in request.body["tools"]] == ["transfer_to_triage"]


async def test_a_remote_agent_hands_over(
    served: Served, upstream: FakeUpstream, remote: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_expert", {})), text("Two."))
    remote.reply(calls(("transfer_to_triage", {"reason": "easy"})))

    assert await Caller(served).ask([user("1 + 1?")], model="desk") == "Two."

    assert shape_of(upstream) == [
        "system", "user:1 + 1?", "calls:transfer_to_expert", "result", "calls:transfer_to_triage", "result",
    ]  # fmt: skip


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_an_incomplete_answer_of_a_remote_agent_is_reported(
    finish: str, served: Served, upstream: FakeUpstream, remote: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_expert", {})))
    remote.reply(text("Once upon", finish=finish))

    answer = await Caller(served).completion([user("A tale")], model="desk")

    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == (finish, "Once upon")


async def test_truncated_calls_of_a_remote_agent_are_dropped(
    served: Served, upstream: FakeUpstream, remote: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_expert", {})))
    remote.reply(calls(("transfer_to_triage", {"reason": "ea"}), finish="length"))

    answer = await Caller(served).completion([user("1 + 1?")], model="desk")

    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content or "") == ("length", "")


async def test_a_remote_agent_calls_tools_of_the_client(
    served: Served, upstream: FakeUpstream, remote: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_expert", {})))
    remote.reply(calls(("weather", {"city": "Bonn"})), text("Rain."))
    caller = Caller(served)
    messages = [user("Weather?")]

    first = await caller.completion(messages, model="desk", tools=[WEATHER])
    [call] = first.choices[0].message.tool_calls or []
    messages += [first.choices[0].message.model_dump(exclude_none=True), result(call.id, "wet")]
    answer = await caller.ask(messages, model="desk", tools=[WEATHER])

    assert answer == "Rain."
    assert shape_of(remote) == ["user:Weather?", "calls:weather", "result"]
    assert remote.requests[1].body["messages"][-1]["content"] == "wet"


async def test_conversation_and_end_user_are_not_sent_if_the_file_says_so(
    served: Served, remote: FakeUpstream
) -> None:
    remote.reply(text("Hi."))

    await Caller(served).ask([user("Hello")], model="quiet", user="anna")

    [request] = remote.requests
    assert "x-conversation-id" not in request.headers
    assert "authorization" not in request.headers
    assert "safety_identifier" not in request.body


async def test_images_and_formats_reach_the_remote_agent(served: Served, remote: FakeUpstream) -> None:
    remote.reply(text('{"a": 1}'))
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    form: Any = {"type": "json_object"}

    await Caller(served).ask([user([image])], model="quiet", response_format=form)

    [request] = remote.requests
    assert request.body["messages"] == [{"role": "user", "content": [image]}]
    assert request.body["response_format"] == form


async def test_a_failed_call_is_not_repeated(served: Served, remote: FakeUpstream) -> None:
    remote.reply(error(500))

    with pytest.raises(openai.APIStatusError) as failed:
        await Caller(served).ask([user("Hi")], model="quiet")

    assert failed.value.code == "upstream_error"
    assert len(remote.requests) == 1


async def test_a_team_of_another_proxy_is_a_member_with_nested_events(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    far.mkdir()
    near.mkdir()
    async with serve(far, upstream.base_url) as other:
        teams = near / "teams.yaml"
        teams.write_text(
            f"""
            models: {{default: {{model: test-model, base_url: "{upstream.base_url}", api_key: k}}}}
            teams:
              desk:
                entry: triage
                agents:
                  triage: {{instructions: You are triage., handoffs: [{{to: shop}}]}}
                  shop:
                    remote: {{base_url: "{other.base_url}", model: shop, api_key: test-key}}
                    handoffs: [{{to: triage}}]
            """
        )
        async with serve(near, teams=teams) as served:
            caller = Caller(served)
            upstream.reply(
                calls(("transfer_to_shop", {})),
                calls(("transfer_to_repairs", {"reason": "broken"})),
                calls(("look_up_item", {"search_query": "rocket"})),
                text("Found it."),
            )
            stream = await caller.client.chat.completions.create(
                model="desk",
                messages=[user("My rocket is broken")],
                stream=True,
                extra_headers={"X-Handoff-Events": "all", "X-Conversation-Id": "anna"},
            )
            content, reasoning, events = "", "", []
            async for chunk in stream:
                events.append((chunk.model_extra or {}).get("handoff") or {})
                for choice in chunk.choices:
                    content += choice.delta.content or ""
                    reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            upstream.reply(text("Still here."))
            messages = [user("My rocket is broken"), assistant(content), user("And now?")]
            again = await caller.ask(messages, model="desk", headers={"X-Conversation-Id": "anna"})
            stored = await other.client("test-key").get("/conversations/anna:shop", cast_to=object)

    assert (content, again) == ("Found it.", "Still here.")
    assert "triage hands over to repairs" in reasoning
    assert reasoning.count("hands over to repairs") == 1
    nested = [event["event"] for event in events if event.get("type") == "member.event"]
    assert {event["agent"] for event in events if event.get("type") == "member.event"} == {"shop"}
    assert [(event["type"], event["agent"]) for event in nested] == [
        ("handoff", "triage"),
        ("tool.started", "repairs"),
        ("tool.completed", "repairs"),
        ("agent.speaking", "repairs"),
    ]
    assert nested[1]["name"] == "look_up_item"
    assert upstream.requests[-1].body["messages"][0]["content"].startswith("You are repairs.")
    assert shape_of(upstream)[-3:] == ["result", "assistant:Found it.", "user:And now?"]
    assert stored


async def test_each_run_as_a_delegate_is_a_conversation_with_the_same_end_user(
    served: Served, upstream: FakeUpstream, remote: FakeUpstream
) -> None:
    upstream.reply(
        calls(("ask_expert", {"task": "A"}), ("ask_expert", {"task": "B"})), text("Both are done.")
    )
    remote.reply(text("done"), text("done"))
    caller = Caller(served)

    answer = await caller.ask([user("Do A and B")], model="boss", user="anna")

    assert answer == "Both are done."
    tasks = sorted(request.body["messages"][-1]["content"] for request in remote.requests)
    assert tasks == ["A", "B"]
    assert [len(request.body["messages"]) for request in remote.requests] == [1, 1]
    ids = {request.headers["x-conversation-id"] for request in remote.requests}
    assert len(ids) == 2
    assert [request.body["safety_identifier"] for request in remote.requests] == ["anna", "anna"]
