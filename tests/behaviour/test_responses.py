"""The Responses API over the same teams, with the official SDK as the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.behaviour.chat_client import agent_of, shape_of
from tests.behaviour.responses_client import (
    FORECAST,
    SOLD,
    echoed,
    http,
    kinds,
    said,
    sold,
    streamed,
    with_sync_sdk,
)
from tests.fakes.response_stream import judged_response, steps
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served

INCLUDE_CALLS: Any = ["handoff.mcp_calls"]
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,aa", "detail": "auto"}


# --- asking, and the forms of the answer ---------------------------------------------------------------------


async def test_a_response_is_whole_and_official(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(*SOLD)
    async with http(served) as client:
        answer = await client.post("/responses", json={"model": "shop", "input": "I want a rocket"})

    response = judged_response(answer.json())
    assert (response.status, response.output_text, kinds(response)) == (
        "completed",
        "What colour?",
        ["message"],
    )
    assert response.usage is not None
    assert response.usage.total_tokens == 36
    assert answer.headers["x-conversation-id"].startswith("conv_")
    assert answer.headers["x-conversation-match"] == "entry"
    assert answer.headers["x-request-id"].startswith("req_")


async def test_the_synchronous_sdk_asks_streams_and_parses(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"), text("Hello again"), text("And again"))

    def ask(client: openai.OpenAI) -> tuple[str, str, str]:
        whole = client.responses.create(model="shop", input="Hi").output_text
        raw = client.responses.create(model="shop", input="Hi", stream=True)
        pieces = "".join(event.delta for event in raw if event.type == "response.output_text.delta")
        with client.responses.stream(model="shop", input="Hi") as stream:
            return whole, pieces, stream.get_final_response().output_text

    assert await with_sync_sdk(served, ask) == ("Hello", "Hello again", "And again")


async def test_the_asynchronous_sdk_streams(served: Served, upstream: FakeUpstream) -> None:
    client = served.client()
    upstream.reply(*SOLD, text("Fine"))

    raw = await client.responses.create(model="shop", input="I want a rocket", stream=True)
    last = [event async for event in raw][-1]
    async with client.responses.stream(model="shop", input="Red, please") as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()

    assert last.type == "response.completed"
    assert last.response.output_text == "What colour?"
    assert (snapshots[-1], final.output_text) == ("Fine", "Fine")


async def test_a_stream_comes_in_the_official_order(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"}), text="Let me see.", pieces=3))

    async with http(served) as client:
        events = await streamed(client, input="Weather?", tools=[FORECAST])

    assert steps(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]


async def test_structured_answers_are_parsed_by_the_sdk(served: Served, upstream: FakeUpstream) -> None:
    class City(BaseModel):
        name: str

    upstream.reply(text('{"name": "Bonn"}'), text('{"name": "Rome"}'))
    client = served.client()

    parsed = await client.responses.parse(model="shop", input="Which city?", text_format=City)
    async with client.responses.stream(model="shop", input="Which city?", text_format=City) as stream:
        final = await stream.get_final_response()

    assert parsed.output_parsed == City(name="Bonn")
    assert final.output_parsed == City(name="Rome")
    requested = upstream.requests[0].body["response_format"]
    assert (requested["type"], requested["json_schema"]["name"]) == ("json_schema", "City")


async def test_parameters_reach_the_model(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"))

    raw = await served.client().responses.with_raw_response.create(
        model="shop",
        input=[said([{"type": "input_text", "text": "Hi"}, IMAGE])],
        temperature=0.5,
        max_output_tokens=50,
        reasoning={"effort": "low"},
        text={"verbosity": "low"},
        truncation="auto",
        metadata={"topic": "rockets"},
    )

    body = upstream.requests[0].body
    assert {
        name: body[name] for name in ("temperature", "max_completion_tokens", "reasoning_effort", "verbosity")
    } == {
        "temperature": 0.5,
        "max_completion_tokens": 50,
        "reasoning_effort": "low",
        "verbosity": "low",
    }
    assert body["messages"][-1]["content"][1]["image_url"]["url"] == IMAGE["image_url"]
    assert "x-ignored-parameters" not in raw.headers
    assert raw.parse().metadata == {"topic": "rockets"}


async def test_log_probabilities_come_on_request(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"))

    await served.client().responses.create(model="shop", input="Hi", include=["message.output_text.logprobs"])

    assert upstream.requests[0].body["logprobs"] is True


@pytest.mark.parametrize(
    ("requested", "shown"),
    [
        ({}, ["message"]),
        ({"include": INCLUDE_CALLS}, ["mcp_call", "message"]),
        ({"extra_headers": {"X-Handoff-Events": "extension"}}, ["mcp_call", "message"]),
        (
            {"include": INCLUDE_CALLS, "extra_headers": {"X-Handoff-Events": "none"}},
            ["message"],
        ),
    ],
    ids=["default", "include", "header", "header none"],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_handoffs_are_items_only_if_the_request_includes_them(
    served: Served, upstream: FakeUpstream, requested: dict[str, Any], shown: list[str], is_stream: bool
) -> None:
    upstream.reply(*SOLD)
    client = served.client()
    if is_stream:
        stream = await client.responses.create(
            model="shop", input="I want a rocket", stream=True, **requested
        )
        events: list[Any] = [event async for event in stream]
        response: Any = events[-1].response
        added = [event.item.type for event in events if event.type == "response.output_item.added"]
        indices = [event.output_index for event in events if event.type == "response.output_item.added"]
        assert (added, indices) == (shown, list(range(len(shown))))
    else:
        response = await client.responses.create(model="shop", input="I want a rocket", **requested)

    assert kinds(response) == shown
    stored = await client.responses.retrieve(response.id, include=INCLUDE_CALLS)
    assert stored.output == response.output
    replayed: list[Any] = [event async for event in await client.responses.retrieve(response.id, stream=True)]
    assert replayed[-1].response.output == response.output


async def test_the_response_of_a_chat_completion_has_no_items_for_handoffs(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(*SOLD)
    client = served.client()
    answer = await client.chat.completions.create(
        model="shop", messages=[{"role": "user", "content": "I want a rocket"}]
    )

    stored = await client.responses.retrieve(answer.id.replace("chatcmpl-", "resp_"))

    assert kinds(stored) == ["message"]


async def test_the_extension_can_be_omitted(served: Served, upstream: FakeUpstream) -> None:
    response = await sold(served, upstream, extra_headers={"X-Handoff-Events": "none"})

    assert kinds(response) == ["message"]
    assert "handoff" not in (response.model_extra or {})


async def test_fewer_tool_calls_than_the_team_has_can_be_allowed(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(
        calls(("transfer_to_repairs", {})), calls(("look_up_item", {"search_query": "rocket"})), text("Sorry")
    )

    response = await served.client().responses.create(
        model="shop", input="It broke", max_tool_calls=0, include=INCLUDE_CALLS
    )

    assert kinds(response) == ["mcp_call", "message"]
    assert "limit of tool calls" in upstream.requests[-1].body["messages"][-1]["content"]


# --- instructions --------------------------------------------------------------------------------------------


async def test_instructions_are_for_one_turn_and_messages_stay(
    served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    upstream.reply(text("Arr"), text("Hi"), text("Ho"))

    one = await client.responses.create(
        model="shop", instructions="Be brief.", input=[said("Talk like a pirate.", "developer"), said("Hi")]
    )
    two = await client.responses.create(model="shop", input="And now?", previous_response_id=one.id)
    await client.responses.create(
        model="shop", instructions="Be long.", input="Well?", previous_response_id=two.id
    )

    reported = [request.body["messages"][0]["content"] for request in upstream.requests]
    assert reported == [
        "You are triage.\n\nBe brief.\n\nTalk like a pirate.",
        "You are triage.\n\nTalk like a pirate.",
        "You are triage.\n\nBe long.\n\nTalk like a pirate.",
    ]
    assert shape_of(upstream) == [
        "system",
        "user:Hi",
        "assistant:Arr",
        "user:And now?",
        "assistant:Hi",
        "user:Well?",
    ]
    assert (one.instructions, two.instructions) == ("Be brief.", None)


async def test_a_client_that_sends_everything_again_does_not_pile_instructions_up(
    served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    upstream.reply(text("Arr"), text("Ho"))
    requested = [said("Talk like a pirate.", "developer"), said("Hi")]

    one = await client.responses.create(model="shop", input=requested)
    await client.responses.create(model="shop", input=[*requested, *echoed(one), said("And now?")])

    assert upstream.requests[-1].body["messages"][0]["content"] == "You are triage.\n\nTalk like a pirate."
    assert shape_of(upstream) == ["system", "user:Hi", "assistant:Arr", "user:And now?"]


# --- reading, deleting ---------------------------------------------------------------------------------------


async def test_a_response_is_read_as_it_was_answered(served: Served, upstream: FakeUpstream) -> None:
    client = served.client()
    first = await sold(served, upstream, tools=[FORECAST], metadata={"a": "b"}, instructions="Be brief.")

    assert (await client.responses.retrieve(first.id)).to_dict() == first.to_dict()


async def test_the_input_items_can_be_listed(served: Served, upstream: FakeUpstream) -> None:
    client = served.client()
    upstream.reply(text("Hello"), text("Hi"))
    one = await client.responses.create(
        model="shop", input=[said("Be kind", "developer"), said("One"), said([IMAGE])]
    )
    two = await client.responses.create(model="shop", input="Two", previous_response_id=one.id)

    listed = [item async for item in client.responses.input_items.list(one.id, limit=2)]
    backwards = await client.responses.input_items.list(one.id, order="asc")
    later = await client.responses.input_items.list(two.id)

    reported = [item.to_dict()["content"][0] for item in listed]  # type: ignore[index]
    assert reported == [
        IMAGE,
        {"type": "input_text", "text": "One"},
        {"type": "input_text", "text": "Be kind"},
    ]
    assert [item.id for item in backwards.data] == [item.id for item in listed][::-1]
    assert [item.to_dict()["role"] for item in listed] == ["user", "user", "developer"]
    assert [item.to_dict()["content"][0]["text"] for item in later.data] == ["Two"]  # type: ignore[index]


async def test_a_deleted_response_is_not_found_and_its_conversation_continues(
    served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    first = await sold(served, upstream, conversation="chat-1")
    upstream.reply(text("Red it is"))

    await client.responses.delete(first.id)

    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="shop", input="Red", previous_response_id=first.id)
    await client.responses.create(model="shop", input="Red", conversation="chat-1")
    assert shape_of(upstream)[4:] == ["assistant:What colour?", "user:Red"]


async def test_without_store_only_the_active_agent_is_stored(
    tmp_path: Path, served: Served, upstream: FakeUpstream
) -> None:
    client = served.client()
    first = await sold(served, upstream, store=False, instructions="a secret", metadata={"a": "a secret"})
    upstream.reply(text("Red it is"))

    for reading in (
        client.responses.retrieve(first.id),
        client.responses.delete(first.id),
        client.responses.cancel(first.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await reading
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="shop", input="Red", previous_response_id=first.id)
    retained = b"".join(file.read_bytes() for file in (tmp_path / "data").glob("*.sqlite*"))
    await client.responses.create(
        model="shop", input=[said("I want a rocket"), *echoed(first), said("Red")], store=False
    )

    assert agent_of(upstream) == "sales"
    assert first.instructions == "a secret"
    assert (b"chatcmpl-" in retained, b"a secret" in retained, b"rocket" in retained) == (True, False, False)


async def test_what_is_anothers_does_not_exist(served: Served, upstream: FakeUpstream) -> None:
    mine = await sold(served, upstream, conversation="chat-1", safety_identifier="ann")
    other = served.client("another-key")
    as_bob = served.client(default_headers={"X-OpenWebUI-User-Id": "bob"})

    for client in (other, as_bob):
        for reading in (
            client.responses.retrieve(mine.id),
            client.responses.delete(mine.id),
            client.responses.cancel(mine.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await reading
        with pytest.raises(openai.NotFoundError):
            await client.responses.input_items.list(mine.id)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="shop", input="Red", previous_response_id=mine.id)
        assert (refused.value.code, refused.value.param) == (
            "previous_response_not_found",
            "previous_response_id",
        )
