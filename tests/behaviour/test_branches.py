"""A conversation as a tree: its list, its turns, and branches that a client asks for by a turn's id."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.chat_client import Caller, agent_of, assistant, shape_of, user
from tests.fakes.upstream import FakeUpstream, calls, error, text
from tests.server import Served


async def get(served: Served, path: str, *, key: str = "test-key", **query: str) -> Any:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
        answer = await http.get(f"{served.base_url}{path}", params=query)
    return answer.json()


async def talked(caller: Caller, upstream: FakeUpstream, question: str, answer: str, **headers: str) -> str:
    """One turn; returns its id."""
    upstream.reply(text(answer))
    completion = await caller.completion([user(question)], headers={"X-Conversation-Id": "anna", **headers})
    return completion.id


async def test_messages_follow_the_turn_that_is_named(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    first = await talked(caller, upstream, "One", "1")
    second = await talked(caller, upstream, "Two", "2")

    other = await talked(caller, upstream, "Deux", "2f", **{"X-Parent-Id": first})
    assert (caller.match, caller.conversation) == ("parent-id", "anna")
    assert shape_of(upstream) == ["system", "user:One", "assistant:1", "user:Deux"]
    regenerated = await talked(caller, upstream, "Un", "1f", **{"X-Parent-Id": "root"})
    assert shape_of(upstream) == ["system", "user:Un"]
    await talked(caller, upstream, "More", "3", **{"X-Parent-Id": other})
    assert shape_of(upstream) == [
        "system",
        "user:One",
        "assistant:1",
        "user:Deux",
        "assistant:2f",
        "user:More",
    ]

    tree = await get(served, "/conversations/anna/turns")
    assert [(turn["id"], turn["parent_id"]) for turn in tree["data"]][:4] == [
        (first, None),
        (second, first),
        (other, first),
        (regenerated, None),
    ]
    assert tree["head_id"] == tree["data"][-1]["id"]


async def test_a_turn_in_the_tree_has_messages_and_events(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "a rocket"}), text="One moment."),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("Ordered."),
    )
    await caller.completion([user("A rocket")], headers={"X-Conversation-Id": "anna"})

    (turn,) = (await get(served, "/conversations/anna/turns"))["data"]

    assert turn["input"] == [{"role": "user", "content": "A rocket"}]
    assert [(part["agent"], part["content"]) for part in turn["answer"]] == [
        ("triage", "One moment."),
        ("sales", "Ordered."),
    ]
    assert (turn["status"], turn["agent"], turn["finish_reason"]) == ("completed", "sales", "stop")
    assert [frame["type"] for frame in turn["events"]] == [
        "turn.started", "agent.speaking", "text.delta", "usage", "handoff", "usage", "tool.started",
        "tool.completed", "agent.speaking", "text.delta", "usage", "turn.completed",
    ]  # fmt: skip
    assert turn["events"][-3]["data"] == {"text": "\n\nOrdered."}


async def test_branch_starts_behind_an_event_of_a_turn(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "a rocket"}), text="One moment."),
        calls(("execute_order", {"product": "Rocket", "price": 10}), ("execute_order", {})),
        text("Ordered."),
    )
    first = await caller.completion([user("A rocket")], headers={"X-Conversation-Id": "anna"})
    (turn,) = (await get(served, "/conversations/anna/turns"))["data"]
    positions = {frame["type"]: frame["position"] for frame in reversed(turn["events"])}
    upstream.requests.clear()

    upstream.reply(text("A blue one, then."))
    branch = await caller.completion(
        [user("Blue, please")], headers={"X-Parent-Id": f"{first.id}.{positions['handoff']}"}
    )

    assert (caller.match, caller.conversation) == ("parent-id", "anna")
    assert agent_of(upstream) == "sales"
    assert [(part["role"], part.get("content")) for part in upstream.requests[0].body["messages"][1:]] == [
        ("user", "A rocket"),
        ("assistant", "One moment."),
        ("tool", upstream.requests[0].body["messages"][3]["content"]),
        ("user", "Blue, please"),
    ]
    tree = await get(served, "/conversations/anna/turns")
    part = tree["data"][1]
    assert [(one["id"], one["parent_id"]) for one in tree["data"]] == [
        (first.id, None),
        (part["id"], None),
        (branch.id, part["id"]),
    ]
    assert (part["agent"], part["input"]) == ("sales", [{"role": "user", "content": "A rocket"}])
    assert [part["content"] for part in part["answer"]] == ["One moment."]
    assert [frame["type"] for frame in part["events"]] == [
        "turn.started", "agent.speaking", "text.delta", "usage", "handoff", "turn.completed",
    ]  # fmt: skip
    assert {frame["turn_id"] for frame in part["events"]} == {part["id"]}
    assert tree["head_id"] == branch.id

    # A call of two parallel ones: both stay, with their results.
    upstream.reply(text("Only one of them."))
    await caller.ask([user("Stop")], headers={"X-Parent-Id": f"{first.id}.{positions['tool.started']}"})
    shown = upstream.requests[-1].body["messages"]
    called = [call["id"] for message in shown for call in message.get("tool_calls") or ()]
    assert [message["tool_call_id"] for message in shown if message["role"] == "tool"] == called
    assert len(called) == 3
    assert shown[-1]["content"] == "Stop"


async def test_branch_behind_the_last_event_follows_the_turn_itself(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    first = await talked(caller, upstream, "One", "1")
    (turn,) = (await get(served, "/conversations/anna/turns"))["data"]
    last = turn["events"][-1]["position"]

    second = await talked(caller, upstream, "Two", "2", **{"X-Parent-Id": f"{first}.{last}"})

    tree = await get(served, "/conversations/anna/turns")
    assert [(one["id"], one["parent_id"]) for one in tree["data"]] == [(first, None), (second, first)]


async def test_later_requests_find_a_branch_inside_a_turn_by_its_messages(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(calls(("transfer_to_sales", {}), text="One moment."), text("Which?"), text("Blue, then."))
    first = await caller.completion([user("A rocket")], headers={"X-Conversation-Id": "anna"})
    await caller.ask([user("Blue")], headers={"X-Parent-Id": f"{first.id}.3"})
    upstream.reply(text("Ordered."))

    answer = [
        user("A rocket"),
        assistant("One moment."),
        user("Blue"),
        assistant("Blue, then."),
        user("Order it"),
    ]
    await caller.ask(answer)

    assert (caller.match, caller.conversation) == ("fingerprint", "anna")
    assert agent_of(upstream) == "sales"
    assert [one["role"] for one in upstream.requests[-1].body["messages"]] == [
        "system", "user", "assistant", "tool", "user", "assistant", "user",
    ]  # fmt: skip


async def test_branch_behind_a_step_of_a_failed_turn_continues_from_there(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served, max_retries=0)
    upstream.reply(calls(("transfer_to_sales", {"reason": "a rocket"})), error(401))
    with pytest.raises(openai.APIStatusError):
        await caller.ask([user("A rocket")], headers={"X-Conversation-Id": "anna"})
    (failed,) = (await get(served, "/conversations/anna/turns"))["data"]

    upstream.reply(text("Which one?"))
    await caller.ask([user("Still there?")], headers={"X-Parent-Id": f"{failed['id']}.3"})

    assert agent_of(upstream) == "sales"
    assert [one["role"] for one in upstream.requests[-1].body["messages"]] == [
        "system", "user", "assistant", "tool", "user",
    ]  # fmt: skip


async def test_failed_branch_behind_a_step_leaves_the_head(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served, max_retries=0)
    upstream.reply(calls(("transfer_to_sales", {})), text("Which?"))
    first = await caller.completion([user("A rocket")], headers={"X-Conversation-Id": "anna"})
    upstream.reply(error(401))

    with pytest.raises(openai.APIStatusError):
        await caller.ask([user("Blue")], headers={"X-Parent-Id": f"{first.id}.3"})

    tree = await get(served, "/conversations/anna/turns")
    assert [one["status"] for one in tree["data"]] == ["completed", "completed", "failed"]
    assert tree["head_id"] == first.id


@pytest.mark.parametrize("parent", ["chatcmpl-none", "chatcmpl-none.2", "x" * 500])
async def test_a_turn_that_is_not_there_is_refused(
    parent: str, served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)

    with pytest.raises(openai.BadRequestError) as refused:
        await caller.completion([user("Hi")], headers={"X-Parent-Id": parent})

    assert (refused.value.param, refused.value.code) == ("X-Parent-Id", "invalid_value")
    assert "x" * 100 not in refused.value.message
    assert upstream.requests == []


async def test_the_turn_of_another_conversation_or_caller_is_refused(
    served: Served, upstream: FakeUpstream
) -> None:
    first = await talked(Caller(served), upstream, "One", "1")

    for key, conversation in (("test-key", "bert"), ("other-key", "anna")):
        with pytest.raises(openai.BadRequestError):
            await Caller(served, key).completion(
                [user("Hi")], headers={"X-Parent-Id": first, "X-Conversation-Id": conversation}
            )
    for position in (0, 99, 999_999_999):
        with pytest.raises(openai.BadRequestError) as refused:
            await Caller(served).ask([user("Hi")], headers={"X-Parent-Id": f"{first}.{position}"})
        assert refused.value.param == "X-Parent-Id"
    missing = await get(served, "/conversations/anna/turns", key="other-key")
    assert missing["error"]["type"] == "invalid_request_error"


async def test_the_list_of_conversations_has_summaries(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    await talked(caller, upstream, "I want to catch a roadrunner", "Gladly")
    upstream.reply(text("Hello"))
    await caller.ask([user("Hi")], headers={"X-Conversation-Id": "bert"})
    await caller.client.conversations.update("bert", metadata={"title": "Greetings"})

    listed = (await get(served, "/conversations"))["data"]
    found = (await get(served, "/conversations", search="ROADRUNNER"))["data"]
    too_long = await get(served, "/conversations", search="x" * 201)
    named = await get(served, "/conversations", **{"metadata[title]": "Greetings"})
    assert [one["id"] for one in named["data"]] == ["bert"]
    assert "excerpt" not in listed[0]["handoff"]
    assert found[0]["handoff"]["excerpt"] == "I want to catch a roadrunner"
    await talked(caller, upstream, "And a coyote", "No")
    newest = await get(served, "/conversations", sort="updated_at", limit="1")
    following = await get(served, "/conversations", sort="updated_at", limit="1", after="anna")
    refused = await get(served, "/conversations", sort="title")
    assert [one["id"] for page in (newest, following) for one in page["data"]] == ["anna", "bert"]
    assert (newest["has_more"], following["has_more"]) == (True, False)
    assert refused["error"]["param"] == "sort"

    assert [(one["id"], one["handoff"]["title"]) for one in listed] == [
        ("bert", "Greetings"),
        ("anna", "I want to catch a roadrunner"),
    ]
    about = found[0]["handoff"]
    assert [one["id"] for one in found] == ["anna"]
    assert (about["team"], about["agent"], about["turns"]) == ("shop", "triage", 1)
    assert about["updated_at"] >= found[0]["created_at"]
    assert too_long["error"]["param"] == "search"


async def test_no_cache_stores_a_conversation(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    await talked(caller, upstream, "A secret", "Hush")

    async with httpx2.AsyncClient(
        base_url=served.base_url, headers={"Authorization": "Bearer test-key"}
    ) as http:
        responses = [
            await http.get(path)
            for path in ("/conversations", "/conversations/anna/items", "/conversations/anna/turns")
        ]

    assert [response.status_code for response in responses] == [200] * 3
    assert [response.headers["cache-control"] for response in responses] == ["no-store"] * 3
