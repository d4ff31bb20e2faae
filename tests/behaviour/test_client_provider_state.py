"""Provider state that clients send themselves, and state of answers without calls."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxy.messages import MAX_STATE_BYTES
from tests.behaviour.chat_client import Caller, assistant, result, user
from tests.fakes.providers.chat import ANSWER, SECRET, Body, ChatProvider
from tests.fakes.providers.openai import Gpt55, reasoning_item
from tests.fakes.providers.reasoning import Gemini, LiteLLM
from tests.fakes.providers.rejecting import Mistral
from tests.fakes.replies import Reply, error, text
from tests.fakes.upstream import FakeUpstream
from tests.server import DATABASE, TEAM_FILE, Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up_item", "arguments": "{}"}}
SIGNATURE = {"google": {"thought_signature": f"{SECRET}=="}}
DETAILS = [{"type": "reasoning.encrypted", "index": 0, "data": f"{SECRET}=="}]


def history(**state: Any) -> list[Any]:
    """A list that no conversation of the server has; its call has a result."""
    call = {**CALL, **({"extra_content": state.pop("of_call")} if "of_call" in state else {})}
    message = {"role": "assistant", "content": None, "tool_calls": [call], **state}
    return [user("It broke"), message, result("call_1", "a rocket"), user("Really?")]


def calling(body: Body) -> Any:
    return next(message for message in body["messages"] if message.get("tool_calls"))


async def test_members_that_a_client_sends_reach_the_model_unchanged(tmp_path: Path) -> None:
    async with FakeUpstream(text("Yes.")) as upstream, serve(tmp_path, upstream.base_url) as served:
        requested = history(reasoning_content="I look it up", reasoning_details=DETAILS, of_call=SIGNATURE)
        completion = await Caller(served).completion(requested)
        sent = calling(upstream.requests[0].body)

    assert sent["reasoning_content"] == "I look it up"
    assert sent["reasoning_details"] == DETAILS
    assert sent["tool_calls"][0]["extra_content"] == SIGNATURE
    assert SECRET not in completion.model_dump_json()


async def test_members_of_the_wrong_type_or_over_the_limit_are_dropped(tmp_path: Path) -> None:
    async with (
        FakeUpstream(text("Yes."), text("Yes.")) as upstream,
        serve(tmp_path, upstream.base_url) as served,
    ):
        caller = Caller(served)
        await caller.ask(history(reasoning_content=7, reasoning_details="x", of_call=[1]))
        await caller.ask(history(reasoning_content="x" * MAX_STATE_BYTES))
        sent = [calling(request.body) for request in upstream.requests]

    assert all(message.keys() == {"role", "content", "tool_calls"} for message in sent)
    assert all(message["tool_calls"] == [CALL] for message in sent)


async def test_state_of_a_client_is_stored_but_not_shown(tmp_path: Path) -> None:
    headers = {"X-Conversation-Id": "with-state"}
    async with (
        FakeUpstream(text("Yes."), text("Still.")) as upstream,
        serve(tmp_path, upstream.base_url) as served,
    ):
        caller = Caller(served)
        await caller.ask(history(of_call=SIGNATURE), headers=headers)
        await caller.ask([user("And now?")], headers=headers)
        items = await caller.client.conversations.items.list("with-state", limit=50)
        sent = [calling(request.body) for request in upstream.requests]

    assert [message["tool_calls"][0].get("extra_content") for message in sent] == [SIGNATURE, SIGNATURE]
    assert "look_up_item" in items.to_json()
    assert SECRET not in items.to_json()


async def test_state_of_a_client_is_not_sent_to_a_fallback(tmp_path: Path) -> None:
    async with (
        FakeUpstream(text("Yes.")) as second,
        FakeUpstream(error(401)) as first,
    ):
        team = TEAM_FILE.format(upstream=first.base_url).replace(
            "teams:", f'  other: {{model: other, base_url: "{second.base_url}"}}\nteams:', 1
        )
        file = tmp_path / "teams.yaml"
        file.write_text(team.replace("You are triage.", "You are triage.\n        fallbacks: [other]"))
        async with serve(tmp_path, teams=file) as served:
            answer = await Caller(served).ask(history(reasoning_content="I look", of_call=SIGNATURE))
        bodies = [calling(upstream.requests[0].body) for upstream in (first, second)]

    assert answer == "Yes."
    assert bodies[0]["reasoning_content"] == "I look"
    assert "reasoning_content" not in bodies[1]
    assert bodies[1]["tool_calls"] == [CALL]


async def test_a_provider_that_rejects_members_of_clients_is_called_without_them(tmp_path: Path) -> None:
    class Strict(ChatProvider):
        def rejection(self, body: Body) -> Reply | None:
            known = {"role", "content", "tool_calls", "tool_call_id"}
            for message in body["messages"]:
                if unknown := message.keys() - known:
                    return self._reject(422, f"Extra inputs are not permitted: {sorted(unknown)}")
            return None

    provider = Strict()
    async with FakeUpstream(answer=provider) as upstream, serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        answers = [await caller.ask(history(reasoning_content=f"I look {n}")) for n in range(2)]

    assert len(answers) == 2
    assert len(provider.rejections) == 1


@pytest.mark.parametrize("wire", ["chat", "responses"])
async def test_reasoning_items_of_a_client_reach_the_model_before_their_call(
    tmp_path: Path, wire: str
) -> None:
    provider = Gpt55((("look_up_item", {}),))
    item = reasoning_item(0)
    team = TEAM_FILE.replace("api_key:", f"wire: {wire}, api_key:")
    file = tmp_path / "teams.yaml"
    call = {"type": "function_call", "call_id": "call_1", "name": "look_up_item", "arguments": "{}"}
    async with FakeUpstream(answer=provider) as upstream:
        file.write_text(team.format(upstream=upstream.base_url))
        async with serve(tmp_path, teams=file) as served:
            answer = await served.client().responses.create(
                model="shop",
                store=False,
                input=[
                    {"role": "user", "content": "It broke"},
                    item,  # type: ignore[list-item]
                    call,  # type: ignore[list-item]
                    {"type": "function_call_output", "call_id": "call_1", "output": "a rocket"},
                    {"role": "user", "content": "Really?"},
                ],
            )
        body = upstream.requests[-1].body

    assert answer.output_text == ANSWER
    assert SECRET not in answer.to_json()
    if wire == "responses":
        assert provider.rejections == []
        assert body["input"][1:3] == [item, call]
    else:
        assert SECRET not in json.dumps(body)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("family", [Gemini, Gpt55, LiteLLM])
async def test_state_of_a_text_comes_back_after_a_restart(
    tmp_path: Path, family: Callable[[], ChatProvider | Gpt55], is_streamed: bool
) -> None:
    provider = family()
    messages: list[Any] = []
    async with FakeUpstream(answer=provider) as upstream:
        for content in ("It broke", "Really?", "Thanks"):
            messages.append(user(content))
            async with serve(tmp_path, upstream.base_url) as served:
                if is_streamed:
                    stream = await served.client().chat.completions.create(
                        model="shop", messages=messages, stream=True
                    )
                    chunks = [one async for one in stream]
                    received = "".join(one.model_dump_json() for one in chunks)
                    answer = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
                else:
                    completion = await Caller(served).completion(messages)
                    received = completion.model_dump_json()
                    answer = completion.choices[0].message.content or ""
                messages.append(assistant(answer))
                assert answer == ANSWER
                assert SECRET not in received

    assert set(provider.rejections) <= {"reasoning_effort"}


async def test_a_provider_without_state_is_not_sent_any(tmp_path: Path) -> None:
    async with FakeUpstream(answer=Mistral()) as upstream, serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        first = await caller.ask([user("It broke")])
        await caller.ask([user("It broke"), assistant(first), user("Really?")])
        sent = upstream.requests[-1].body["messages"]

    assert all(message.keys() <= {"role", "content", "tool_calls", "tool_call_id"} for message in sent)


async def test_state_is_gone_with_store_false_and_with_deletion(tmp_path: Path) -> None:
    async with FakeUpstream(answer=Gemini()) as upstream, serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        await caller.ask([user("It broke")], store=False)
        unstored = stored_bytes(served)
        await caller.ask([user("It broke again")], headers={"X-Conversation-Id": "kept"})
        stored = stored_bytes(served)
        await caller.client.conversations.delete("kept")
        deleted = stored_bytes(served)

    assert [SECRET in one for one in (unstored, stored, deleted)] == [False, True, False]


def stored_bytes(served: Served) -> str:
    """Everything that is in the tables of the database."""
    with closing(sqlite3.connect(served.services.settings.data_dir / DATABASE)) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return "".join(str(database.execute(f"SELECT * FROM {table}").fetchall()) for table in tables)
