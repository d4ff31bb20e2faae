"""Agents and teams that callers make over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.chat_client import Caller, agent_of, assistant, user
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

HELPER = {"name": "helper", "instructions": "You are helper. Help."}


async def requested(
    served: Served, method: str, path: str, body: Any = None, *, key: str = "test-key"
) -> httpx2.Response:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
        return await http.request(method, f"{served.url}{path}", json=body)


async def created(served: Served, body: Any, *, kind: str = "agents", key: str = "test-key") -> Any:
    answer = await requested(served, "POST", f"/v1/{kind}", body, key=key)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_custom_agent_answers_under_its_name(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("calculate", {"expression": "6 * 7"})), text("It is 42."))

    agent = await created(served, {**HELPER, "tools": ["calculate"], "limits": {"max_tool_calls": 3}})
    caller = Caller(served)
    answer = await caller.ask([user("6 * 7?")], model="helper")

    assert answer == "It is 42."
    assert agent_of(upstream) == "helper"
    assert upstream.requests[1].body["messages"][-1]["content"] == '{"expression":"6 * 7","result":"42"}'
    times = {name: agent.pop(name) for name in ("created_at", "updated_at")}
    assert isinstance(times["created_at"], int)
    assert agent == {
        "id": "helper", "object": "agent", "name": "helper", "version": 1, "display_name": "",
        "description": "", "instructions": "You are helper. Help.", "model": "default", "tools": ["calculate"],
        "handoffs": [], "delegates": [], "max_parallel_tools": 8, "tool_call_timeout": 30.0,
        "limits": {"max_tool_calls": 3}, "is_editable": True,
    }  # fmt: skip


async def test_custom_agents_hand_over_to_each_other(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_expert", {})), text("I know."), text("Still me."), text("Alone."))
    await created(served, {"name": "expert", "instructions": "You are expert. Know."})
    await created(served, {**HELPER, "handoffs": [{"to": "expert", "when": "it is hard"}]})

    caller = Caller(served)
    first = await caller.ask([user("Hard")], model="helper")
    again = [user("Hard"), assistant(first), user("More")]
    await caller.ask(again, model="helper")
    assert agent_of(upstream) == "expert"
    assert caller.match == "fingerprint"
    await caller.ask([user("Hi")], model="helper/expert")

    assert agent_of(upstream) == "expert"
    listed = [model.id async for model in caller.client.models.list()]
    assert listed[-2:] == ["expert", "helper"]
    facts = await caller.client.models.retrieve("helper")
    assert facts.model_extra is not None
    assert facts.model_extra["handoff"]["agents"] == ["helper", "expert"]


async def test_a_custom_agent_delegates_to_the_version_that_the_conversation_began_with(
    served: Served, upstream: FakeUpstream
) -> None:
    asks = calls(("consult", {"task": "Six times seven"}))
    upstream.reply(asks, text("42."), text("It is 42."), asks, text("Still 42."), text("Yes."))
    delegate = {
        "to": "expert",
        "when": "it is hard",
        "tool": "consult",
        "seconds": 60.0,
        "limits": {"max_model_calls": 5},
    }
    await created(served, {"name": "expert", "instructions": "You are expert. Know."})
    agent = await created(served, {**HELPER, "delegates": [delegate], "limits": {"max_delegate_depth": 1}})
    caller = Caller(served)

    first = await caller.ask([user("Hard")], model="helper")
    of_expert = upstream.requests[1].body["messages"]
    await created(served, {"name": "expert", "instructions": "You are changed. Know."})
    second = await caller.ask([user("Hard"), assistant(first), user("Sure?")], model="helper")

    assert agent["delegates"] == [delegate]
    assert agent["limits"] == {"max_delegate_depth": 1}
    assert (first, second) == ("It is 42.", "Yes.")
    assert "You are expert" in of_expert[0]["content"]
    assert of_expert[1:] == [user("Six times seven")]
    assert "You are expert" in upstream.requests[4].body["messages"][0]["content"]
    deleted = await requested(served, "DELETE", "/v1/agents/expert")
    assert (deleted.status_code, deleted.json()["error"]["code"]) == (400, "agent_in_use")


async def test_handoffs_of_custom_agents_have_the_options_of_team_files(
    served: Served, upstream: FakeUpstream
) -> None:
    ticket = {"type": "object", "properties": {"ticket": {"type": "integer"}}, "required": ["ticket"]}
    handoff = {"to": "back", "when": "", "history": "none", "input": ticket, "return": True}
    upstream.reply(
        calls(("transfer_to_back", {"ticket": "x"})),
        calls(("transfer_to_back", {"ticket": 7})),
        text("Ticket 7."),
        text("Front again."),
    )
    agents = {
        "front": {"instructions": "You are front. Greet.", "handoffs": [handoff]},
        "back": {"instructions": "You are back. Answer."},
    }
    team = await created(served, {"name": "desk", "entry": "front", "agents": agents}, kind="teams")
    caller = Caller(served)
    first = await caller.ask([user("Secret words")], model="desk")
    of_back = upstream.requests[2].body["messages"]
    await caller.ask([user("Secret words"), assistant(first), user("And now?")], model="desk")

    assert team["agents"]["front"]["handoffs"] == [handoff]
    assert first == "Ticket 7."
    assert "Secret words" not in str(of_back)
    assert "ticket" in str(of_back)
    assert agent_of(upstream) == "front"


async def test_a_conversation_keeps_the_version_that_it_began_with(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(*(text(f"Answer {number}") for number in range(6)))
    named = {"X-Conversation-Id": "anna"}

    async with serve(tmp_path, upstream.base_url) as served:
        await created(served, HELPER)
        caller = Caller(served)
        await caller.ask([user("One")], model="helper", headers=named)
        second = await created(served, {**HELPER, "instructions": "You are another. Help."})
        assert second["version"] == 2
        await caller.ask([user("Two")], model="helper", headers=named)
        assert agent_of(upstream) == "helper"
        # Recognised by its messages, and regenerated.
        await caller.ask([user("One"), assistant("Answer 0"), user("Deux")], model="helper")
        assert agent_of(upstream) == "helper"
        await caller.ask([user("New")], model="helper")
        assert agent_of(upstream) == "another"

    async with serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        await caller.ask([user("Three")], model="helper", headers=named)
        assert agent_of(upstream) == "helper"
        await caller.ask([user("Newer")], model="helper")
        assert agent_of(upstream) == "another"
        old = (await requested(served, "GET", "/v1/agents/helper?version=1")).json()
        assert (old["version"], old["instructions"]) == (1, "You are helper. Help.")


async def test_every_worker_knows_it_at_once(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Here"), text("Changed"))

    async with (
        serve(tmp_path, upstream.base_url) as one,
        serve(tmp_path, upstream.base_url) as other,
    ):
        await created(one, HELPER)
        await Caller(other).ask([user("Hi")], model="helper")
        await created(one, {**HELPER, "instructions": "You are changed. Help."})
        await Caller(other).ask([user("Hello")], model="helper")
        assert agent_of(upstream) == "changed"
        await requested(one, "DELETE", "/v1/agents/helper")

        with pytest.raises(openai.NotFoundError):
            await Caller(other).ask([user("Hi")], model="helper")


async def test_an_agent_is_there_for_who_created_it_only(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Mine"))
    await created(served, HELPER)
    await created(served, {**HELPER, "instructions": "You are theirs. Help."}, key="other")

    await Caller(served, "other").ask([user("Hi")], model="helper")
    assert agent_of(upstream) == "theirs"
    for path in ("/v1/agents/helper", "/v1/models/helper"):
        assert (await requested(served, "GET", path, key="third")).status_code == 404
    assert (await requested(served, "DELETE", "/v1/agents/helper", key="third")).status_code == 404
    with pytest.raises(openai.NotFoundError) as missing:
        await Caller(served, "third").ask([user("Hi")], model="helper")
    assert missing.value.code == "model_not_found"


async def test_a_team_is_created_whole(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_second", {})), text("Done"))
    members = {
        "first": {"instructions": "You are first. Ask.", "handoffs": [{"to": "second"}]},
        "second": {"instructions": "You are second. Answer."},
    }

    team = await created(served, {"name": "pair", "entry": "first", "agents": members}, kind="teams")
    await Caller(served).ask([user("Hi")], model="pair")

    assert agent_of(upstream) == "second"
    assert (team["object"], list(team["agents"]), team["version"]) == ("team", ["first", "second"], 1)
    listed = (await requested(served, "GET", "/v1/teams")).json()
    assert [one["id"] for one in listed["data"]] == ["pair"]
    gone = (await requested(served, "DELETE", "/v1/teams/pair")).json()
    assert gone == {"id": "pair", "object": "team.deleted", "deleted": True}
    assert (await requested(served, "GET", "/v1/teams/pair")).status_code == 404


async def test_the_list_has_agents_and_available_options(served: Served) -> None:
    await created(served, HELPER)

    listed = (await requested(served, "GET", "/v1/agents")).json()

    assert [(one["id"], one["is_editable"]) for one in listed["data"]] == [
        ("helper", True), ("shop/triage", False), ("shop/sales", False), ("shop/repairs", False),
    ]  # fmt: skip
    assert "instructions" not in listed["data"][1]
    assert listed["options"]["models"] == ["default"]
    tools = {tool["name"]: tool["description"] for tool in listed["options"]["tools"]}
    assert "calculate" in tools
    assert "execute_order" not in tools
    assert (await requested(served, "GET", "/v1/agents?limit=1")).json()["has_more"] is True
    of_file = (await requested(served, "GET", "/v1/agents/shop/sales")).json()
    assert (of_file["id"], of_file["tools"]) == ("shop/sales", ["execute_order"])


async def test_who_is_handed_over_to_is_not_deleted(served: Served) -> None:
    await created(served, {"name": "expert", "instructions": "Know."})
    await created(served, {**HELPER, "handoffs": [{"to": "expert"}]})

    refused = await requested(served, "DELETE", "/v1/agents/expert")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "agent_in_use")
    assert (await requested(served, "DELETE", "/v1/agents/helper")).status_code == 200
    assert (await requested(served, "DELETE", "/v1/agents/expert")).status_code == 200


async def test_instructions_are_text_and_nothing_else(
    served: Served, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    upstream.reply(text("Hi"))
    content = "You are ${SECRET} {agent} {{ 7 * 7 }} %(secret)s."

    await created(served, {**HELPER, "instructions": content})
    await Caller(served).ask([user("Hi")], model="helper")

    assert upstream.requests[0].body["messages"][0]["content"] == content


async def test_a_removed_tool_or_model_is_reported(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url) as served:
        await created(served, {**HELPER, "tools": ["calculate"]})

    async with serve(tmp_path, upstream.base_url, agent_tools=("get_time",)) as served:
        with pytest.raises(openai.BadRequestError) as refused:
            await Caller(served).ask([user("Hi")], model="helper")
    assert refused.value.code == "agent_outdated"


async def test_a_tool_with_approval_requires_it_for_custom_agents(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    (tmp_path / "teams.yaml").write_text(
        f"""
