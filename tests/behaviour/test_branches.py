"""A conversation as a tree: its list, its turns, and branches that a client asks for by a turn's id."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.asking import Caller, shape_of, user
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.serving import Served


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
    anew = await talked(caller, upstream, "Un", "1f", **{"X-Parent-Id": "root"})
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
        (anew, None),
    ]
    assert tree["head_id"] == tree["data"][-1]["id"]


async def test_a_turn_of_the_tree_tells_what_was_said_and_what_happened(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "a rocket"}), text="One moment."),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("Ordered."),
    )
    await caller.completion([user("A rocket")], headers={"X-Conversation-Id": "anna"})

    (turn,) = (await get(served, "/conversations/anna/turns"))["data"]

    assert turn["input"] == [{"role": "user", "content": "A rocket"}]
    assert [(said["agent"], said["content"]) for said in turn["answer"]] == [
        ("triage", "One moment."),
        ("sales", "Ordered."),
    ]
    assert (turn["status"], turn["agent"], turn["finish_reason"]) == ("completed", "sales", "stop")
    assert [frame["type"] for frame in turn["events"]] == [
        "turn.started", "agent.speaking", "text.delta", "usage", "handoff", "usage", "tool.started",
        "tool.completed", "agent.speaking", "text.delta", "usage", "turn.completed",
    ]  # fmt: skip
    assert turn["events"][-3]["data"] == {"text": "\n\nOrdered."}


@pytest.mark.parametrize("parent", ["chatcmpl-none", "x" * 500])
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
    missing = await get(served, "/conversations/anna/turns", key="other-key")
    assert missing["error"]["type"] == "invalid_request_error"


async def test_the_list_of_conversations_tells_what_they_are_about(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    await talked(caller, upstream, "I want to catch a roadrunner", "Gladly")
    upstream.reply(text("Hello"))
    await caller.ask([user("Hi")], headers={"X-Conversation-Id": "bert"})
    await caller.client.conversations.update("bert", metadata={"title": "Greetings"})

    listed = (await get(served, "/conversations"))["data"]
    found = (await get(served, "/conversations", search="ROADRUNNER"))["data"]
    too_long = await get(served, "/conversations", search="x" * 201)

    assert [(one["id"], one["handoff"]["title"]) for one in listed] == [
        ("bert", "Greetings"),
        ("anna", "I want to catch a roadrunner"),
    ]
    about = found[0]["handoff"]
    assert [one["id"] for one in found] == ["anna"]
    assert (about["team"], about["agent"], about["turns"]) == ("shop", "triage", 1)
    assert about["updated_at"] >= found[0]["created_at"]
    assert too_long["error"]["param"] == "search"
