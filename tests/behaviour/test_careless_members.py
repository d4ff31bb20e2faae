"""Members with errors in their code: each is a typed error of its turn, and nothing of it reaches another one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.fakes import careless_members
from tests.fakes.careless_members import FAILURES, INVALID, ODD
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEMBERS = (
    "yields", "reports", "raises", "raises_in_thread", "exits_approved", "fails_at_the_end", "continues", "calls_later",
    "closes", "invalid_data", "never_ends",
)  # fmt: skip
TEAM = """\
  {name}:
    entry: {name}
    agents:
      {name}:
        python: "tests.fakes.careless_members:{name}"
        handoffs: [{{to: desk{options}}}]
      desk: {{instructions: You are the desk.}}
"""
DATA = ", input: {type: object, properties: {order: {type: integer}}, required: [order]}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("careless")
    async with FakeUpstream() as upstream:
        teams = "".join(
            TEAM.format(name=name, options=DATA if name == "invalid_data" else "") for name in MEMBERS
        )
        models = f'models: {{default: {{model: m, base_url: "{upstream.base_url}", api_key: k}}}}\nteams:\n'
        (folder / "teams.yaml").write_text(models + teams)
        upstream.reply(*[text("The desk.")] * 10)
        async with serve(folder, teams=folder / "teams.yaml") as started:
            yield started


@pytest.fixture
def caller(served: Served) -> Caller:
    return Caller(served)


async def failed(caller: Caller, model: str, message: str) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await caller.ask([user(message)], model=model)
    return caught.value


@pytest.mark.parametrize("value", INVALID)
async def test_a_value_that_is_not_an_event_is_a_typed_error(
    value: str, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    error = await failed(caller, "yields", value)

    assert (error.status_code, error.code) == (502, "agent_error")
    assert error.body["message"] == "The agent 'yields' yielded a value that is not an event."  # type: ignore[index]
    [logged] = [
        record for record in caplog.records if record.message == "member yielded a value that is not an event"
    ]
    assert logged.levelno == logging.WARNING


@pytest.mark.parametrize("value", ODD)
async def test_text_that_cannot_be_stored_is_replaced(value: str, caller: Caller) -> None:
    answer = await caller.ask([user(value)], model="yields")
    stored: Any = await caller.client.get(f"/conversations/{caller.conversation}/items", cast_to=object)

    assert answer == f"ok {ODD[value][1]}"
    assert f"ok {ODD[value][1]}" in str(stored)


async def test_reports_tools_and_results_are_cleaned_too(caller: Caller) -> None:
    messages = [user("Hi")]
    question = await caller.ask(messages, model="reports")
    messages += [assistant(question), user("yes")]

    assert "write" in question
    assert await caller.ask(messages, model="reports") == "written \ufffd"


@pytest.mark.parametrize("model", ["raises", "raises_in_thread"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_no_exception_of_a_member_reaches_the_server(failure: str, model: str, caller: Caller) -> None:
    async with asyncio.timeout(10):
        error = await failed(caller, model, failure)

    assert (error.status_code, error.code) == (502, "agent_failed")
    assert "secret" not in error.message


async def test_an_approved_function_that_exits_has_failed(caller: Caller) -> None:
    messages = [user("Hi")]
    messages += [assistant(await caller.ask(messages, model="exits_approved")), user("yes")]

    with pytest.raises(openai.APIStatusError) as caught:
        await caller.ask(messages, model="exits_approved")
    approvals: Any = await caller.client.get("/approvals", cast_to=object)

    assert caught.value.code == "agent_failed"
    assert approvals["data"] == []


@pytest.mark.parametrize(
    ("model", "code"), [("fails_at_the_end", "agent_failed"), ("invalid_data", "agent_error")]
)
async def test_a_handover_that_fails_is_a_typed_error(
    model: str, code: str, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    error = await failed(caller, model, "Hi")

    assert error.code == code
    assert not [record for record in caplog.records if "never retrieved" in record.message]


@pytest.mark.parametrize("kind", ["reports", "uses", "inner agents"])
async def test_events_without_end_are_a_typed_error(kind: str, caller: Caller) -> None:
    error = await failed(caller, "never_ends", kind)

    assert error.code == "agent_error"
    assert error.body["message"] == "The answer of the agent 'never_ends' exceeds the size limit."  # type: ignore[index]


async def test_what_a_member_does_after_its_call_does_not_count(caller: Caller) -> None:
    messages = [user("Hi")]
    first = await caller.completion(messages, model="continues", tools=[WEATHER])
    [call] = first.choices[0].message.tool_calls or []
    messages += [first.choices[0].message.model_dump(exclude_none=True), result(call.id, "wet")]
    second = await caller.completion(messages, model="continues", tools=[WEATHER])
    [again] = second.choices[0].message.tool_calls or []
    messages += [second.choices[0].message.model_dump(exclude_none=True), result(again.id, "dry")]

    answer = await caller.ask(messages, model="continues", tools=[WEATHER])

    assert [first.choices[0].message.content or "", second.choices[0].message.content] == ["", "wet"]
    assert answer == "dry end"


async def test_a_call_behind_the_end_of_a_run_is_cancelled(caller: Caller) -> None:
    answer = await caller.ask([user("Hi")], model="calls_later", tools=[WEATHER])
    async with asyncio.timeout(10):
        await asyncio.gather(*careless_members.tasks, return_exceptions=True)

    assert answer == "done"
    assert careless_members.later == ["cancelled"]


async def test_a_generator_of_a_cancelled_turn_is_closed_in_a_thread(caller: Caller) -> None:
    stream = await caller.client.chat.completions.create(
        model="closes", messages=[user("Hi")], stream=True, extra_headers={"X-On-Disconnect": "cancel"}
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()

    async with asyncio.timeout(10):
        while not careless_members.closed_in:
            await asyncio.sleep(0.01)
    assert threading.get_ident() not in careless_members.closed_in