models: {{default: {{model: m, base_url: "{upstream.base_url}", api_key: k}}}}
teams:
  bank:
    entry: teller
    agents:
      teller:
        instructions: You are teller. Pay.
        tools: [{{name: calculate, approval: required}}]
"""
    )
    upstream.reply(calls(("calculate", {"expression": "1+1"})), text("Two"))

    async with serve(tmp_path, upstream.base_url, teams=tmp_path / "teams.yaml") as served:
        await created(served, {**HELPER, "tools": ["calculate"]})
        caller = Caller(served)
        named = {"X-Conversation-Id": "anna"}
        question = await caller.ask([user("1+1?")], model="helper", headers=named)
        assert "Reply yes or no" in question
        await created(served, {**HELPER, "instructions": "You are newer. Help."})
        assert await caller.ask([user("yes")], model="helper", headers=named) == "Two"

    assert agent_of(upstream) == "helper"


async def test_it_can_be_switched_off(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, agents_over_http=False) as served:
        for method, path in (("GET", "/v1/agents"), ("POST", "/v1/agents"), ("POST", "/agents/x")):
            answer = await requested(served, method, path, HELPER if method == "POST" else None)
            assert answer.status_code == 404
            assert "are disabled on this server" in answer.json()["error"]["message"]


async def test_a_caller_makes_no_more_than_it_may(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, max_agents=1) as served:
        await created(served, HELPER)
        answer = await requested(served, "POST", "/v1/agents", {**HELPER, "name": "second"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_agents")


BAD: list[tuple[str, Any, str | None, str | None]] = [
    ("/v1/agents", [], None, None),
    ("/v1/agents", {}, "instructions", "missing_required_parameter"),
    ("/v1/agents", {"instructions": "x"}, "name", "missing_required_parameter"),
    ("/v1/agents", {**HELPER, "name": "no spaces"}, "name", None),
    ("/v1/agents", {**HELPER, "name": "x" * 65}, "name", None),
    ("/v1/agents", {**HELPER, "name": "shop"}, "name", "name_taken"),
    ("/v1/agents", {**HELPER, "instructions": ""}, "instructions", None),
    ("/v1/agents", {**HELPER, "instructions": "x" * 40_000}, "instructions", "string_above_max_length"),
    ("/v1/agents", {**HELPER, "instructions": 7}, "instructions", "invalid_type"),
    ("/v1/agents", {**HELPER, "model": "gpt-none"}, "model", "invalid_value"),
    ("/v1/agents", {**HELPER, "tools": ["calculate", "execute_order"]}, "tools[1]", "invalid_value"),
    ("/v1/agents", {**HELPER, "tools": ["os:system"]}, "tools[0]", "invalid_value"),
    ("/v1/agents", {**HELPER, "tools": "calculate"}, "tools", "invalid_type"),
    ("/v1/agents", {**HELPER, "handoffs": [{"to": "nobody"}]}, "handoffs[0].to", "invalid_value"),
    ("/v1/agents", {**HELPER, "handoffs": [{"to": "helper"}]}, "handoffs[0].to", "invalid_value"),
    ("/v1/agents", {**HELPER, "delegates": [{"to": "helper"}]}, "delegates[0].to", "invalid_value"),
    ("/v1/agents", {**HELPER, "delegates": [{"team": "shop"}]}, "delegates", None),
    (
        "/v1/teams",
        {"name": "t", "entry": "a", "agents": {"a": {"instructions": "x", "delegates": [{"to": "c"}]}}},
        "agents.a.delegates[0].to",
        "invalid_value",
    ),
    *(
        (
            "/v1/teams",
            {
                "name": "t",
                "entry": "a",
                "agents": {
                    "a": {"instructions": "x", "handoffs": [{"to": "b", **options}], "delegates": [{"to": "b"}]},
                    "b": {"instructions": "y"},
                    "x" * 60: {"instructions": "y"},
                },
            },
            param,
            None,
        )
        for options, param in (
            ({"input": {"type": "string"}}, "agents.a.handoffs[0].input"),
            ({"input": {"type": "object", "properties": 7}}, "agents.a.handoffs[0].input"),
            ({"input": {"type": "object", "description": "x" * 20_000}}, "agents.a.handoffs[0].input"),
            ({"history": "some"}, "agents"),
            ({"tool": "a b"}, "agents"),
            ({"tool": "ask_b"}, "agents.a.delegates[0].to"),
            ({"to": "x" * 60}, "agents.a.handoffs[0].to"),
        )
    ),
    ("/v1/agents", {**HELPER, "max_parallel_tools": 0}, "max_parallel_tools", "integer_below_min_value"),
    ("/v1/agents", {**HELPER, "tool_call_timeout": -1}, "tool_call_timeout", None),
    ("/v1/agents", {**HELPER, "limits": {"turn_seconds": 1e9}}, "limits.turn_seconds", None),
    ("/v1/agents", {**HELPER, "limits": {"dollars": 1}}, "limits", None),
    ("/v1/agents/other", HELPER, "name", "invalid_value"),
    ("/v1/teams", {"name": "t", "entry": "a", "agents": {}}, "agents", None),
    ("/v1/teams", {"name": "t", "entry": "b", "agents": {"a": {"instructions": "x"}}}, "entry", "invalid_value"),
    (
        "/v1/teams",
        {"name": "t", "entry": "a", "agents": {"a": {"instructions": "x", "handoffs": [{"to": "c"}]}}},
        "agents.a.handoffs[0].to",
        "invalid_value",
    ),
    *(
        ("/v1/agents", {**HELPER, key: value}, key, "unknown_parameter")
        for key, value in {
            "base_url": "http://169.254.169.254", "api_key": "sk-x", "provider": "os.system", "command": "id",
            "headers": {"a": "b"}, "parameters": {"temperature": 1}, "mcp_servers": {}, "path": "/etc/passwd",
        }.items()
    ),
]  # fmt: skip


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("path", "body", "param", "code"), BAD, ids=[str(number) for number in range(len(BAD))]
)
async def test_an_invalid_definition_is_rejected_and_not_stored(
    path: str, body: Any, param: str | None, code: str | None, open_shop: tuple[Served, FakeUpstream]
) -> None:
    served, _ = open_shop

    answer = await requested(served, "POST", path, body)
    stored = (await requested(served, "GET", "/v1/agents")).json()["data"]

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert len(answer.content) < 2000
    assert not any(one["is_editable"] for one in stored)


# --- legacy clients ------------------------------------------------------------------------------------------


async def test_a_legacy_client_creates_and_uses_an_agent(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"), text("Hello again"), text("Sold"))
    body = {
        "name": "poet", "instructions": "You are poet. Rhyme.", "model": "gpt-4o",
        "max_parallel_tools": 3, "tool_call_timeout": 12,
    }  # fmt: skip

    agent = (await requested(served, "POST", "/agents/poet", body)).json()
    listed = (await requested(served, "GET", "/agents")).json()["agents"]
    chat = (await requested(served, "POST", "/chat", {"message": "Hi", "agent": "poet"})).json()
    lines = await requested(served, "POST", "/chat/completions", {"message": "Hi", "agent": "poet"})
    await requested(served, "POST", "/chat", {"message": "Hi", "agent": "sales", "reset_history": True})

    assert (agent["name"], agent["max_parallel_tools"], agent["tool_call_timeout"]) == ("poet", 3, 12)
    assert listed[-1] == agent
    assert (chat["response"], chat["agent"]) == ("Hello", "poet")
    assert '"message":"Hello' in lines.text
    assert [agent_of(upstream, number) for number in range(3)] == ["poet", "poet", "sales"]


async def test_legacy_agent_has_the_id_of_the_path_and_a_name_for_people(served: Served) -> None:
    body = {"name": "MyAssistant", "instructions": "You help."}

    agent = (await requested(served, "POST", "/agents/my_custom_agent", body)).json()
    model = (await requested(served, "GET", "/v1/models/my_custom_agent")).json()

    assert (agent["name"], agent["model"], agent["display_name"]) == (
        "my_custom_agent",
        "my_custom_agent",
        "MyAssistant",
    )
    assert (model["id"], model["name"]) == ("my_custom_agent", "MyAssistant")


async def test_a_legacy_client_gets_validation_errors(served: Served) -> None:
    for path, body, param in (
        ("/agents/poet", {"name": "poet"}, "instructions"),
        ("/agents/no%20way", {"instructions": "x"}, "name"),
        ("/agents/poet", {"instructions": "x", "tools": []}, "tools"),
    ):
        answer = await requested(served, "POST", path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert answer.json()["detail"] == answer.json()["error"]["message"]
