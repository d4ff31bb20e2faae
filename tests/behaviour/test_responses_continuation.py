"""Continuation of a response: by response id, conversation, message list or tool call, on either API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import agent_of, shape_of
from tests.behaviour.responses_client import (
    FORECAST,
    SOLD,
    calls_of,
    echoed,
    http,
    output,
    retrieved,
    said,
    sold,
)
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

# --- continuation --------------------------------------------------------------------------------------------


async def test_a_turn_continues_the_previous_response_also_in_a_branch(
    served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    first = await sold(served, upstream)
    upstream.reply(text("Red it is"), text("Blue it is"), text("5 dollars"))

    red = await client.responses.create(model="shop", input="Red", previous_response_id=first.id)
    blue = await client.responses.create(model="shop", input="Blue", previous_response_id=first.id)
    raw = await client.responses.with_raw_response.create(
        model="shop", input="How much?", previous_response_id=red.id
    )

    assert (red.previous_response_id, blue.previous_response_id) == (first.id, first.id)
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[3:] == [
        "result",
        "assistant:What colour?",
        "user:Red",
        "assistant:Red it is",
        "user:How much?",
    ]
    assert raw.headers["x-conversation-match"] == "previous-response"


@pytest.mark.parametrize("form", ["id", "object"])
async def test_a_conversation_created_with_the_sdk_can_be_continued(
    served: Served, upstream: FakeUpstream, form: str
) -> None:
    client = served.client()
    created = await client.conversations.create(items=[said("I am Ann")])
    named: Any = created.id if form == "id" else {"id": created.id}
    upstream.reply(text("Hello Ann"), text("Ann"))

    first = await client.responses.create(model="shop", input="Hi", conversation=named)
    await client.responses.create(model="shop", input="Who am I?", conversation=named)

    assert first.conversation is not None
    assert first.conversation.id == created.id
    assert shape_of(upstream) == [
        "system",
        "user:I am Ann",
        "user:Hi",
        "assistant:Hello Ann",
        "user:Who am I?",
    ]
    items = (await client.conversations.items.list(created.id, order="asc")).data
    assert [item.to_dict()["content"][0]["text"] for item in items] == [  # type: ignore[index]
        "I am Ann",
        "Hi",
        "Hello Ann",
        "Who am I?",
        "Ann",
    ]


async def test_a_conversation_is_added_to_whatever_the_input_holds(
    served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    upstream.reply(text("One"), text("Two"))

    await client.responses.create(model="shop", input="Hi", conversation="chat-1")
    await client.responses.create(
        model="shop",
        input=[said("Hi"), said("Not what I said", "assistant"), said("Go on")],
        conversation="chat-1",
    )

    assert shape_of(upstream) == [
        "system",
        "user:Hi",
        "assistant:One",
        "user:Hi",
        "assistant:Not what I said",
        "user:Go on",
    ]


async def test_a_list_finds_its_conversation_and_agent(served: Served, upstream: FakeUpstream) -> None:
    first = await sold(served, upstream)
    upstream.reply(text("Red it is"))

    raw = await served.client().responses.with_raw_response.create(
        model="shop", input=[said("I want a rocket"), *echoed(first), said("Red")]
    )

    assert raw.headers["x-conversation-match"] == "fingerprint"
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[2:4] == ["calls:transfer_to_sales", "result"]


async def test_items_are_found_by_reference(served: Served, upstream: FakeUpstream) -> None:
    client = served.client()
    upstream.reply(calls(("weather", {"city": "Bonn"}), text="Let me see."), text("Rain"), text("Snow"))
    first = await client.responses.create(model="shop", input="Weather?", tools=[FORECAST])
    references: list[Any] = [{"type": "item_reference", "id": item.id} for item in first.output]
    done = output(calls_of(first)[0].call_id, "rain")

    await client.responses.create(model="shop", input=[said("Weather?"), *references, done], tools=[FORECAST])
    await client.responses.create(
        model="shop", input=[*references, done], previous_response_id=first.id, tools=[FORECAST]
    )

    expected = ["system", "user:Weather?", "calls:weather", "result"]
    assert [shape_of(upstream, number) for number in (1, 2)] == [expected, expected]
    assert upstream.requests[1].body["messages"][2]["content"] == "Let me see."


async def test_items_of_a_conversation_are_found_by_reference(served: Served, upstream: FakeUpstream) -> None:
    client = served.client()
    created = await client.conversations.create(items=[said("I am Ann"), said("Hello Ann", "assistant")])
    items = (await client.conversations.items.list(created.id, order="asc")).data
    references: list[Any] = [{"id": item.id} for item in items]
    upstream.reply(text("Ann"))

    await client.responses.create(model="shop", input=[*references, said("Who am I?")])

    assert shape_of(upstream) == ["system", "user:I am Ann", "assistant:Hello Ann", "user:Who am I?"]


# --- the caller's functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["previous response", "conversation", "whole list", "results alone"])
async def test_a_function_is_called_and_its_result_resumes_the_agent(
    tmp_path: Path, upstream: FakeUpstream, way: str
) -> None:
    upstream.reply(
        calls(("transfer_to_repairs", {})),
        calls(("look_up_item", {"search_query": "rocket"}), ("weather", {"city": "Bonn"})),
        text("It rains on your rocket"),
    )
    named: dict[str, Any] = {"conversation": "chat-1"} if way == "conversation" else {}
    async with serve(tmp_path, upstream.base_url) as served:
        first = await served.client().responses.create(
            model="shop", input="Weather?", tools=[FORECAST], **named
        )
    (call,) = calls_of(first)
    assert (call.name, call.arguments, call.status) == ("weather", '{"city": "Bonn"}', "completed")
    done: list[Any] = [output(call.call_id, "rain")]
    if way == "whole list":
        done = [said("Weather?"), *echoed(first), *done]
    if way == "previous response":
        named = {"previous_response_id": first.id}

    async with serve(tmp_path, upstream.base_url) as served:
        second = await served.client().responses.create(model="shop", input=done, tools=[FORECAST], **named)

    assert second.output_text == "It rains on your rocket"
    assert agent_of(upstream) == "repairs"
    assert shape_of(upstream) == [
        "system",
        "user:Weather?",
        "calls:transfer_to_repairs",
        "result",
        "calls:look_up_item,weather",
        "result",
        "result",
    ]


async def test_calls_have_to_be_answered_by_results_that_are_theirs(
    served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    upstream.reply(calls(("weather", {"city": "Bonn"})))
    first = await client.responses.create(model="shop", input="Weather?", tools=[FORECAST])
    call_id = calls_of(first)[0].call_id

    with pytest.raises(openai.BadRequestError) as missing:
        await client.responses.create(model="shop", input="Well?", previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError) as unknown:
        await client.responses.create(
            model="shop",
            input=[output(call_id, "rain"), output("call_x", "?")],
            previous_response_id=first.id,
        )
    with pytest.raises(openai.BadRequestError) as nobodys:
        await client.responses.create(model="shop", input=[output("call_x", "?")])

    assert [(e.value.body["message"], e.value.param) for e in (missing, unknown, nobodys)] == [  # type: ignore[index]
        (f"No tool output found for function call {call_id}.", "input"),
        ("No tool call found for function call output with call_id call_x.", "input"),
        ("No tool call found for function call output with call_id call_x.", "input"),
    ]
    assert len(upstream.requests) == 1


# --- the other half of the API -------------------------------------------------------------------------------


async def test_chat_continues_a_response(served: Served, upstream: FakeUpstream) -> None:
    client = served.client()
    upstream.reply(*SOLD, text("Red it is"), text("Blue it is"))
    raw = await client.responses.with_raw_response.create(model="shop", input="I want a rocket")
    conversation = raw.headers["x-conversation-id"]
    shown: list[Any] = [said("I want a rocket"), said(raw.parse().output_text, "assistant")]

    listed = await client.chat.completions.with_raw_response.create(
        model="shop", messages=[*shown, said("Red")]
    )
    await client.chat.completions.create(
        model="shop", messages=[said("Blue")], extra_headers={"X-Conversation-Id": conversation}
    )

    assert listed.headers["x-conversation-id"] == conversation
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[4:] == [
        "assistant:What colour?",
        "user:Red",
        "assistant:Red it is",
        "user:Blue",
    ]


async def test_a_response_continues_a_chat(served: Served, upstream: FakeUpstream) -> None:
    client = served.client()
    upstream.reply(*SOLD, text("Red it is"), text("Blue it is"))
    raw = await client.chat.completions.with_raw_response.create(
        model="shop", messages=[said("I want a rocket")], extra_headers={"X-Conversation-Id": "chat-1"}
    )
    response_id = raw.parse().id.replace("chatcmpl-", "resp_")

    await client.responses.create(model="shop", input="Red", conversation="chat-1")
    await client.responses.create(model="shop", input="Blue", previous_response_id=response_id)

    reported = [shape_of(upstream, number)[3:] for number in (2, 3)]
    assert reported == [
        ["result", "assistant:What colour?", "user:Red"],
        ["result", "assistant:What colour?", "user:Blue"],
    ]
    items = (await client.conversations.items.list("chat-1", order="asc")).data
    assert [item.to_dict()["content"][0]["text"] for item in items] == [  # type: ignore[index]
        "I want a rocket",
        "What colour?",
        "Blue",
        "Blue it is",
    ]


async def test_a_call_made_on_one_api_is_answered_on_the_other(
    served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": FORECAST["parameters"]}}
    upstream.reply(
        calls(("weather", {"city": "Bonn"})),
        text("Rain in Bonn"),
        calls(("weather", {"city": "Rome"})),
        text("Sun in Rome"),
    )
    created = await client.responses.create(model="shop", input="Bonn?", tools=[FORECAST])
    (call,) = calls_of(created)
    answered = await client.chat.completions.create(
        model="shop",
        messages=[{"role": "tool", "tool_call_id": call.call_id, "content": "rain"}],
        tools=[tool],
    )
    requested = await client.chat.completions.create(model="shop", messages=[said("Rome?")], tools=[tool])
    called = requested.choices[0].message.tool_calls
    assert called is not None

    final = await client.responses.create(
        model="shop",
        input=[output(called[0].id, "sun")],
        previous_response_id=requested.id.replace("chatcmpl-", "resp_"),
        tools=[FORECAST],
    )

    assert answered.choices[0].message.content == "Rain in Bonn"
    assert final.output_text == "Sun in Rome"


async def test_a_completion_can_be_read_as_a_response(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(*SOLD)
    completion = await served.client().chat.completions.create(
        model="shop", messages=[said("I want a rocket")]
    )

    async with http(served) as client:
        response = await retrieved(client, completion.id.replace("chatcmpl-", "resp_"))

    assert (response.status, response.output_text) == ("completed", "What colour?")


async def test_a_response_is_streamed_again_as_a_completion(served: Served, upstream: FakeUpstream) -> None:
    first = await sold(served, upstream)

    async with http(served) as client:
        again = await client.get(f"/chat/completions/{first.id.replace('resp_', 'chatcmpl-')}/stream")

    assert again.text.endswith("data: [DONE]\n\n")
    assert '"content":"What c' in again.text
