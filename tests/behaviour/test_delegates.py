"""Agents call other agents and teams as tools: in parallel, bounded, and without their failures ending the turn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.behaviour.chat_client import Caller, assistant, user
from tests.fakes.upstream import FakeUpstream, Received, Reply, calls, error, hang, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k, price: {{prompt: 1, completion: 1}}}}
teams:
  desk:
    entry: lead
    limits: {{max_model_calls: 100, max_tool_calls: 100}}
    agents:
      lead:
        instructions: You are lead.
        max_parallel_tools: 16
        delegates:
          - {{to: researcher, when: facts are needed, seconds: {seconds}}}
          - {{to: payer, context: conversation}}
          - {{team: library}}
      researcher:
        instructions: You are researcher.
        description: Finds facts.
        tools: [calculate]
        delegates: [{{to: researcher2, tool: ask_deeper}}, {{to: payer, tool: ask_for_payment}}]
      researcher2:
        instructions: You are researcher2.
        delegates: [{{to: researcher, tool: ask_back}}]
      payer:
        instructions: You are payer.
        tools: [{{name: "tests.fakes.payment_tool:pay", approval: required}}]
  library:
    entry: librarian
    description: Finds books.
    agents:
      librarian: {{instructions: You are librarian., handoffs: [{{to: archivist, tool: to_archivist}}]}}
      archivist: {{instructions: You are archivist.}}
"""
Play = Callable[[str, list[Any]], Reply]


def agent_of(messages: list[Any]) -> str:
    name: str = messages[0]["content"].split(".")[0].removeprefix("You are ")
    return name


def results_in(messages: list[Any]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "tool"]


class Desk:
    """The server, the provider, and the model of the test that runs."""

    def __init__(self, served: Served, upstream: FakeUpstream) -> None:
        self.served = served
        self.upstream = upstream
        self.play: Play = lambda agent, messages: text("")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    stage: list[Desk] = []

    def answer(received: Received) -> Reply:
        messages = received.body["messages"]
        return stage[0].play(agent_of(messages), messages)

    async with FakeUpstream(answer=answer) as upstream:
        (folder / "team.yaml").write_text(TEAM.format(upstream=upstream.base_url, seconds=3))
        async with serve(folder, teams=folder / "team.yaml") as served:
            stage.append(Desk(served, upstream))
            yield stage[0]


@asynccontextmanager
async def desk(open_desk: Desk, play: Play) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    """The server for one test, with a client of its own."""
    open_desk.play = play
    yield open_desk.served, open_desk.upstream.forget()


