"""Agents that are Python functions, in teams with agents that have a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.behaviour.chat_client import WEATHER, Caller, agent_of, assistant, result, shape_of, user
from tests.fakes import member_functions
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  desk:
    entry: triage
    agents:
      triage:
        instructions: You are triage.
        handoffs: [{{to: researcher, when: it is about the world}}]
      researcher:
        python: tests.fakes.member_functions:researcher
        handoffs: [{{to: triage, when: it is about shopping}}]
  counter: {{python: "tests.fakes.member_functions:counter"}}
  lines: {{python: "tests.fakes.member_functions:lines"}}
  parrot: {{python: "tests.fakes.member_functions:parrot"}}
  echo: {{python: "tests.fakes.member_functions:echo", client_tools: ignore}}
  plain: {{python: "tests.fakes.member_functions:plain"}}
  reader: {{python: "tests.fakes.member_functions:reader"}}
  payer: {{python: "tests.fakes.member_functions:payer"}}
  hanger: {{python: "tests.fakes.member_functions:hanger"}}
  busy: {{python: "tests.fakes.member_functions:busy"}}
  endless: {{python: "tests.fakes.member_functions:endless"}}
  asker: {{python: "tests.fakes.member_functions:asker"}}
  shortened: {{python: "tests.fakes.member_functions:shortened"}}
  broken: {{python: "tests.fakes.member_functions:broken"}}
  reading: {{python: "tests.fakes.member_functions:reading"}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    folder = tmp_path_factory.mktemp("members")
    async with FakeUpstream() as upstream:
        teams = folder / "teams.yaml"
        teams.write_text(TEAM.format(upstream=upstream.base_url))
        async with serve(folder, teams=teams) as served:
            yield served, upstream


@pytest.fixture
def upstream(opened: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return opened[1].forget()


@pytest.fixture
def caller(opened: tuple[Served, FakeUpstream], request: pytest.FixtureRequest) -> Caller:
    member_functions.seen.clear()
    member_functions.payments.clear()
    return Caller(opened[0], f"key-{request.node.name}")


def tool(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


async def test_a_model_hands_over_to_a_function_and_the_function_to_the_model(
    caller: Caller, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_researcher", {"reason": "astronomy"})), text("We sell stars."))
    messages = [user("What is a star?")]

    first = await caller.ask(messages, model="desk", user="anna")
    messages += [assistant(first), user("Do you have a shop?")]
    second = await caller.ask(messages, model="desk", user="anna")

    assert (first, second) == ("A star is a sun, anna.", "We sell stars.")
    context = member_functions.seen[0]
    assert (context.handed_over_by, context.handoff_reason) == ("triage", "astronomy")
    assert context.handoffs == {"triage": "it is about shopping"}
    assert (context.text, context.end_user, context.agent, context.team) == (
        "What is a star?",
        "anna",
        "researcher",
        "desk",
    )
    assert context.conversation_id == caller.conversation
    assert shape_of(upstream) == [
        "system", "user:What is a star?", "calls:transfer_to_researcher", "result",
        "assistant:A star is a sun, anna.", "user:Do you have a shop?", "calls:transfer_to_triage", "result",
    ]  # fmt: skip
    assert agent_of(upstream) == "triage"


async def test_events_of_a_function_come_through(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_researcher", {})))
    stream = await caller.client.chat.completions.create(
        model="desk",
        messages=[user("What is a star?")],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"X-Handoff-Events": "all"},
    )
    content, reasoning, events, usage = [], [], [], None
    async for chunk in stream:
        extra: Any = chunk.model_extra or {}
        if "handoff" in extra:
            events.append(extra["handoff"])
        for choice in chunk.choices:
            content.append(choice.delta.content or "")
            reasoning.append((choice.delta.model_extra or {}).get("reasoning_content") or "")
        usage = chunk.usage or usage

    assert "".join(content) == "A star is a sun, friend."
    assert "looking it up" in "".join(reasoning)
    assert "It is about stars." in "".join(reasoning)
    started = next(event for event in events if event["type"] == "tool.started")
    completed = next(event for event in events if event["type"] == "tool.completed")
    assert (started["agent"], started["name"], started["arguments"]) == (
        "researcher",
        "look_up",
        '{"word": "star"}',
    )
    assert completed["result"] == "a sun"
    assert {use["model"]: use["total_tokens"] for use in events[-1]["usage"]}["own-model"] == 10
    assert usage is not None
    assert usage.total_tokens >= 10


async def test_state_is_stored_with_the_branch_of_the_conversation(caller: Caller) -> None:
    messages = [user("Go")]
    answers = []
    for _ in range(3):
        answers.append(await caller.ask(messages, model="counter"))
        messages += [assistant(answers[-1]), user("Again")]
    branch = await caller.ask([*messages[:2], user("Other")], model="counter")

    assert answers == ["run 1", "run 2", "run 3"]
    assert branch == "run 2"


@pytest.mark.parametrize(("model", "answer"), [("lines", "one, two"), ("parrot", "Hello")])
async def test_generators_in_threads_and_objects_answer(model: str, answer: str, caller: Caller) -> None:
    assert await caller.ask([user("Hello")], model=model) == answer


async def test_a_function_receives_content_parameters_and_instructions(caller: Caller) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    messages = [
        {"role": "system", "content": "Be kind."},
        user([{"type": "text", "text": "See"}, image]),
    ]

    assert await caller.ask(messages, model="echo", temperature=0.5) == (
        "Be kind. | temperature 0.5 | TextPart | ImagePart"
    )


async def test_a_structured_answer_is_checked(caller: Caller) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}

    good = await caller.ask([user("good")], model="echo", response_format=form)
    with pytest.raises(openai.APIStatusError) as failed:
        await caller.ask([user("bad")], model="echo", response_format=form)

    assert good == '{"answer": "yes"}'
    assert failed.value.code == "response_format_not_met"


async def test_parameters_without_effect_are_reported_or_rejected(caller: Caller) -> None:
    assert await caller.ask([user("Hi")], model="plain", temperature=0.5) == "plain"
    assert caller.headers["x-ignored-parameters"] == "temperature"
    with pytest.raises(openai.BadRequestError) as failed:
        await caller.ask([user("Hi")], model="plain", response_format={"type": "json_object"})
    assert failed.value.param == "response_format"


@pytest.mark.parametrize("store", [True, False])
async def test_a_function_calls_tools_of_the_client(store: bool, caller: Caller) -> None:
    tools = [tool("open_page"), tool("read_page")]
    more: Any = {"model": "reader", "tools": tools, "extra_body": {"store": store}}
    messages = [user("Read it")]

    first = (await caller.completion(messages, **more)).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.content == "Reading. "
    [opened] = first.message.tool_calls or []
    messages += [first.message.model_dump(exclude_none=True), result(opened.id, "page A")]
    second = (await caller.completion(messages, **more)).choices[0]
    assert second.message.content == "TurnHandle page A. "
    read = second.message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in read] == [  # type: ignore[union-attr]
        ("read_page", '{"page":1}'),
        ("read_page", '{"page":2}'),
    ]
    messages += [second.message.model_dump(exclude_none=True)]
    messages += [result(call.id, f"text {number}") for number, call in enumerate(read, 1)]
    last = await caller.ask(messages, **more)

    assert last == "Read text 1 and text 2."
    messages += [assistant(last), user("Once more")]
    again = (await caller.completion(messages, **more)).choices[0]
    assert (again.message.content, again.finish_reason) == ("Reading. ", "tool_calls")


async def test_results_of_equal_calls_are_returned_in_the_order_of_the_calls(caller: Caller) -> None:
    messages = [user("Hi")]
    first = (await caller.completion(messages, model="asker", tools=[tool("look_up")])).choices[0].message
    ids = [call.id for call in first.tool_calls or []]
    messages += [
        first.model_dump(exclude_none=True),
        *(result(call_id, f"{at}") for at, call_id in reversed(list(enumerate(ids)))),
    ]

    assert await caller.ask(messages, model="asker", tools=[tool("look_up")]) == "0 1 2"


async def test_a_call_of_a_tool_that_the_client_does_not_have_fails(caller: Caller) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        await caller.ask([user("Read it")], model="reader", tools=[WEATHER])
    assert failed.value.code == "agent_failed"


async def test_a_function_runs_what_a_person_has_approved(caller: Caller) -> None:
    messages = [user("Pay 20")]
    question = await caller.ask(messages, model="payer", tools=[tool("print")])
    assert 'pay(amount: "20")' in question
    assert member_functions.payments == []

    messages += [assistant(question), user("yes")]
    printing = (await caller.completion(messages, model="payer", tools=[tool("print")])).choices[0]
    [call] = printing.message.tool_calls or []
    messages += [printing.message.model_dump(exclude_none=True), result(call.id, "on paper")]
    last = await caller.ask(messages, model="payer", tools=[tool("print")])

    assert last == "Printed: on paper. Done: paid 20."
    assert member_functions.payments == ["20"]


async def test_an_approved_function_runs_once_over_all_branches(caller: Caller) -> None:
    messages = [user("Pay 30")]
    question = await caller.ask(messages, model="payer")
    messages += [assistant(question), user("yes")]

    first = await caller.ask(messages, model="payer")
    regenerated = await caller.ask(messages, model="payer", headers={"Idempotency-Key": "again"})

    assert first == regenerated == "Done: paid 30."
    assert member_functions.payments == ["30"]


async def test_a_refusal_and_another_message_run_nothing(caller: Caller) -> None:
    messages = [user("Pay 40")]
    question = await caller.ask(messages, model="payer")
    refused = await caller.ask([*messages, assistant(question), user("no")], model="payer")
    other = await caller.ask([*messages, assistant(question), user("Make it 50")], model="payer")
    paid = await caller.ask(
        [*messages, assistant(question), user("Make it 50"), assistant(other), user("yes")], model="payer"
    )

    assert refused == "Then not."
    assert 'pay(amount: "50")' in other
    assert paid == "Done: paid 50."
    assert member_functions.payments == ["50"]


async def test_a_cancelled_turn_stops_the_function(caller: Caller) -> None:
    member_functions.stopped.clear()
    stream = await caller.client.chat.completions.create(
        model="hanger", messages=[user("Hi")], stream=True, extra_headers={"X-On-Disconnect": "cancel"}
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()

    await member_functions.stopped.wait()


async def test_a_function_that_never_waits_does_not_block_the_server(caller: Caller) -> None:
    member_functions.stopped.clear()
    stream = await caller.client.chat.completions.create(
        model="busy", messages=[user("Hi")], stream=True, extra_headers={"X-On-Disconnect": "cancel"}
    )
    await anext(stream)
    await stream.close()

    assert await caller.ask([user("Hi")], model="parrot") == "Hi"
    async with asyncio.timeout(15):
        await member_functions.stopped.wait()


async def test_an_answer_without_end_is_a_typed_error(caller: Caller) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await caller.ask([user("Hi")], model="endless")

    assert failed.value.code == "agent_error"
    assert failed.value.body["message"] == "The answer of the agent 'endless' exceeds the size limit."  # type: ignore[index]


@pytest.mark.parametrize(
    ("message", "finish_reason"), [("A tale", "length"), ("A tale for the filter", "content_filter")]
)
async def test_an_incomplete_answer_has_its_finish_reason(
    message: str, finish_reason: str, caller: Caller
) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "tale", "schema": {"type": "object"}}}
    forms: list[dict[str, Any]] = [{}, {"response_format": schema}]
    for form in forms:
        answer = await caller.completion([user(message)], model="shortened", **form)
        (choice,) = answer.choices
        assert (choice.message.content, choice.finish_reason) == ("Once upon", finish_reason)


async def read_all(caller: Caller, message: Any) -> None:
    async for _ in await caller.client.chat.completions.create(
        model="broken", messages=[message], stream=True
    ):
        pass


@pytest.mark.parametrize("when", ["early", "late"])
async def test_an_exception_is_a_typed_error_without_internals(when: str, caller: Caller) -> None:
    with pytest.raises(openai.APIError) as failed:
        await read_all(caller, user(when))

    assert failed.value.code == "agent_failed"
    assert "secret" not in str(failed.value)
    assert "broken" in failed.value.message


@pytest.mark.parametrize(("model", "retries"), [("broken", "false"), ("reading", None)])
async def test_clients_retry_a_failed_function_without_effects_only(
    model: str, retries: str | None, caller: Caller
) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        await caller.ask([user("early")], model=model)

    assert failed.value.response.headers.get("x-should-retry") == retries


async def test_a_member_does_not_limit_the_rest_of_the_team(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.reply(text('{"answer": "yes"}'))
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    form: Any = {"type": "json_object"}
    listed = await caller.client.models.retrieve("desk")

    await caller.ask([user([image])], model="desk", response_format=form, temperature=0.1)

    assert listed.model_extra is not None
    assert listed.model_extra["handoff"]["capabilities"]["images"] is True
    body = upstream.requests[0].body
    assert (body["temperature"], body["response_format"]) == (0.1, form)
    assert "x-ignored-parameters" not in caller.headers


async def test_members_are_closed_with_the_server(tmp_path: Path) -> None:
    teams = tmp_path / "teams.yaml"
    teams.write_text('teams: {parrot: {python: "tests.fakes.member_functions:parrot"}}')
    member_functions.parrot.closed.clear()
    async with serve(tmp_path, teams=teams):
        assert not member_functions.parrot.closed.is_set()
    await member_functions.parrot.closed.wait()


OPTIONS = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  desk:
    entry: triage
    agents:
      triage:
        instructions: You are triage.
        handoffs: [{{to: clerk, history: since_handoff, return: true, input: &ticket {ticket}}}]
        delegates: [{{to: counter}}]
      clerk:
        python: tests.fakes.member_functions:clerk
        handoffs: [{{to: triage, history: none, input: *ticket}}]
      counter: {{python: "tests.fakes.member_functions:counter"}}
"""
TICKET = "{type: object, properties: {ticket: {type: integer}}, required: [ticket]}"


