"""``functions``, ``function_call`` and the role ``function``: the old form of the caller's own tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.chat_client import WEATHER, agent_of, assistant, shape_of, user
from tests.behaviour.raw_http import Wire, deltas
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

FUNCTIONS = [WEATHER["function"]]
REQUESTED = [user("What is the weather in Bonn?")]
RAIN = {"role": "function", "name": "weather", "content": "rain"}
CHAT = {"X-Conversation-Id": "chat-1"}


def echoed(message: Any) -> Any:
    return message.model_dump(exclude_none=True)


async def called(wire: Wire, upstream: FakeUpstream, **more: Any) -> Any:
    """A turn that triage hands over to repairs, who look something up and call the function; gives the message."""
    upstream.reply(
        calls(("transfer_to_repairs", {})),
        calls(("look_up_item", {"search_query": "rocket"}), ("weather", {"city": "Bonn"})),
    )
    completion = await wire.completion(messages=REQUESTED, functions=FUNCTIONS, **more)
    assert completion.choices[0].finish_reason == "function_call"
    return completion.choices[0].message


async def test_a_call_leaves_in_the_old_form(served: Served, upstream: FakeUpstream) -> None:
    async with Wire(served) as wire:
        message = await called(wire, upstream)

    assert message.content is None
    assert message.tool_calls is None
    assert (message.function_call.name, message.function_call.arguments) == ("weather", '{"city": "Bonn"}')
    offered = upstream.requests[-1].body["tools"][-1]
    assert offered == WEATHER
    assert upstream.requests[-1].body["parallel_tool_calls"] is False


async def test_a_streamed_call_leaves_in_the_old_form(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"}), pieces=2))
    async with Wire(served) as wire:
        frames = await wire.frames(messages=REQUESTED, functions=FUNCTIONS, function_call={"name": "weather"})

    assert deltas(frames) == [
        {"role": "assistant", "content": None},
        {"function_call": {"name": "weather", "arguments": ""}},
        {"function_call": {"arguments": '{"city":'}},
        {"function_call": {"arguments": ' "Bonn"}'}},
        {},
    ]
    assert frames[-2]["choices"][0]["finish_reason"] == "function_call"
    assert upstream.requests[0].body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


RESUMED = [
    "system",
    "user:What is the weather in Bonn?",
    "calls:transfer_to_repairs",
    "result",
    "calls:look_up_item,weather",
    "result",
    "result",
]


@pytest.mark.parametrize("headers", [None, CHAT], ids=["stateless", "with an id"])
async def test_the_result_resumes_the_same_agent_mid_turn_after_a_restart(
    tmp_path: Path, upstream: FakeUpstream, headers: dict[str, str] | None
) -> None:
    async with serve(tmp_path, upstream.base_url) as served, Wire(served, "key") as wire:
        message = await called(wire, upstream, headers=headers)
    upstream.reply(text("It rains on your rocket"))

    async with serve(tmp_path, upstream.base_url) as served, Wire(served, "key") as wire:
        answer = await wire.ask(
            messages=[*REQUESTED, echoed(message), RAIN], functions=FUNCTIONS, headers=headers
        )

    assert answer.json()["choices"][0]["message"]["content"] == "It rains on your rocket"
    assert answer.headers["x-conversation-match"] == "tool-calls"
    assert agent_of(upstream) == "repairs"
    assert shape_of(upstream) == RESUMED
    assert upstream.requests[-1].body["messages"][-1]["content"] == "rain"


async def test_the_result_alone_with_an_id_is_enough(served: Served, upstream: FakeUpstream) -> None:
    async with Wire(served) as wire:
        await called(wire, upstream, headers=CHAT)
        upstream.reply(text("Rain"))
        await wire.ask(messages=[RAIN], functions=FUNCTIONS, headers=CHAT)

    assert shape_of(upstream) == RESUMED


async def test_a_second_call_behind_the_first_is_resumed_as_well(
    served: Served, upstream: FakeUpstream
) -> None:
    async with Wire(served) as wire:
        messages = [*REQUESTED, echoed(await called(wire, upstream)), RAIN]
        upstream.reply(calls(("weather", {"city": "Rome"})), text("Rain in both"))
        again = (await wire.completion(messages=messages, functions=FUNCTIONS)).choices[0].message
        messages = [*messages, echoed(again), RAIN]
        await wire.completion(messages=messages, functions=FUNCTIONS)
        assert shape_of(upstream) == [*RESUMED, "calls:weather", "result"]

        upstream.reply(text("Any time"))
        thanked = [*messages, assistant("Rain in both"), user("Thanks")]
        answer = await wire.ask(messages=thanked, functions=FUNCTIONS)

    assert answer.headers["x-conversation-match"] == "fingerprint"
    assert shape_of(upstream) == [
        *RESUMED,
        "calls:weather",
        "result",
        "assistant:Rain in both",
        "user:Thanks",
    ]


async def test_text_next_to_a_call_does_not_hide_it(served: Served, upstream: FakeUpstream) -> None:
    async with Wire(served) as wire:
        upstream.reply(
            calls(("transfer_to_sales", {})), calls(("weather", {"city": "Bonn"}), text="Let me see.")
        )
        message = (await wire.completion(messages=REQUESTED, functions=FUNCTIONS)).choices[0].message
        assert message.content == "Let me see."
        upstream.reply(text("Rain"))
        await wire.completion(messages=[*REQUESTED, echoed(message), RAIN], functions=FUNCTIONS)

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[-2:] == ["calls:weather", "result"]


async def test_a_user_message_instead_of_the_result_closes_the_call(
    served: Served, upstream: FakeUpstream
) -> None:
    async with Wire(served) as wire:
        await called(wire, upstream, headers=CHAT)
        upstream.reply(text("All right"))
        await wire.ask(messages=[user("Never mind")], functions=FUNCTIONS, headers=CHAT)

    shown = upstream.requests[-1].body["messages"]
    assert shape_of(upstream) == [*RESUMED, "user:Never mind"]
    assert "not executed" in shown[-2]["content"]


async def test_an_unknown_message_list_can_have_its_own_function_result(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Rain"))
    foreign = assistant(None, function_call={"name": "weather", "arguments": "{}"})
    async with Wire(served) as wire:
        answer = await wire.ask(messages=[*REQUESTED, foreign, RAIN])

    assert answer.headers["x-conversation-match"] == "entry"
    assert shape_of(upstream)[1:] == ["user:What is the weather in Bonn?", "calls:weather", "result"]


async def test_without_stored_content_the_agent_sees_the_message_list(
    served: Served, upstream: FakeUpstream
) -> None:
    async with Wire(served) as wire:
        message = await called(wire, upstream, store=False)
        upstream.reply(text("Rain"))
        await wire.completion(messages=[*REQUESTED, echoed(message), RAIN], functions=FUNCTIONS, store=False)

    assert agent_of(upstream) == "repairs"
    assert shape_of(upstream)[1:] == ["user:What is the weather in Bonn?", "calls:weather", "result"]


async def test_look_alikes_give_the_agent_and_nothing_hidden(served: Served, upstream: FakeUpstream) -> None:
    async with Wire(served) as wire:
        messages = [*REQUESTED, echoed(await called(wire, upstream)), RAIN]
        await called(wire, upstream)
        upstream.reply(text("Rain"))
        await wire.completion(messages=messages, functions=FUNCTIONS)

    assert agent_of(upstream) == "repairs"
    assert shape_of(upstream)[1:] == ["user:What is the weather in Bonn?", "calls:weather", "result"]


@pytest.mark.parametrize(
    ("messages", "headers"),
    [
        ([RAIN], None),
        ([*REQUESTED, RAIN], None),
        ([*REQUESTED, assistant("It rains"), RAIN], None),
        ([RAIN], CHAT),
        ([{**RAIN, "name": "other"}], {"X-Conversation-Id": "chat-2"}),
    ],
    ids=["alone", "behind the question", "behind an answer", "in a new conversation", "of another function"],
)
async def test_a_result_of_a_call_that_was_never_made_is_refused(
    served: Served, upstream: FakeUpstream, messages: Any, headers: dict[str, str] | None
) -> None:
    async with Wire(served) as wire:
        await called(wire, upstream, headers={"X-Conversation-Id": "chat-2"})
        requested = len(upstream.requests)
        refused = await wire.ask(messages=messages, functions=FUNCTIONS, headers=headers)

    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert len(upstream.requests) == requested
