"""Agents of the A2A protocol: a server of the official SDK on this machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import openai
import pytest

from tests.behaviour.chat_client import Caller, assistant, user
from tests.fakes.otlp import FakeCollector
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

if find_spec("a2a") is None and not os.environ.get("HANDOFF_TEST_REQUIRE_ALL"):
    pytest.skip("a2a-sdk is not installed", allow_module_level=True)

from tests.fakes.a2a_server import ScriptedAgent, a2a_server

TEAMS = Path(__file__).parents[2] / "examples" / "a2a-agent"
TO_TRAVEL = calls(("transfer_to_travel", {"reason": "a train"}))


@pytest.fixture
async def travel(upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedAgent]:
    async with a2a_server() as (url, agent):
        monkeypatch.setenv("TRAVEL_URL", url)
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        yield agent


async def test_an_a2a_agent_answers_and_keeps_its_context_over_a_restart(
    travel: ScriptedAgent, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.reply(text("Hello."), TO_TRAVEL)
    messages = [user("Hi")]
    async with serve(tmp_path, teams=TEAMS) as served:
        caller = Caller(served)
        messages += [assistant(await caller.ask(messages, model="travel", user="anna")), user("Bonn")]
        stream = await caller.client.chat.completions.create(
            model="travel",
            messages=messages,
            user="anna",
            stream=True,
            extra_headers={"X-Handoff-Events": "all"},
        )
        pieces, reasoning = [], ""
        async for chunk in stream:
            for choice in chunk.choices:
                pieces += [choice.delta.content] if choice.delta.content else []
                reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
    messages += [assistant("".join(pieces)), user("Berlin")]
    async with serve(tmp_path, teams=TEAMS) as served:
        last = await Caller(served).ask(messages, model="travel", user="anna")

    assert pieces == ["Train to ", "Bonn."]
    assert "looking for trains" in reasoning
    assert last == "Train to Berlin."
    first, second = travel.received
    assert [part.text for part in first.parts] == [
        "Earlier in this conversation:\nuser: Hi\nDesk: Hello.",
        "Bonn",
    ]
    assert (first.metadata["end_user"], first.metadata["handoff_reason"]) == ("anna", "a train")
    assert [part.text for part in second.parts] == ["Berlin"]
    assert second.context_id == first.context_id != ""
    assert len(second.reference_task_ids) == 1


async def test_a_task_that_asks_for_input_is_continued(
    travel: ScriptedAgent, upstream: FakeUpstream, tmp_path: Path
) -> None:
    messages = [user("ask")]
    async with serve(tmp_path, teams=TEAMS) as served:
        messages += [assistant(await Caller(served).ask(messages, model="travel/Travel")), user("Monday")]
    async with serve(tmp_path, teams=TEAMS) as served:
        answer = await Caller(served).ask(messages, model="travel/Travel")

    assert messages[1]["content"] == "Which day?"
    assert answer == "Train to Monday."
    assert travel.received[1].task_id != ""


@pytest.mark.parametrize(
    ("first", "question"),
    [("sign in", "Sign in at https://travel.example"), ("draft", "Train on which day?")],
)
async def test_a_waiting_task_is_continued_without_what_was_read(
    first: str, question: str, travel: ScriptedAgent, upstream: FakeUpstream, tmp_path: Path
) -> None:
    messages = [user(first)]
    async with serve(tmp_path, teams=TEAMS) as served:
        caller = Caller(served)
        messages += [assistant(await caller.ask(messages, model="travel/Travel")), user("Monday")]
        answer = await caller.ask(messages, model="travel/Travel")

    assert messages[1]["content"] == question
    assert answer == "Train to Monday."
    assert travel.received[1].task_id == travel.received[0].task_id != ""


async def test_an_agent_that_lost_its_tasks_gets_the_message_as_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    messages = [user("ask")]
    received = []
    for _ in range(2):
        async with a2a_server() as (url, agent):
            monkeypatch.setenv("TRAVEL_URL", url)
            async with serve(tmp_path, teams=TEAMS) as served:
                messages += [
                    assistant(await Caller(served).ask(messages, model="travel/Travel")),
                    user("Bonn"),
                ]
            received += agent.received

    assert messages[3]["content"] == "Train to Bonn."
    assert received[1].task_id != received[0].task_id
    assert received[1].context_id == received[0].context_id


async def test_an_a2a_agent_hands_over(travel: ScriptedAgent, upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.reply(TO_TRAVEL, text("I am the desk."))
    async with serve(tmp_path, teams=TEAMS) as served:
        assert await Caller(served).ask([user("desk")], model="travel") == "I am the desk."

    assert dict(travel.received[0].metadata["handoffs"]) == {
        "Desk": "The user asks about anything but travel."
    }


@pytest.mark.parametrize("end", ["fail", "reject", "give up"])
async def test_a_task_without_success_is_a_typed_error(
    end: str, travel: ScriptedAgent, upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with serve(tmp_path, teams=TEAMS) as served:
        with pytest.raises(openai.APIStatusError) as failed:
            await Caller(served).ask([user(end)], model="travel/Travel")

    assert failed.value.code == "agent_failed"
    assert "secret" not in failed.value.message


async def cancelled(served: Served, agent: ScriptedAgent, model: str) -> None:
    """Leave a turn when the agent has reported progress, so that its task is known; wait until that is cancelled."""
    stream = await served.client().chat.completions.create(
        model=model,
        messages=[user("hang")],
        stream=True,
        extra_headers={"X-On-Disconnect": "cancel", "X-Handoff-Events": "all"},
    )
    async for chunk in stream:
        if chunk.choices and (chunk.choices[0].delta.model_extra or {}).get("reasoning_content"):
            break
    await stream.close()
    await agent.cancelled.wait()


async def test_a_cancelled_turn_cancels_the_task(
    travel: ScriptedAgent, upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with serve(tmp_path, teams=TEAMS) as served:
        await cancelled(served, travel, "travel/Travel")


async def test_files_are_sent_and_received(
    travel: ScriptedAgent, upstream: FakeUpstream, tmp_path: Path
) -> None:
    pdf = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}
    content = [{"type": "file", "file": pdf}, {"type": "text", "text": "file"}]
    async with serve(tmp_path, teams=TEAMS) as served:
        answer = await Caller(served).ask([user(content)], model="travel/Travel")

    assert answer == "a.pdf application/pdf 5" + "8:00 Bonn" + "[file ticket.pdf]"


async def test_data_of_a_handoff_comes_from_the_metadata(
    travel: ScriptedAgent, upstream: FakeUpstream, tmp_path: Path
) -> None:
    schema = "{type: object, properties: {ticket: {type: integer}}, required: [ticket], additionalProperties: false}"
    teams = tmp_path / "teams.yaml"
    teams.write_text(
        (TEAMS / "team.yaml")
        .read_text()
        .replace("handoffs: [{to: Desk,", f"handoffs: [{{to: Desk, input: {schema},")
    )
    upstream.reply(TO_TRAVEL, text("Ticket 7."))
    async with serve(tmp_path, teams=teams) as served:
        assert await Caller(served).ask([user("desk")], model="travel") == "Ticket 7."

    assert '"ticket":7' in str(upstream.requests[1].body["messages"]).replace(" ", "").replace("\\", "")


async def test_a_task_whose_stream_broke_is_read_to_its_end(tmp_path: Path) -> None:
    async with a2a_server(cuts=True) as (url, _):
        teams = tmp_path / "teams.yaml"
        teams.write_text(f'teams: {{travel: {{a2a: "{url}"}}}}')
        async with serve(tmp_path, teams=teams) as served:
            assert await Caller(served).ask([user("slow")], model="travel") == "Train to Bonn."


async def test_an_agent_without_streaming_is_cancelled(tmp_path: Path) -> None:
    async with a2a_server(streaming=False) as (url, agent):
        teams = tmp_path / "teams.yaml"
        teams.write_text(f'teams: {{travel: {{a2a: "{url}"}}}}')
        async with serve(tmp_path, teams=teams) as served:
            await cancelled(served, agent, "travel")


async def test_an_agent_without_streaming_answers(tmp_path: Path) -> None:
    async with a2a_server(streaming=False) as (url, _):
        teams = tmp_path / "teams.yaml"
        teams.write_text(f'teams: {{travel: {{a2a: "{url}"}}}}')
        async with serve(tmp_path, teams=teams) as served:
            assert await Caller(served).ask([user("Bonn")], model="travel") == "Train to Bonn."


async def test_an_unreachable_agent_is_a_typed_error(tmp_path: Path) -> None:
    teams = tmp_path / "teams.yaml"
    teams.write_text('teams: {travel: {a2a: {url: "http://127.0.0.1:9", headers: {X-Key: secret}}}}')
    async with serve(tmp_path, teams=teams) as served:
        with pytest.raises(openai.APIStatusError) as failed:
            await Caller(served).ask([user("Bonn")], model="travel")

    assert failed.value.code == "agent_failed"


async def test_an_a2a_agent_gets_the_trace(
    travel: ScriptedAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeCollector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        async with serve(tmp_path, teams=TEAMS, tracing=True) as served:
            await served.client().chat.completions.create(
                model="travel/Travel",
                messages=[user("Bonn")],
                extra_headers={"traceparent": f"00-{'a' * 32}-{'1' * 16}-01"},
            )
            trace = await collector.trace("a" * 32)

    agent = next(span for span in trace.spans if span.name.startswith("invoke_agent"))
    assert travel.headers[0]["traceparent"] == f"00-{'a' * 32}-{agent.span_id}-01"
