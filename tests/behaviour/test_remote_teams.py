"""A team of another handoff-proxy as an agent: its events are nested, and its approvals are those of this server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.behaviour.chat_client import Caller, assistant, user
from tests.fakes.payment_tool import paid
from tests.fakes.upstream import FakeUpstream, Received, Reply, calls, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAR = """\
models:
  default: {{model: far, base_url: "{upstream}", api_key: k}}
teams:
  bank:
    entry: clerk
    steps: [clerk, payer]
    agents:
      clerk: {{instructions: You are clerk., handoffs: [{{to: payer}}], delegates: [{{to: adviser}}]}}
      payer:
        instructions: You are payer.
        tools: [{{name: "tests.fakes.payment_tool:pay", approval: required}}]
      adviser: {{instructions: You are adviser., tools: [calculate]}}
"""
NEAR = """\
models:
  default: {{model: near, base_url: "{upstream}", api_key: k}}
teams:
  desk:
    entry: lead
    agents:
      lead: {{instructions: You are lead., handoffs: [{{to: bank}}], delegates: [{{to: bank}}]}}
      bank:
        remote: {{base_url: "{far}", model: bank, api_key: test-key}}
        handoffs: [{{to: lead}}]
"""
Play = Callable[[str, list[Any]], Reply]
PAY = ("pay", {"amount": 5, "to": "bob"})


def agent_of(messages: list[Any]) -> str:
    name: str = messages[0]["content"].split(".")[0].removeprefix("You are ")
    return name


def results_in(messages: list[Any]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "tool"]


class Desk:
    """Two servers, the near one with a team of the far one as a member, and the model of the test that runs."""

    def __init__(self) -> None:
        self.play: Play = lambda agent, messages: text("")
        self.seen: list[tuple[str, list[Any]]] = []
        self.folder: Path
        self.near: Served
        self.far: Served

    def answer(self, received: Received) -> Reply:
        messages = received.body["messages"]
        self.seen.append((agent_of(messages), messages))
        return self.play(agent_of(messages), messages)

    @property
    def agents(self) -> list[str]:
        return [agent for agent, _ in self.seen]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    folder = tmp_path_factory.mktemp("teams")
    desk = Desk()
    desk.folder = folder
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream(answer=desk.answer))
        for name, file in (("far", FAR), ("near", NEAR)):
            (folder / name).mkdir()
            far = desk.far.base_url if name == "near" else ""
            (folder / name / "team.yaml").write_text(file.format(upstream=upstream.base_url, far=far))
            served = await stack.enter_async_context(serve(folder / name, teams=folder / name / "team.yaml"))
            setattr(desk, name, served)
        yield desk


@pytest.fixture
def desk(servers: Desk) -> Desk:
    servers.seen.clear()
    return servers


def pays(agent: str, messages: list[Any]) -> Reply:
    """The lead hands over to the bank, whose clerk hands over to the payer, who pays after approval."""
    if agent == "lead":
        return calls(("transfer_to_bank", {}))
    if agent == "clerk":
        return calls(("transfer_to_payer", {"reason": "a payment"}))
    results = results_in(messages)
    if "paid" in results[-1]:
        return text("It is paid.")
    if messages[-1]["role"] == "user" and len(results) > 1:
        return text(f"I heard: {messages[-1]['content']}")
    return calls(PAY, text="One moment.")


async def nested_frames(caller: Caller, turn_id: str) -> list[Any]:
    response = await caller.client.get(f"/turns/{turn_id}/events", cast_to=str)
    frames = [json.loads(line[6:]) for line in response.splitlines() if line.startswith("data: ")]
    nested = [frame for frame in frames if frame["type"] == "member.event"]
    assert {frame["agent"] for frame in nested} <= {"bank"}
    return [frame["data"]["event"] for frame in nested]


async def test_events_of_the_team_and_of_its_delegates_are_nested(desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        done = results_in(messages)
        match agent:
            case "lead":
                return calls(("transfer_to_bank", {}))
            case "adviser":
                return text("42.") if done else calls(("calculate", {"expression": "6*7"}))
            case _:
                return text("It is 42.") if done else calls(("ask_adviser", {"task": "6*7?"}))

    desk.play = play
    caller = Caller(desk.near)
    answer = await caller.completion([user("6*7?")], model="desk", headers={"X-Handoff-Events": "all"})
    events = await nested_frames(caller, answer.id)

    assert answer.choices[0].message.content == "It is 42."
    shown = [(e["type"], e["agent"], e["data"].get("name", "")) for e in events]
    assert shown[0] == ("tool.started", "clerk", "ask_adviser")
    assert shown[-2:] == [("tool.completed", "clerk", "ask_adviser"), ("agent.speaking", "clerk", "")]
    inner = [e["data"]["event"] for e in events if e["type"] == "delegate.event"]
    assert [(e["type"], e["agent"]) for e in inner] == [
        ("tool.started", "adviser"),
        ("tool.completed", "adviser"),
        ("agent.speaking", "adviser"),
    ]
    assert inner[1]["data"]["name"] == "calculate"
    assert {e["data"]["call_id"] for e in events if e["type"] == "delegate.event"} == {
        events[0]["data"]["call_id"]
    }
    extension: Any = (answer.model_extra or {})["handoff"]
    assert (extension["agents"], extension["tool_calls"]) == (["lead", "bank"], 2)
    reasoning = (answer.choices[0].message.model_extra or {})["reasoning_content"]
    assert reasoning.count("adviser calls calculate") == 1


async def test_an_approval_of_the_team_is_one_of_this_server(desk: Desk) -> None:
    """The question names the call, a yes runs it once at the other server, and the stored history is consistent."""
    desk.play = pays
    before = len(paid(desk.folder / "far"))
    caller = Caller(desk.near)
    messages = [user("Pay bob 5.")]
    requested = await caller.completion(messages, model="desk")
    question = requested.choices[0].message.content or ""
    own: Any = await caller.client.get("/approvals", cast_to=object)
    theirs: Any = await desk.far.client("test-key").get("/approvals", cast_to=object)
    messages += [assistant(question), user("yes")]
    answer = await caller.completion(messages, model="desk")
    events = await nested_frames(caller, answer.id)
    messages += [assistant(answer.choices[0].message.content), user("Thanks.")]
    desk.play = lambda agent, messages: text(f"{agent} says bye.")
    last = await caller.ask(messages, model="desk")

    assert question.startswith("One moment.\n\nApproval ")
    assert question.count("Approval ") == 1
    assert '`pay(amount: 5, to: "bob")`' in question
    [one], [other] = own["data"], theirs["data"]
    assert (one["agent"], one["tool"], one["id"] in question) == ("bank", "pay", False)
    assert one["id"].partition("_")[2][:6] in question
    assert (other["agent"], other["id"]) != ("bank", one["id"])
    assert answer.choices[0].message.content == "It is paid."
    assert [(e["type"], e["agent"]) for e in events] == [
        ("approval.decided", "payer"),
        ("tool.started", "payer"),
        ("tool.completed", "payer"),
        ("agent.speaking", "payer"),
    ]
    assert paid(desk.folder / "far")[before:] == ["5 bob"]
    after: Any = await desk.far.client("test-key").get(f"/approvals/{other['id']}", cast_to=object)
    assert after["status"] == "approved"
    # The next message continues the conversation of the other server, with its hidden calls.
    assert last == "payer says bye."
    assert [m["content"] for m in desk.seen[-1][1] if m["role"] == "user"] == ["Pay bob 5.", "yes", "Thanks."]
    assert sum("paid" in result for result in results_in(desk.seen[-1][1])) == 1


@pytest.mark.parametrize("reply", ["no", "What is the weather?"])
async def test_without_a_yes_the_other_server_runs_nothing(desk: Desk, reply: str) -> None:
    desk.play = pays
    before = len(paid(desk.folder / "far"))
    caller = Caller(desk.near)
    messages = [user(f"Pay bob, or not ({reply}).")]
    messages += [assistant(await caller.ask(messages, model="desk")), user(reply)]
    answer = await caller.ask(messages, model="desk")

    assert answer == f"I heard: {reply}"
    assert len(paid(desk.folder / "far")) == before


async def test_a_decision_over_http_is_passed_on(desk: Desk) -> None:
    desk.play = pays
    caller = Caller(desk.near)
    await caller.completion([user("Pay bob over HTTP.")], model="desk", headers={"X-Conversation-Id": "http"})
    approvals: Any = await caller.client.get("/approvals?conversation_id=http", cast_to=object)
    decided: Any = await caller.client.post(
        f"/approvals/{approvals['data'][0]['id']}", body={"decision": "approve"}, cast_to=object
    )
    frames = await caller.client.get(f"/turns/{decided['resumed_turn_id']}/events", cast_to=str)

    assert "It is paid." in "".join(
        json.loads(line[6:])["data"].get("text", "")
        for line in frames.splitlines()
        if line.startswith("data: ")
    )


async def test_calls_of_one_question_can_be_decided_differently(desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        match agent:
            case "lead":
                return calls(("transfer_to_bank", {}))
            case "clerk":
                return calls(("transfer_to_payer", {}))
            case _:
                results = results_in(messages)
                if len(results) < 3:
                    return calls(PAY, ("pay", {"amount": 9, "to": "eve"}))
                return text("; ".join(result for result in results if "paid" in result))

    desk.play = play
    caller = Caller(desk.near)
    await caller.completion([user("Pay both.")], model="desk", headers={"X-Conversation-Id": "mixed"})
    approvals: Any = await caller.client.get("/approvals?conversation_id=mixed", cast_to=object)
    for one in approvals["data"]:
        decision = "approve" if "bob" in one["arguments"] else "refuse"
        decided: Any = await caller.client.post(
            f"/approvals/{one['id']}", body={"decision": decision}, cast_to=object
        )
    frames = await caller.client.get(f"/turns/{decided['resumed_turn_id']}/events", cast_to=str)
    theirs: Any = await desk.far.client("test-key").get(
        "/approvals?conversation_id=mixed:bank&status=all", cast_to=object
    )

    assert "bob" in frames
    assert {("bob" in one["arguments"], one["status"]) for one in theirs["data"]} == {
        (True, "approved"),
        (False, "refused"),
    }


async def test_an_approval_of_a_team_that_is_a_delegate_resumes_it(desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        if agent != "lead":
            return pays(agent, messages)
        done = [result for result in results_in(messages) if "It is paid." in result]
        return text("The bank has paid.") if done else calls(("ask_bank", {"task": "Pay bob 5."}))

    desk.play = play
    caller = Caller(desk.near)
    messages = [user("Let the bank pay bob.")]
    question = await caller.ask(messages, model="desk")
    messages += [assistant(question), user("yes")]
    answer = await caller.ask(messages, model="desk")

    assert '`pay(amount: 5, to: "bob")`' in question
    assert answer == "The bank has paid."
    assert desk.agents == ["lead", "clerk", "payer", "payer", "lead"]


async def test_without_a_way_to_approve_the_question_is_the_answer(desk: Desk) -> None:
    """A conversation that is not stored here: the other server has it, and recognises the decision."""
    desk.play = pays
    caller = Caller(desk.near)
    headers = {"X-Conversation-Id": "unstored"}
    messages = [user("Pay bob, unstored.")]
    question = await caller.ask(messages, model="desk/bank", store=False, headers=headers)
    messages += [assistant(question), user("yes")]
    answer = await caller.ask(messages, model="desk/bank", store=False, headers=headers)
    own: Any = await caller.client.get("/approvals?conversation_id=unstored", cast_to=object)

    assert '`pay(amount: 5, to: "bob")`' in question
    assert answer == "It is paid."
    assert own["data"] == []


async def test_a_shortened_conversation_stays_with_the_active_agent_of_the_team(
    desk: Desk, tmp_path: Path
) -> None:
    """The window of this server is smaller than that of the other one."""

    def play(agent: str, messages: list[Any]) -> Reply:
        if agent.startswith("You write the summary"):
            return text("They spoke about money.")
        return calls(("transfer_to_payer", {})) if agent == "clerk" else text(f"{agent} here.")

    desk.play = play
    file = tmp_path / "team.yaml"
    team = (desk.folder / "near" / "team.yaml").read_text()
    file.write_text(team.replace("api_key: test-key}", "api_key: test-key, context_window: 3000}"))
    messages: list[Any] = []
    async with serve(tmp_path, teams=file) as small:
        caller = Caller(small)
        for number in range(12):
            messages.append(user(f"message {number}: {'word ' * 280}"))
            messages.append(assistant(await caller.ask(messages, model="desk/bank")))

    assert sum(agent.startswith("You write the summary") for agent in desk.agents) >= 2
    assert {message["content"] for message in messages[1::2]} == {"payer here."}


async def test_a_restart_of_both_servers_loses_no_approval(tmp_path: Path) -> None:
    desk = Desk()
    desk.play = pays
    messages = [user("Pay bob 5.")]
    async with FakeUpstream(answer=desk.answer) as upstream:
        for reply in ("", "yes"):
            async with AsyncExitStack() as stack:
                for name, file in (("far", FAR), ("near", NEAR)):
                    (tmp_path / name).mkdir(exist_ok=True)
                    far = desk.far.base_url if name == "near" else ""
                    (tmp_path / name / "team.yaml").write_text(
                        file.format(upstream=upstream.base_url, far=far)
                    )
                    served = await stack.enter_async_context(
                        serve(tmp_path / name, teams=tmp_path / name / "team.yaml")
                    )
                    setattr(desk, name, served)
                messages += [user(reply)] if reply else []
                async with asyncio.timeout(20):
                    answer = await Caller(desk.near).ask(messages, model="desk")
                messages.append(assistant(answer))

    assert answer == "It is paid."


async def test_approval_items_of_the_responses_api_decide_for_the_team(desk: Desk) -> None:
    desk.play = pays
    before = len(paid(desk.folder / "far"))
    client = desk.near.client()
    first = await client.responses.create(
        model="desk",
        input="Pay bob over Responses.",
        include=["handoff.approval_requests"],  # type: ignore[list-item]
    )
    request: Any = first.output[-1]
    decision: Any = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    second = await client.responses.create(model="desk", input=[decision], previous_response_id=first.id)

    assert (request.type, request.name) == ("mcp_approval_request", "pay")
    assert second.output_text == "It is paid."
    assert paid(desk.folder / "far")[before:] == ["5 bob"]


async def test_the_same_yes_again_runs_nothing_twice(desk: Desk) -> None:
    """A regenerate after the payment: both servers use the stored result."""
    desk.play = pays
    before = len(paid(desk.folder / "far"))
    caller = Caller(desk.near)
    messages = [user("Pay bob, and say it again.")]
    messages += [assistant(await caller.ask(messages, model="desk")), user("yes")]
    answers = [await caller.ask(messages, model="desk") for _ in range(2)]

    assert answers == ["It is paid."] * 2
    assert paid(desk.folder / "far")[before:] == ["5 bob"]


async def test_reasoning_of_the_team_is_reported_once(desk: Desk) -> None:
    def play(agent: str, messages: list[Any]) -> Reply:
        if agent == "lead":
            return calls(("transfer_to_bank", {}))
        if agent == "clerk":
            return calls(("transfer_to_payer", {"reason": "a question"}))
        return text("Yes.", reasoning="I think so.")

    desk.play = play
    answer = await Caller(desk.near).completion(
        [user("Can you pay?")], model="desk", headers={"X-Handoff-Events": "all"}
    )

    reasoning = (answer.choices[0].message.model_extra or {})["reasoning_content"]
    assert answer.choices[0].message.content == "Yes."
    assert reasoning.count("I think so.") == 1
    assert reasoning.count("clerk hands over to payer: a question") == 1


async def test_details_that_this_server_hides_are_hidden_inside_too(desk: Desk, tmp_path: Path) -> None:
    desk.play = pays
    file = tmp_path / "team.yaml"
    file.write_text((desk.folder / "near" / "team.yaml").read_text())
    async with serve(tmp_path, teams=file, handoff_details=False) as hidden:
        caller = Caller(hidden)
        answer = await caller.completion(
            [user("Pay bob in secret.")], model="desk", headers={"X-Handoff-Events": "all"}
        )
        frames = await nested_frames(caller, answer.id)

    handoff = next(frame for frame in frames if frame["type"] == "handoff")
    assert handoff["data"] == {"from": "clerk", "to": "payer", "progress": 33}
    assert "a payment" not in json.dumps(frames)
    assert "a payment" not in json.dumps(answer.model_dump())
