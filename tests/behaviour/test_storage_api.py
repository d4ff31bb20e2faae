"""Stored data, through the official SDK: stored completions, conversations and their items."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai.types.conversations import ConversationItem

from tests.behaviour.chat_client import (
    HIDDEN,
    WEATHER,
    Caller,
    agent_of,
    assistant,
    result,
    shape_of,
    sold,
    user,
)
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

HIDDEN_TOO: Any = ["handoff.hidden_items"]


async def said(client: AsyncOpenAI, conversation: str, **more: Any) -> list[str]:
    """The items of a conversation, one word each, oldest first."""
    return [
        word_of(item) async for item in client.conversations.items.list(conversation, order="asc", **more)
    ]


def word_of(item: ConversationItem) -> str:
    match item.type:
        case "message":
            texts = [getattr(part, "text", part.type) for part in item.content]
            return f"{item.role}:{'|'.join(texts)}"
        case "function_call":
            return f"call:{item.name}"
        case "function_call_output":
            return f"output:{item.output}"
        case other:
            return other


def strict(served: Served) -> AsyncOpenAI:
    """The SDK as it checks every byte against its types."""
    return served.client(_strict_response_validation=True)


async def stored(caller: Caller, upstream: FakeUpstream, question: str, **more: Any) -> ChatCompletion:
    upstream.reply(text(f"You said {question}"))
    return await caller.completion([user(question)], store=True, **more)


# --- stored completions --------------------------------------------------------------------------------------


async def test_a_stored_completion_comes_back_as_it_was_answered(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(calls(("transfer_to_sales", {}), text="One moment."), text("What colour?"))
    answered = await caller.completion([user("A rocket")], store=True, metadata={"kind": "test"})
    conversation = caller.conversation

    raw = await strict(served).chat.completions.with_raw_response.retrieve(answered.id)

    completion = raw.parse()
    assert completion.model_dump(exclude={"metadata"}) == answered.model_dump(exclude={"metadata"})
    assert completion.choices[0].message.content == "One moment.\n\nWhat colour?"
    assert completion.metadata == {"kind": "test"}
    assert raw.headers["x-conversation-id"] == conversation


async def test_streamed_completions_and_client_tool_calls_are_stored(
    served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    upstream.reply(calls(("weather", {"city": "Bonn"}), text="Let me see."))
    stream = await client.chat.completions.create(
        model="shop",
        messages=cast(Any, [user("Rain?")]),
        tools=cast(Any, [WEATHER]),
        store=True,
        stream=True,
    )
    ids = {chunk.id async for chunk in stream}

    completion = await strict(served).chat.completions.retrieve(ids.pop())

    (call,) = completion.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Bonn"}')
    assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == (
        "Let me see.",
        "tool_calls",
    )


async def test_only_what_was_to_be_stored_is_listed(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(text("one"), text("two"))
    unset = await caller.completion([user("Hi")])
    unstored = await caller.completion([user("Hi")], store=False)
    completion = await stored(caller, upstream, "Hi")

    assert [one.id async for one in caller.client.chat.completions.list()] == [completion.id]
    for other in (unset, unstored):
        with pytest.raises(openai.NotFoundError):
            await caller.client.chat.completions.retrieve(other.id)


async def test_the_sdk_pages_through_the_list_in_both_orders(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    created = [(await stored(caller, upstream, f"question {number}")).id for number in range(5)]
    client = strict(served)

    assert [one.id async for one in client.chat.completions.list(limit=2)] == created
    assert [one.id async for one in client.chat.completions.list(limit=2, order="desc")] == created[::-1]
    page = await client.chat.completions.list(limit=2, after=created[0])
    assert [one.id for one in page.data] == created[1:3]
    assert page.model_dump(exclude={"data"}) == {
        "object": "list", "first_id": created[1], "last_id": created[2], "has_more": True,
    }  # fmt: skip


async def test_an_empty_list_has_empty_ids(served: Served) -> None:
    page = await strict(served).chat.completions.list()

    assert page.model_dump() == {
        "object": "list",
        "data": [],
        "first_id": "",
        "last_id": "",
        "has_more": False,
    }


async def test_completions_are_filtered_by_model_and_metadata(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    one = await stored(caller, upstream, "one", metadata={"user id": "a&b", "kind": "x"})
    two = await stored(caller, upstream, "two", metadata={"kind": "x"})

    async def ids(**given: Any) -> list[str]:
        return [found.id async for found in caller.client.chat.completions.list(**given)]

    assert await ids(metadata={"kind": "x"}) == [one.id, two.id]
    assert await ids(metadata={"user id": "a&b", "kind": "x"}) == [one.id]
    assert await ids(metadata={"kind": "y"}) == []
    assert await ids(model="shop") == [one.id, two.id]
    assert await ids(model="other") == []


async def test_metadata_is_replaced_and_can_be_taken_away(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    completion = await stored(caller, upstream, "Hi", metadata={"a": "1", "b": "2"})

    changed = await caller.client.chat.completions.update(completion.id, metadata={"c": "3"})

    assert changed.metadata == {"c": "3"}
    assert changed.choices[0].message.content == "You said Hi"
    cleared = await caller.client.chat.completions.update(completion.id, metadata=None)
    assert cleared.metadata == {}


async def test_a_deleted_completion_is_not_found_and_its_conversation_continues(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    first = await stored(caller, upstream, "Hi")
    conversation = caller.conversation

    gone = await caller.client.chat.completions.delete(first.id)

    assert gone.model_dump() == {"id": first.id, "object": "chat.completion.deleted", "deleted": True}
    for again in (
        caller.client.chat.completions.retrieve(first.id),
        caller.client.chat.completions.delete(first.id),
        caller.client.get(f"/chat/completions/{first.id}/stream", cast_to=httpx2.Response),
    ):
        with pytest.raises(openai.NotFoundError):
            await again
    assert await said(caller.client, conversation) == ["user:Hi", "assistant:You said Hi"]
    upstream.reply(text("Again"))
    await caller.ask([user("And now?")], headers={"X-Conversation-Id": conversation})
    assert shape_of(upstream) == ["system", "user:Hi", "assistant:You said Hi", "user:And now?"]


async def test_all_completions_can_be_deleted_while_they_are_listed(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    for number in range(5):
        await stored(caller, upstream, f"question {number}")

    async for one in caller.client.chat.completions.list(limit=2):
        await caller.client.chat.completions.delete(one.id)

    assert (await caller.client.chat.completions.list()).data == []


async def test_the_messages_are_those_that_were_sent(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(calls(("transfer_to_sales", {}), text="One moment."), text("What colour?"), text("Ten"))
    sent = [{"role": "system", "content": "Be brief."}, user("A rocket")]
    answer = await caller.ask(sent)
    sent += [
        assistant(answer),
        {"role": "developer", "content": "It is 10:00."},
        user(
            [
                {"type": "text", "text": "Like this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ]
        ),
    ]
    completion = await caller.completion(sent, store=True)
    assert caller.match == "fingerprint"

    listed = [m async for m in caller.client.chat.completions.messages.list(completion.id, limit=2)]

    assert [(m.id, m.role, m.content) for m in listed] == [
        (f"{completion.id}-0", "system", "Be brief."),
        (f"{completion.id}-1", "user", "A rocket"),
        (f"{completion.id}-2", "assistant", "One moment.\n\nWhat colour?"),
        (f"{completion.id}-3", "developer", "It is 10:00."),
        (f"{completion.id}-4", "user", None),
    ]
    assert [part.model_dump(exclude_none=True) for part in listed[-1].content_parts or []] == sent[-1][
        "content"
    ]
    newest = await caller.client.chat.completions.messages.list(completion.id, order="desc", limit=1)
    assert [m.id for m in newest.data] == [f"{completion.id}-4"]


async def test_new_messages_alone_are_listed_alone(served: Served, upstream: FakeUpstream) -> None:
    caller, headers = Caller(served), {"X-Conversation-Id": "chat-1"}
    await sold(caller, upstream, headers=headers)
    upstream.reply(text("Ten"))
    completion = await caller.completion([user("How much?")], headers=headers, store=True)

    listed = [m async for m in caller.client.chat.completions.messages.list(completion.id)]

    assert [m.content for m in listed] == ["How much?"]


async def test_tool_results_are_listed_behind_the_calls_that_they_answer(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("look_up_item", {"search_query": "x"})),
        calls(("weather", {"city": "Bonn"})),
        text("Rain"),
    )
    requested = [user("Rain?")]
    first = await caller.completion(requested, tools=[WEATHER])
    (call,) = first.choices[0].message.tool_calls or []
    completion = await caller.completion(
        [*requested, first.choices[0].message.model_dump(), result(call.id, "rain")],
        tools=[WEATHER],
        store=True,
    )

    listed = [m async for m in caller.client.chat.completions.messages.list(completion.id)]

    assert [(m.role, m.content) for m in listed] == [("user", "Rain?"), ("assistant", None), ("tool", "rain")]
    assert [one.id for one in listed[1].tool_calls or []] == [call.id]
    assert listed[2].model_dump()["tool_call_id"] == call.id


# --- conversations -------------------------------------------------------------------------------------------


async def test_a_conversation_can_be_created_read_changed_and_deleted(served: Served) -> None:
    client = strict(served)

    created = await client.conversations.create(metadata={"topic": "rockets"})
    assert created.id.startswith("conv_")
    assert (created.object, created.metadata) == ("conversation", {"topic": "rockets"})
    assert await client.conversations.retrieve(created.id) == created

    changed = await client.conversations.update(created.id, metadata={"topic": "tea"})
    assert changed == created.model_copy(update={"metadata": {"topic": "tea"}})
    assert (await client.conversations.update(created.id, metadata=None)).metadata == {}

    gone = await client.conversations.delete(created.id)
    assert (gone.id, gone.object, gone.deleted) == (created.id, "conversation.deleted", True)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(created.id)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"items": null, "metadata": null}', b'{"unknown": 1}'])
async def test_a_conversation_needs_nothing_to_be_created(served: Served, body: bytes) -> None:
    created = await served.client().post("/conversations", cast_to=httpx2.Response, content=body)

    assert created.json().keys() == {"id", "object", "created_at", "metadata"}


async def test_a_conversation_that_was_created_is_continued_by_a_chat(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    created = await caller.client.conversations.create(
        items=[
            {"role": "developer", "content": "Speak like a pirate."},
            {"role": "user", "content": "I want a rocket"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Colour?"}]},  # type: ignore[list-item, misc]
        ]
    )
    upstream.reply(calls(("transfer_to_sales", {})), text("Arr, ten"))

    answer = await caller.ask(
        [{"role": "system", "content": "Be brief."}, user("Red")], headers={"X-Conversation-Id": created.id}
    )

    assert (answer, caller.conversation, caller.match) == ("Arr, ten", created.id, "conversation-id")
    assert shape_of(upstream, 0) == ["system", "user:I want a rocket", "assistant:Colour?", "user:Red"]
    system = upstream.requests[0].body["messages"][0]["content"]
    assert system == "You are triage.\n\nSpeak like a pirate.\n\nBe brief."
    assert await said(caller.client, created.id) == [
        "developer:Speak like a pirate.",
        "user:I want a rocket",
        "assistant:Colour?",
        "user:Red",
        "assistant:Arr, ten",
    ]


async def test_a_conversation_that_was_created_is_continued_by_a_whole_list(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    created = await caller.client.conversations.create(
        items=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    )
    upstream.reply(text("Ten"), text("Twelve"))
    headers, messages = {"X-Conversation-Id": created.id}, [user("Hi"), assistant("Hello"), user("How much?")]

    answer = await caller.ask(messages, headers=headers)
    await caller.ask([*messages, assistant(answer), user("Really?")], headers=headers)

    assert shape_of(upstream) == [
        "system", "user:Hi", "assistant:Hello", "user:How much?", "assistant:Ten", "user:Really?",
    ]  # fmt: skip
    assert await said(caller.client, created.id) == [
        "user:Hi", "assistant:Hello", "user:How much?", "assistant:Ten", "user:Really?", "assistant:Twelve",
    ]  # fmt: skip


async def test_a_chat_is_continued_through_its_items(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream)
    conversation = caller.conversation

    added = await strict(served).conversations.items.create(
        conversation,
        items=[{"role": "user", "content": "Red"}, {"role": "assistant", "content": "Ten dollars"}],
    )
    assert [word_of(item) for item in added.data] == ["user:Red", "assistant:Ten dollars"]
    assert (added.first_id, added.last_id, added.has_more) == (added.data[0].id, added.data[1].id, False)
    turn_id = f"items_{added.first_id.split('_')[1]}"
    with pytest.raises(openai.NotFoundError):
        await caller.client.get(f"/chat/completions/{turn_id}/stream", cast_to=httpx2.Response)
    upstream.reply(text("Sold"), text("Sold again"))

    await caller.ask([user("Yes")], headers={"X-Conversation-Id": conversation})
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == [*HIDDEN, "user:Red", "assistant:Ten dollars", "user:Yes"]

    # A client that sends only its list is recognised as well.
    await caller.ask([*messages, user("Red"), assistant("Ten dollars"), user("No")])
    assert (caller.match, caller.conversation, agent_of(upstream)) == ("fingerprint", conversation, "sales")
    assert shape_of(upstream) == [*HIDDEN, "user:Red", "assistant:Ten dollars", "user:No"]


async def test_items_survive_a_restart_with_their_ids(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        completion = await stored(caller, upstream, "Hi")
        conversation = caller.conversation
        await caller.client.conversations.items.create(
            conversation, items=[{"role": "user", "content": "More"}]
        )
        before = (await caller.client.conversations.items.list(conversation)).data

    async with serve(tmp_path, upstream.base_url) as served:
        client = strict(served)
        after = (await client.conversations.items.list(conversation)).data
        again = await client.chat.completions.retrieve(completion.id)

    assert [item.id for item in after] == [item.id for item in before]
    assert [word_of(item) for item in after] == ["user:More", "assistant:You said Hi", "user:Hi"]
    assert again.choices[0].message.content == "You said Hi"


# --- items ---------------------------------------------------------------------------------------------------


async def test_the_items_have_agents_and_hide_internal_messages(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("transfer_to_repairs", {}), text="One moment."),
        calls(("look_up_item", {"search_query": "rocket"})),
        text("It broke?"),
    )
    await caller.ask([user("My rocket!")])
    client = strict(served)

    shown = (await client.conversations.items.list(caller.conversation, order="asc")).data
    assert [word_of(item) for item in shown] == [
        "user:My rocket!",
        "assistant:One moment.",
        "assistant:It broke?",
    ]
    assert [(item.model_extra or {}).get("handoff") for item in shown] == [
        None,
        {"agent": "triage"},
        {"agent": "repairs"},
    ]

    everything = [
        item
        async for item in client.conversations.items.list(
            caller.conversation, order="asc", include=HIDDEN_TOO, limit=2
        )
    ]
    words = [word_of(item) for item in everything]
    assert words[:3] == ["user:My rocket!", "assistant:One moment.", "call:transfer_to_repairs"]
    assert words[3].startswith("output:")
    assert (words[4], words[6:]) == ("call:look_up_item", ["assistant:It broke?"])
    assert words[5].startswith("output:")
    assert (everything[4].model_extra or {})["handoff"] == {"agent": "repairs", "hidden": True}


async def test_calls_of_the_callers_own_tools_and_their_results_are_items(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(
            ("look_up_item", {"search_query": "x"}),
            ("weather", {"city": "Bonn"}),
            ("weather", {"city": "Rome"}),
        ),
        text("Rain"),
    )
    upstream.requests.clear()
    first = await caller.completion(
        [user("I want repairs")], tools=[WEATHER], headers={"X-Conversation-Id": "chat-1"}
    )
    ids = [call.id for call in first.choices[0].message.tool_calls or []]
    await caller.ask(
        [result(ids[0], "rain"), result(ids[1], "sun")],
        tools=[WEATHER],
        headers={"X-Conversation-Id": "chat-1"},
    )
    client = strict(served)

    assert await said(client, "chat-1") == [
        "user:I want repairs",
        "call:weather",
        "call:weather",
        "output:rain",
        "output:sun",
        "assistant:Rain",
    ]
    items = (await client.conversations.items.list("chat-1", order="asc")).data
    assert items[1].type == "function_call"
    assert (items[1].call_id, items[1].arguments, items[1].status) == (
        ids[0],
        '{"city": "Bonn"}',
        "completed",
    )


async def test_tool_results_can_be_added_as_items(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(calls(("weather", {"city": "Bonn"}), ("weather", {"city": "Rome"})), text("Rain"))
    first = await caller.completion([user("Weather?")], tools=[WEATHER])
    ids = [call.id for call in first.choices[0].message.tool_calls or []]

    await caller.client.conversations.items.create(
        caller.conversation, items=[{"type": "function_call_output", "call_id": ids[0], "output": "rain"}]
    )
    await caller.ask(
        [result(ids[1], "sun")], tools=[WEATHER], headers={"X-Conversation-Id": caller.conversation}
    )

    results = [m["content"] for m in upstream.requests[-1].body["messages"] if m["role"] == "tool"]
    assert results == ["rain", "sun"]


async def test_calls_can_be_added_as_items_and_answered_by_a_chat(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    created = await caller.client.conversations.create(
        items=[
            {"role": "user", "content": "Weather?"},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bonn"}'},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"city": "Rome"}'},
        ]
    )
    upstream.reply(text("Rain"))

    await caller.ask(
        [result("c2", "sun"), result("c1", "rain")],
        tools=[WEATHER],
        headers={"X-Conversation-Id": created.id},
    )

    shown = upstream.requests[-1].body["messages"]
    assert [call["id"] for call in shown[2]["tool_calls"]] == ["c1", "c2"]
    assert [(m["tool_call_id"], m["content"]) for m in shown[3:]] == [("c1", "rain"), ("c2", "sun")]


async def test_every_kind_of_content_comes_back_in_the_types_of_the_sdk(served: Served) -> None:
    client = strict(served)
    image = {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"}
    items: Any = [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look"},
                image,
                {"type": "input_file", "file_data": "data:text/plain;base64,AA==", "filename": "a.txt"},
            ],
        },
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "web_search_call", "action": {"type": "search", "query": "x"}},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "found"}, image],
        },
    ]

    named: Any = [{"id": f"theirs_{place}", "status": "completed", **one} for place, one in enumerate(items)]
    created = await client.conversations.create(items=named)

    listed = (await client.conversations.items.list(created.id, order="asc")).data
    assert [item.model_dump(exclude_none=True, exclude={"id", "status"}) for item in listed] == items
    ids = {item.id or "" for item in listed}
    assert len(ids) == 6
    assert not [item_id for item_id in ids if item_id.startswith("theirs")]


async def test_items_of_other_kinds_are_not_shown_to_agents(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    created = await caller.client.conversations.create(
        items=[
            {"role": "user", "content": "Hi"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"role": "assistant", "content": "Hello"},
        ]
    )
    upstream.reply(text("Ten"))

    await caller.ask([user("How much?")], headers={"X-Conversation-Id": created.id})

    assert shape_of(upstream) == ["system", "user:Hi", "assistant:Hello", "user:How much?"]
    assert (await said(caller.client, created.id))[:3] == ["user:Hi", "reasoning", "assistant:Hello"]


async def test_items_are_listed_newest_first_and_in_pages(served: Served) -> None:
    client = strict(served)
    created = await client.conversations.create()
    for start in (0, 20, 40):
        await client.conversations.items.create(
            created.id,
            items=[{"role": "user", "content": f"{number}"} for number in range(start, start + 20)],
        )

    newest = await client.conversations.items.list(created.id)
    assert [word_of(item) for item in newest.data] == [f"user:{number}" for number in range(59, 39, -1)]
    assert (newest.has_more, newest.last_id) == (True, newest.data[-1].id)
    every = [word_of(item) async for item in client.conversations.items.list(created.id, limit=7)]
    assert every == [f"user:{number}" for number in range(59, -1, -1)]


async def test_an_item_is_read_and_deleted_by_its_id(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    await sold(caller, upstream)
    client, conversation = strict(served), caller.conversation
    (question, _) = (await client.conversations.items.list(conversation, order="asc")).data
    assert (
        await client.conversations.items.retrieve(question.id or "", conversation_id=conversation) == question
    )

    left = await client.conversations.items.delete(question.id or "", conversation_id=conversation)

    assert left.id == conversation
    assert await said(client, conversation) == ["assistant:What colour?"]
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve(question.id or "", conversation_id=conversation)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.delete(question.id or "", conversation_id=conversation)
    upstream.reply(text("Ten"))
    await caller.ask([user("Red")], headers={"X-Conversation-Id": conversation})
    assert shape_of(upstream) == [
        "system", "calls:transfer_to_sales", "result", "assistant:What colour?", "user:Red",
    ]  # fmt: skip


async def test_all_items_can_be_deleted_while_they_are_listed(served: Served) -> None:
    client = served.client()
    created = await client.conversations.create()
    for number in range(5):
        await client.conversations.items.create(created.id, items=[{"role": "user", "content": f"{number}"}])

    async for item in client.conversations.items.list(created.id, limit=2):
        await client.conversations.items.delete(item.id or "", conversation_id=created.id)

    assert await said(client, created.id) == []


async def test_one_of_several_calls_can_be_deleted_with_its_result(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("weather", {"city": "Bonn"}), ("weather", {"city": "Rome"}), text="Let me see."), text("Rain")
    )
    first = await caller.completion([user("Weather?")], tools=[WEATHER])
    ids = [call.id for call in first.choices[0].message.tool_calls or []]
    conversation = caller.conversation
    await caller.ask(
        [result(ids[0], "rain"), result(ids[1], "sun")],
        tools=[WEATHER],
        headers={"X-Conversation-Id": conversation},
    )
    items = (await caller.client.conversations.items.list(conversation, order="asc")).data
    assert [word_of(item) for item in items[1:4]] == ["assistant:Let me see.", "call:weather", "call:weather"]

    await caller.client.conversations.items.delete(items[2].id or "", conversation_id=conversation)

    assert (await caller.client.conversations.items.list(conversation, order="asc")).data[2].id == items[3].id
    upstream.reply(text("Bye"))
    await caller.ask([user("Thanks")], headers={"X-Conversation-Id": conversation})
    shown = upstream.requests[-1].body["messages"]
    assert [call["id"] for call in shown[2]["tool_calls"]] == [ids[1]]
    assert [m["tool_call_id"] for m in shown if m["role"] == "tool"] == [ids[1]]


async def test_a_deleted_answer_is_not_given_back_by_its_stream(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(text("A secret"))
    completion = await caller.completion([user("Hi")])
    (answer, _) = (await caller.client.conversations.items.list(caller.conversation)).data

    await caller.client.conversations.items.delete(answer.id or "", conversation_id=caller.conversation)

    with pytest.raises(openai.NotFoundError):
        await caller.client.get(f"/chat/completions/{completion.id}/stream", cast_to=httpx2.Response)


# --- deleting, callers, end users ----------------------------------------------------------------------------


async def test_deleting_a_conversation_deletes_all_of_it(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, store=True)
    conversation = caller.conversation
    (completion,) = (await caller.client.chat.completions.list()).data

    await caller.client.conversations.delete(conversation)

    for gone in (
        caller.client.conversations.retrieve(conversation),
        caller.client.conversations.items.list(conversation),
        caller.client.conversations.update(conversation, metadata={}),
        caller.client.conversations.delete(conversation),
        caller.client.chat.completions.retrieve(completion.id),
        caller.client.get(f"/chat/completions/{completion.id}/stream", cast_to=httpx2.Response),
    ):
        with pytest.raises(openai.NotFoundError):
            await gone
    assert (await caller.client.chat.completions.list()).data == []
    upstream.reply(text("Hello"))
    await caller.ask([*messages, user("Red")])
    assert (agent_of(upstream), caller.match) == ("triage", "entry")


async def test_what_belongs_to_another_caller_is_not_there(served: Served, upstream: FakeUpstream) -> None:
    one, other = Caller(served, "key-one"), Caller(served, "key-two")
    completion = await stored(one, upstream, "Hi", headers={"X-Conversation-Id": "shared"})
    (item, _) = (await one.client.conversations.items.list("shared")).data
    theirs = other.client

    for requested in (
        theirs.chat.completions.retrieve(completion.id),
        theirs.chat.completions.update(completion.id, metadata={}),
        theirs.chat.completions.delete(completion.id),
        theirs.chat.completions.messages.list(completion.id),
        theirs.conversations.retrieve("shared"),
        theirs.conversations.update("shared", metadata={}),
        theirs.conversations.delete("shared"),
        theirs.conversations.items.list("shared"),
        theirs.conversations.items.create("shared", items=[{"role": "user", "content": "x"}]),
        theirs.conversations.items.retrieve(item.id or "", conversation_id="shared"),
        theirs.conversations.items.delete(item.id or "", conversation_id="shared"),
    ):
        with pytest.raises(openai.NotFoundError):
            await requested
    assert (await theirs.chat.completions.list()).data == []
    assert (await theirs.get("/conversations", cast_to=httpx2.Response)).json()["data"] == []
    assert await said(one.client, "shared") == ["user:Hi", "assistant:You said Hi"]
    assert (await one.client.chat.completions.retrieve(completion.id)).id == completion.id


async def test_an_end_user_who_is_named_sees_nothing_of_another(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    alice, bob = ({"X-OpenWebUI-User-Id": name} for name in ("alice", "bob"))
    completion = await stored(caller, upstream, "Hi", headers={**alice, "X-Conversation-Id": "chat-1"})
    client = caller.client

    for requested in (
        client.chat.completions.retrieve(completion.id, extra_headers=bob),
        client.conversations.retrieve("chat-1", extra_headers=bob),
        client.conversations.items.list("chat-1", extra_headers=bob),
    ):
        with pytest.raises(openai.NotFoundError):
            await requested
    assert (await client.chat.completions.list(extra_headers=bob)).data == []
    created = await client.conversations.create(extra_headers=alice)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(created.id, extra_headers=bob)
    assert await client.conversations.retrieve(created.id, extra_headers=alice) == created
    assert [one.id async for one in client.chat.completions.list(extra_headers=alice)] == [completion.id]
    assert await said(client, "chat-1", extra_headers=alice) == ["user:Hi", "assistant:You said Hi"]


async def test_conversations_are_listed_newest_first(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(text("Hello"))
    await caller.ask([user("Hi")], headers={"X-Conversation-Id": "chat-1"})
    created = [(await caller.client.conversations.create()).id for _ in range(3)]

    async def ids(query: str) -> tuple[list[str], bool]:
        answer = await caller.client.get(f"/conversations?{query}", cast_to=httpx2.Response)
        return [one["id"] for one in answer.json()["data"]], answer.json()["has_more"]

    assert await ids("limit=2") == ([created[2], created[1]], True)
    assert await ids(f"after={created[1]}") == ([created[0], "chat-1"], False)
    assert await ids("order=asc&limit=1") == (["chat-1"], True)


async def test_while_a_turn_runs_its_conversation_cannot_be_changed(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(text("Hello"))
    await caller.ask([user("Hi")], headers={"X-Conversation-Id": "chat-1"})
    release = asyncio.Event()
    upstream.reply(text("Later").held(release, after=2))
    stream = await caller.client.chat.completions.create(
        model="shop",
        messages=[user("More")],
        stream=True,
        extra_headers={"X-Conversation-Id": "chat-1"},
    )
    (item, _) = (await caller.client.conversations.items.list("chat-1")).data

    for refused in (
        caller.client.conversations.items.create("chat-1", items=[{"role": "user", "content": "x"}]),
        caller.client.conversations.items.delete(item.id or "", conversation_id="chat-1"),
        caller.client.conversations.delete("chat-1"),
    ):
        with pytest.raises(openai.ConflictError) as busy:
            await refused
        assert busy.value.code == "conversation_busy"
        assert int(busy.value.response.headers["retry-after"]) >= 1
    release.set()
    assert [chunk.id async for chunk in stream]
    added = await caller.client.conversations.items.create("chat-1", items=[{"role": "user", "content": "x"}])
    assert [word_of(one) for one in added.data] == ["user:x"]


async def test_what_is_older_than_it_may_be_is_gone_after_the_start(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        completion = await stored(caller, upstream, "Hi")

    async with serve(tmp_path, upstream.base_url, retention_days=1e-9) as served:
        client = served.client()
        async with asyncio.timeout(10):
            while (await client.get("/conversations", cast_to=httpx2.Response)).json()["data"]:
                await asyncio.sleep(0.01)

        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.retrieve(completion.id)