async def test_the_answer_of_a_delegate_is_the_result_of_the_call(open_desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        if agent == "researcher":
            return text("42 it is.") if results_in(messages) else calls(("calculate", {"expression": "6*7"}))
        return (
            text("The lead says 42.") if results_in(messages) else calls(("ask_researcher", {"task": "6*7?"}))
        )

    async with desk(open_desk, play) as (served, upstream):
        caller = Caller(served)
        answer = await caller.completion(
            [user("What is 6*7?")], model="desk", headers={"X-Handoff-Events": "all"}
        )

    seen = [request.body["messages"] for request in upstream.requests]
    assert answer.choices[0].message.content == "The lead says 42."
    assert [agent_of(messages) for messages in seen] == ["lead", "researcher", "researcher", "lead"]
    assert [m["content"] for m in seen[1]] == ["You are researcher.", "6*7?"]
    assert results_in(seen[3]) == ["42 it is."]
    tool = next(t for t in upstream.requests[0].body["tools"] if t["function"]["name"] == "ask_researcher")
    assert tool["function"]["description"] == (
        "Give researcher a task and get its answer. Finds facts. facts are needed"
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4 * 18
    extension: Any = (answer.model_extra or {})["handoff"]
    assert [(use["agent"], use["calls"]) for use in extension["usage"]] == [("lead", 2), ("researcher", 2)]
    assert extension["cost"] == pytest.approx(4 * 18 / 1_000_000)


async def test_ten_in_parallel_of_which_one_hangs_one_fails_and_one_asks_for_approval(
    open_desk: Desk,
) -> None:
    """The others' answers are used, and the approval resumes only the delegate that asked."""
    tasks = [("ask_researcher", {"task": f"task {n}"}) for n in range(9)] + [
        ("ask_payer", {"task": "pay 5 to bob"})
    ]
    arrived = asyncio.Event()
    running: set[str] = set()

    def play(agent: str, messages: list[Any]) -> Reply:
        task = messages[-1]["content"]
        if agent == "lead":
            done = results_in(messages)
            return calls(*tasks) if not done else text(f"Done: {len(done)} results. Last: {done[-1]}")
        if agent == "payer":
            results = results_in(messages)
            return (
                text(f"Paid: {results[-1]}")
                if len(results) > 1
                else calls(("pay", {"to": "bob", "amount": 500}))
            )
        running.add(task)
        if len(running) == 9:
            arrived.set()
        if task == "task 3":
            return hang()
        if task == "task 4":
            return error(400, code="invalid_request", message="broken")
        return text(f"answer of {task}").held(arrived)

    async with desk(open_desk, play) as (served, upstream):
        caller = Caller(served)
        messages = [user("Do all of it.")]
        question = await caller.ask(messages, model="desk")
        requested = len(upstream.requests)
        messages += [assistant(question), user("yes")]
        answer = await caller.ask(messages, model="desk")
        after = [agent_of(request.body["messages"]) for request in upstream.requests[requested:]]
        last = results_in(upstream.requests[-1].body["messages"])

    assert question.startswith("Approval ")
    assert '`pay(to: "bob", amount: 500)`' in question
    assert after == ["payer", "lead"]
    assert last[:3] == [f"answer of task {n}" for n in range(3)]
    assert last[3].startswith("error:")
    assert last[4] == "error: researcher failed: The model's provider rejected the request."
    assert last[5:9] == [f"answer of task {n}" for n in range(5, 9)]
    assert "needs the user's approval" in last[9]
    assert last[10] == "Paid: paid 500 to bob"
    assert answer == "Done: 11 results. Last: Paid: paid 500 to bob"


async def test_a_refusal_leaves_the_call_unexecuted(open_desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        if agent == "payer":
            return calls(("pay", {"to": "bob", "amount": 500}))
        return (
            text("Fine, no payment.") if results_in(messages) else calls(("ask_payer", {"task": "pay bob"}))
        )

    async with desk(open_desk, play) as (served, upstream):
        caller = Caller(served)
        messages = [user("Pay bob.")]
        messages += [assistant(await caller.ask(messages, model="desk")), user("no")]
        answer = await caller.ask(messages, model="desk")

    assert answer == "Fine, no payment."
    assert [agent_of(r.body["messages"]) for r in upstream.requests] == ["lead", "payer", "lead"]


async def test_a_decision_over_http_resumes_the_delegate(open_desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        if agent == "payer":
            is_paid = len(results_in(messages)) > 1
            return text("Paid.") if is_paid else calls(("pay", {"to": "bob", "amount": 500}))
        done = [result for result in results_in(messages) if result == "Paid."]
        return text("All is paid.") if done else calls(("ask_payer", {"task": "pay bob"}))

    async with desk(open_desk, play) as (served, _):
        caller = Caller(served)
        await caller.completion([user("Pay bob.")], model="desk", headers={"X-Conversation-Id": "c"})
        approvals: Any = await caller.client.get("/approvals", cast_to=object)
        decided: Any = await caller.client.post(
            f"/approvals/{approvals['data'][0]['id']}", body={"decision": "approve"}, cast_to=object
        )
        async with asyncio.timeout(10):
            while True:
                items: Any = await caller.client.get("/conversations/c/items?limit=100", cast_to=object)
                if "All is paid." in json.dumps(items):
                    break
                await asyncio.sleep(0.02)

    assert decided["status"] == "approved"


async def test_a_delegate_with_the_conversation_sees_earlier_messages(open_desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        if agent == "payer":
            return text("Noted.")
        return text("Ok.") if results_in(messages) else calls(("ask_payer", {"task": "who?"}))

    async with desk(open_desk, play) as (served, upstream):
        await Caller(served).ask([user("I am Ann.")], model="desk")
        seen = upstream.requests[1].body["messages"]

    assert [(m["role"], m["content"]) for m in seen] == [
        ("system", "You are payer."),
        ("user", "I am Ann."),
        ("user", "who?"),
    ]


async def test_a_team_as_delegate_hands_off_inside(open_desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        match agent:
            case "librarian":
                return calls(("to_archivist", {"reason": "old"}))
            case "archivist":
                return text("Shelf 7.")
            case _:
                done = results_in(messages)
                return text(f"It is on {done[-1]}") if done else calls(("ask_library", {"task": "Find it."}))

    async with desk(open_desk, play) as (served, _):
        caller = Caller(served)
        answer = await caller.completion(
            [user("Where is it?")], model="desk", headers={"X-Handoff-Events": "all"}
        )
        again = await caller.completion(
            [user("Where is it?"), assistant(answer.choices[0].message.content), user("Thanks")], model="desk"
        )

    extension: Any = (answer.model_extra or {})["handoff"]
    assert answer.choices[0].message.content == "It is on Shelf 7."
    assert extension["agents"] == ["lead"]
    assert [use["agent"] for use in extension["usage"]] == ["lead", "librarian", "archivist"]
    assert again.choices[0].message.content == "It is on Shelf 7."


async def test_depth_is_bounded(open_desk: Desk) -> None:
    depths: list[str] = []

    def play(agent: str, messages: list[Any]) -> Reply:
        depths.append(agent)
        tool = {"lead": "ask_researcher", "researcher": "ask_deeper", "researcher2": "ask_back"}[agent]
        return text("Done.") if results_in(messages) else calls((tool, {"task": "deeper"}))

    async with desk(open_desk, play) as (served, upstream):
        answer = await Caller(served).ask([user("Go.")], model="desk")
        offered = [
            [tool["function"]["name"] for tool in request.body.get("tools") or ()]
            for request in upstream.requests
        ]

    assert answer == "Done."
    assert depths[:4] == ["lead", "researcher", "researcher2", "researcher"]
    assert "ask_deeper" not in offered[3]
    assert "error: no further delegation is possible here" in json.dumps(upstream.requests[4].body)


async def test_the_limits_of_the_turn_include_delegates(open_desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        return (
            calls(("calculate", {"expression": "1"}))
            if agent == "researcher"
            else calls(("ask_researcher", {"task": "loop"}))
        )

    async with desk(open_desk, play) as (served, upstream):
        answer = await Caller(served).completion([user("Go.")], model="desk")

    assert answer.choices[0].finish_reason == "length"
    assert len(upstream.requests) <= 100


async def test_excess_delegates_are_error_results_and_the_caller_answers(tmp_path: Path) -> None:
    """25 model calls is the default limit of a turn: the caller needs two of them."""
    tasks = [("ask_worker" if number % 2 else "ask_function", {"task": f"{number}"}) for number in range(40)]

    def answer(received: Received) -> Reply:
        messages = received.body["messages"]
        if agent_of(messages) == "worker":
            return text("done")
        return text(json.dumps(results_in(messages))) if results_in(messages) else calls(*tasks)

    (tmp_path / "counted_delegate.py").write_text(
        "from proxy.members import ModelUsed, Usage\n\n\n"
        "async def run(messages, context):\n"
        "    yield 'done'\n"
        "    for _ in range(5):\n"
        "        yield ModelUsed('m', Usage())\n"
    )
    team = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k}}
teams:
  desk:
    entry: lead
    agents:
      lead: {{instructions: You are lead., delegates: [{{to: worker}}, {{to: function}}]}}
      worker: {{instructions: You are worker.}}
      function: {{python: "counted_delegate:run"}}
"""
    async with FakeUpstream(answer=answer) as upstream:
        (tmp_path / "team.yaml").write_text(team.format(upstream=upstream.base_url))
        async with serve(tmp_path, teams=tmp_path / "team.yaml") as served:
            answered = await Caller(served).completion([user("Hi")], model="desk")
        agents = [agent_of(request.body["messages"]) for request in upstream.requests]

    (choice,) = answered.choices
    assert choice.finish_reason == "stop"
    results = json.loads(choice.message.content or "")
    assert len(results) == 40
    excess = {
        "error: worker gave no answer before a limit was reached",
        "error: function gave no answer before a limit was reached",
    }
    assert set(results) == {"done", *excess}
    assert agents.count("lead") == 2
    assert len(agents) < 25


async def test_a_run_has_its_own_limits(tmp_path: Path) -> None:
    """A delegate that reaches them, or whose code fails, is an error result, and the caller continues."""
    team = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k}}
teams:
  desk:
    entry: lead
    agents:
      lead:
        instructions: You are lead.
        delegates: [{{to: looper, limits: {{max_model_calls: 2}}}}, {{to: broken}}, {{team: library}}]
      looper: {{instructions: You are looper., tools: [calculate]}}
      broken: {{python: "broken_delegate:run"}}
  library:
    entry: librarian
    limits: {{max_model_calls: 1}}
    agents: {{librarian: {{instructions: You are librarian., tools: [calculate]}}}}
"""
    loop = calls(("calculate", {"expression": "1"}))

    def answer(received: Received) -> Reply:
        messages = received.body["messages"]
        match agent_of(messages):
            case "lead" if not results_in(messages):
                tools = ("ask_looper", "ask_broken", "ask_library")
                return calls(*((tool, {"task": "x"}) for tool in tools))
            case "lead":
                return text(json.dumps(results_in(messages)))
            case _:
                return loop

    (tmp_path / "broken_delegate.py").write_text(
        "async def run(messages, context):\n    yield 'a part'\n    raise ValueError('secret')\n"
    )
    async with FakeUpstream(answer=answer) as upstream:
        (tmp_path / "team.yaml").write_text(team.format(upstream=upstream.base_url))
        async with serve(tmp_path, teams=tmp_path / "team.yaml") as served:
            said = json.loads(await Caller(served).ask([user("Hi")], model="desk"))
        agents = [agent_of(request.body["messages"]) for request in upstream.requests]

    assert said == [
        "error: looper gave no answer before a limit was reached",
        "error: broken failed: The agent 'broken' failed.",
        "error: library gave no answer before a limit was reached",
    ]
    assert sorted(agents) == ["lead", "lead", "librarian", "looper", "looper"]


async def test_cancelling_the_turn_ends_its_delegates(open_desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        return (
            hang()
            if agent == "researcher"
            else calls(("ask_researcher", {"task": "a"}), ("ask_researcher", {"task": "b"}))
        )

    async with desk(open_desk, play) as (served, upstream):
        client = Caller(served).client
        stream = await client.chat.completions.create(model="desk", messages=[user("Go.")], stream=True)
        turn_id = (await anext(aiter(stream))).id
        await upstream.received(3)
        cancelled: Any = await client.post(f"/chat/completions/{turn_id}/cancel", cast_to=object)
        for request in upstream.requests[1:]:
            await request.closed()

    assert cancelled["status"] == "cancelled"


async def test_the_feed_has_the_events_of_delegates_under_their_call(open_desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        if agent == "researcher":
            return text("42.") if results_in(messages) else calls(("calculate", {"expression": "6*7"}))
        return text("It is 42.") if results_in(messages) else calls(("ask_researcher", {"task": "6*7?"}))

    async with desk(open_desk, play) as (served, _):
        caller = Caller(served)
        answer = await caller.completion([user("What is 6*7?")], model="desk")
        response = await caller.client.get(f"/turns/{answer.id}/events", cast_to=str)

    frames = [json.loads(line[6:]) for line in response.splitlines() if line.startswith("data: ")]
    started = next(frame for frame in frames if frame["type"] == "tool.started")
    nested = [frame for frame in frames if frame["type"] == "delegate.event"]
    assert started["data"]["name"] == "ask_researcher"
    assert {frame["data"]["call_id"] for frame in nested} == {started["data"]["call_id"]}
    assert {frame["agent"] for frame in nested} == {"lead"}
    assert {frame["data"]["event"]["agent"] for frame in nested} == {"researcher"}
    types = [frame["data"]["event"]["type"] for frame in nested]
    assert [t for t in types if not t.endswith("delta")] == [
        "turn.started",
        "usage",
        "tool.started",
        "tool.completed",
        "agent.speaking",
        "usage",
    ]
    texts = [f["data"]["event"]["data"] for f in nested if f["data"]["event"]["type"] == "text.delta"]
    assert "".join(one["text"] for one in texts) == "42."
    said = [frame["data"]["text"] for frame in frames if frame["type"] == "text.delta"]
    assert "".join(said) == "It is 42."


def pays_through_researcher(agent: str, messages: list[Any]) -> Reply:
    done = [result for result in results_in(messages) if "needs the user's approval" not in result]
    match agent:
        case "payer":
            paid = [result for result in done if not result.startswith("not executed")]
            return text("Paid.") if paid else calls(("pay", {"to": "bob", "amount": 500}))
        case "researcher":
            return (
                text(f"The payer says: {done[-1]}") if done else calls(("ask_for_payment", {"task": "pay"}))
            )
        case _:
            return text(f"Researcher: {done[-1]}") if done else calls(("ask_researcher", {"task": "pay bob"}))


async def test_an_approval_reaches_through_two_delegates(open_desk: Desk) -> None:
    async with desk(open_desk, pays_through_researcher) as (served, upstream):
        caller = Caller(served)
        messages = [user("Pay bob, please.")]
        question = await caller.ask(messages, model="desk")
        messages += [assistant(question), user("yes")]
        answer = await caller.ask(messages, model="desk")

    assert '`pay(to: "bob", amount: 500)`' in question
    assert answer == "Researcher: The payer says: Paid."
    assert [agent_of(request.body["messages"]) for request in upstream.requests] == [
        *("lead", "researcher", "payer"),
        *("payer", "researcher", "lead"),
    ]


async def test_a_delegate_that_waits_is_resumed_after_a_restart(tmp_path: Path) -> None:
    stage: list[Play] = [pays_through_researcher]
    async with FakeUpstream(
        answer=lambda received: stage[0](agent_of(received.body["messages"]), received.body["messages"])
    ) as upstream:
        (tmp_path / "team.yaml").write_text(TEAM.format(upstream=upstream.base_url, seconds=3))
        messages = [user("Pay bob.")]
        async with serve(tmp_path, teams=tmp_path / "team.yaml") as served:
            messages.append(assistant(await Caller(served).ask(messages, model="desk")))
        messages.append(user("yes"))
        async with serve(tmp_path, teams=tmp_path / "team.yaml") as served:
            answer = await Caller(served).ask(messages, model="desk")

    assert answer == "Researcher: The payer says: Paid."


async def test_a_pending_delegate_is_not_resumed_by_another_message(open_desk: Desk) -> None:
    async with desk(open_desk, pays_through_researcher) as (served, upstream):
        caller = Caller(served)
        messages = [user("Pay bob now.")]
        messages += [assistant(await caller.ask(messages, model="desk")), user("What is the weather?")]
        upstream.forget()
        open_desk.play = lambda agent, messages: text("Sunny.")
        answer = await caller.ask(messages, model="desk")

    assert answer == "Sunny."
    assert [agent_of(request.body["messages"]) for request in upstream.requests] == ["lead"]


async def test_the_time_limit_in_the_limits_of_a_delegate_applies_to_each_run(tmp_path: Path) -> None:
    team = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k}}
teams:
  desk:
    entry: lead
    agents:
      lead: {{instructions: You are lead., delegates: [{{to: slow, limits: {{turn_seconds: 0.2}}}}]}}
      slow: {{instructions: You are slow.}}
"""

    def answer(received: Received) -> Reply:
        messages = received.body["messages"]
        if agent_of(messages) == "slow":
            return hang()
        return text(results_in(messages)[0]) if results_in(messages) else calls(("ask_slow", {"task": "x"}))

    async with FakeUpstream(answer=answer) as upstream:
        (tmp_path / "team.yaml").write_text(team.format(upstream=upstream.base_url))
        async with serve(tmp_path, teams=tmp_path / "team.yaml") as served:
            said = await Caller(served).ask([user("Hi")], model="desk")

    assert said.startswith("error: slow failed: ")
    assert "0.2 seconds" in said