async def test_invalid_data_of_a_handover_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeUpstream() as upstream:
        teams = tmp_path / "teams.yaml"
        teams.write_text(OPTIONS.format(upstream=upstream.base_url, ticket=TICKET))
        async with serve(tmp_path, teams=teams) as served:
            upstream.reply(calls(("transfer_to_clerk", {"ticket": 3})))
            with pytest.raises(openai.APIStatusError) as failed:
                await Caller(served).ask([user("The wrong ticket of Anna")], model="desk")

    assert failed.value.code == "agent_failed"
    (logged,) = (one for one in caplog.records if one.msg == "member handed over with invalid data")
    facts = {name: value for name, value in vars(logged).items() if name in ("agent", "target")}
    assert facts == {"agent": "clerk", "target": "triage"}
    assert "Anna" not in str(vars(logged))


async def test_a_handover_to_an_agent_without_a_handoff_is_logged_with_the_possible_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teams = tmp_path / "teams.yaml"
    teams.write_text("""\
teams:
  desk:
    entry: lost
    agents:
      lost: {python: "tests.fakes.member_functions:lost", handoffs: [{to: triage}]}
      triage: {instructions: You are triage., handoffs: [{to: lost}]}
""")
    async with serve(tmp_path, teams=teams) as served:
        with pytest.raises(openai.APIStatusError) as failed:
            await Caller(served).ask([user("Call Anna")], model="desk")

    assert failed.value.code == "agent_failed"
    (logged,) = (one for one in caplog.records if one.msg == "member handed over to an unknown agent")
    facts = {name: vars(logged)[name] for name in ("agent", "target", "possible")}
    assert facts == {"agent": "lost", "target": "trige", "possible": "triage"}
    assert "Anna" not in str(vars(logged))


async def test_options_of_handoffs_and_delegates_apply_to_functions(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        teams = tmp_path / "teams.yaml"
        teams.write_text(OPTIONS.format(upstream=upstream.base_url, ticket=TICKET))
        async with serve(tmp_path, teams=teams) as served:
            caller = Caller(served)
            upstream.reply(
                text("Hello."),
                calls(("transfer_to_clerk", {"ticket": 3})),
                calls(("ask_counter", {"task": "count"})),
                text("Counted."),
                calls(("transfer_to_clerk", {"ticket": 4})),
                text("Triage again."),
            )
            messages = [user("Hi")]
            answers = []
            for content in ("First", "Second", "back", ""):
                answers.append(await caller.ask(messages, model="desk"))
                messages += [assistant(answers[-1]), user(content)]

    assert answers[0] == "Hello."
    assert answers[1].startswith("{'ticket': 3} First")
    assert "Hi" not in answers[1]
    assert answers[2] == "Counted."
    assert upstream.requests[3].body["messages"][-1]["content"] == "run 1"
    assert answers[3] == "Triage again."
    assert '"ticket":7' in str(upstream.requests[-1].body["messages"]).replace(" ", "")
