"""The caller's own tools inside a team: offered, handed back, and the turn resumed where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion

from tests.behaviour.chat_client import WEATHER, Caller, agent_of, assistant, result, shape_of, sold, user
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served, serve

REQUESTED = [user("What is the weather in Bonn?")]


def echoed(completion: ChatCompletion) -> Any:
    """The assistant message as the SDK's users send it back."""
    return completion.choices[0].message.model_dump()


def call_ids(completion: ChatCompletion) -> list[str]:
    return [call.id for call in completion.choices[0].message.tool_calls or []]


async def test_only_the_callers_tools_leave_as_tool_calls(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("transfer_to_repairs", {})),
        calls(("look_up_item", {"search_query": "rocket"}), ("weather", {"city": "Bonn"})),
    )

    completion = await caller.completion(REQUESTED, tools=[WEATHER])

    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert [(c.type, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []] == [  # type: ignore[union-attr]
        ("function", "weather", '{"city": "Bonn"}')
    ]


@pytest.mark.parametrize("headers", [None, {"X-Conversation-Id": "chat-1"}], ids=["stateless", "with an id"])
async def test_the_result_resumes_the_same_agent_mid_turn_after_a_restart(
    tmp_path: Path, upstream: FakeUpstream, headers: dict[str, str] | None
) -> None:
    upstream.reply(
        calls(("transfer_to_repairs", {})),
        calls(("look_up_item", {"search_query": "rocket"}), ("weather", {"city": "Bonn"})),
        text("It rains on your rocket"),
    )
    async with serve(tmp_path, upstream.base_url) as served:
        completion = await Caller(served).completion(REQUESTED, tools=[WEATHER], headers=headers)
    answered = [*REQUESTED, echoed(completion), result(call_ids(completion)[0], "rain")]

    async with serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        answer = await caller.ask(answered, tools=[WEATHER], headers=headers)

    assert answer == "It rains on your rocket"
    assert agent_of(upstream) == "repairs"
    assert shape_of(upstream) == [
        "system",
        "user:What is the weather in Bonn?",
        "calls:transfer_to_repairs",
        "result",
        "calls:look_up_item,weather",
        "result",
        "result",
    ]
    results = [m for m in upstream.requests[-1].body["messages"] if m["role"] == "tool"]
    assert results[-1]["content"] == "rain"
    assert caller.match == ("tool-calls")


async def test_results_alone_with_an_id_are_enough(served: Served, upstream: FakeUpstream) -> None:
    caller, headers = Caller(served), {"X-Conversation-Id": "chat-1"}
    upstream.reply(calls(("weather", {"city": "Bonn"})), text("Rain"))
    completion = await caller.completion(REQUESTED, tools=[WEATHER], headers=headers)

    answer = await caller.ask([result(call_ids(completion)[0], "rain")], tools=[WEATHER], headers=headers)

    assert answer == "Rain"


async def test_a_streamed_call_comes_in_pieces_that_the_sdk_puts_together(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(
        calls(
            ("weather", {"city": "Bonn"}), ("weather", {"city": "Rome"}), text="Let me see.", interleave=True
        )
    )
    state = ChatCompletionStreamState()
    chunks = []
    stream: Any = await served.client().chat.completions.create(
        model="shop",
        messages=REQUESTED,
        tools=[WEATHER],
        stream=True,
    )
    async for chunk in stream:
        chunks.append(chunk)
        state.handle_chunk(chunk)

    final = state.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "Let me see."
    assert [c.function.arguments for c in final.message.tool_calls or []] == [
        '{"city": "Bonn"}',
        '{"city": "Rome"}',
    ]
    pieces = [p for c in chunks for choice in c.choices for p in choice.delta.tool_calls or []]
    assert [p.index for p in pieces if p.id] == [0, 1]


async def test_all_pending_calls_have_to_be_answered(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(calls(("weather", {"city": "Bonn"}), ("weather", {"city": "Rome"})), text("Both rain"))
    completion = await caller.completion(REQUESTED, tools=[WEATHER])
    one, two = call_ids(completion)

    with pytest.raises(openai.BadRequestError) as refused:
        await caller.ask([*REQUESTED, echoed(completion), result(one, "rain")], tools=[WEATHER])

    assert two in refused.value.message
    assert one not in refused.value.message
    both = [result(two, "rain"), result(one, "rain")]
    assert await caller.ask([*REQUESTED, echoed(completion), *both], tools=[WEATHER]) == "Both rain"


@pytest.mark.parametrize("headers", [None, {"X-Conversation-Id": "chat-1"}], ids=["stateless", "with an id"])
async def test_a_result_for_a_call_that_was_never_made_is_refused(
    served: Served, upstream: FakeUpstream, headers: dict[str, str] | None
) -> None:
    caller = Caller(served)
    await sold(caller, upstream, headers={"X-Conversation-Id": "chat-1"})

    with pytest.raises(openai.BadRequestError) as refused:
        await caller.ask([result("call_unknown", "rain")], headers=headers)
    assert "call_unknown" in refused.value.message


async def test_a_user_message_instead_of_the_result_closes_the_call(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(calls(("weather", {"city": "Bonn"})), text("All right"))
    completion = await caller.completion(REQUESTED, tools=[WEATHER])

    answer = await caller.ask([user("Never mind")], headers={"X-Conversation-Id": caller.conversation})

    assert answer == "All right"
    shown = upstream.requests[-1].body["messages"]
    assert shown[-2]["role"] == "tool"
    assert "not executed" in shown[-2]["content"]
    assert call_ids(completion) == [shown[-2]["tool_call_id"]]


@pytest.mark.parametrize("headers", [{}, {"X-Conversation-Id": "chat-1"}], ids=["stateless", "with an id"])
async def test_a_user_message_instead_of_the_result_is_for_the_agent_that_called(
    served: Served, upstream: FakeUpstream, headers: dict[str, str]
) -> None:
    caller = Caller(served)
    upstream.reply(text("How can I help?"))
    messages = [user("Hello")]
    messages.append(assistant(await caller.ask(messages, headers=headers)))
    upstream.reply(calls(("transfer_to_sales", {})), calls(("weather", {"city": "Bonn"})), text("All right"))
    messages.append(user("Does a rocket fly in this weather?"))
    completion = await caller.completion(messages, headers=headers, tools=[WEATHER])
    messages += [echoed(completion), user("Never mind")]

    messages.append(assistant(await caller.ask(messages, headers=headers, tools=[WEATHER])))

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[-5:] == [
        "calls:transfer_to_sales",
        "result",
        "calls:weather",
        "result",
        "user:Never mind",
    ]
    assert "not executed" in upstream.requests[-1].body["messages"][-2]["content"]

    upstream.reply(text("Ten"))
    await caller.ask([*messages, user("How much is it?")], headers=headers, tools=[WEATHER])
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[-3:] == ["user:Never mind", "assistant:All right", "user:How much is it?"]


async def test_an_agent_may_hand_over_after_the_results(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("weather", {"city": "Bonn"})), calls(("transfer_to_sales", {})), text("Buy an umbrella")
    )
    completion = await caller.completion(REQUESTED, tools=[WEATHER])
    answered = [*REQUESTED, echoed(completion), result(call_ids(completion)[0], "rain")]

    answer = await caller.ask(answered, tools=[WEATHER])
    upstream.reply(text("Five dollars"))
    await caller.ask([*answered, assistant(answer), user("How much?")], tools=[WEATHER])

    assert (agent_of(upstream), caller.match) == ("sales", "fingerprint")


async def test_an_unknown_message_list_can_have_its_own_tool_results(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(text("Rain"))
    foreign = {"id": "x1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}

    answer = await caller.ask(
        [*REQUESTED, assistant(None, tool_calls=[foreign]), result("x1", "rain")], tools=[WEATHER]
    )

    assert answer == "Rain"
    assert shape_of(upstream)[1:] == ["user:What is the weather in Bonn?", "calls:weather", "result"]


@pytest.mark.parametrize("name", ["transfer_to_sales", "execute_order"])
async def test_a_name_that_the_team_uses_itself_is_refused(served: Served, name: str) -> None:
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}

    with pytest.raises(openai.BadRequestError) as refused:
        await Caller(served).ask(REQUESTED, tools=[WEATHER, tool])
    assert refused.value.param == "tools[1].function.name"


async def test_more_than_max_client_tools_are_ignored_in_auto_mode(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(text("Hello"))
    tools = [{"type": "function", "function": {"name": f"builtin_{n}"}} for n in range(36)]

    assert await caller.ask([user("Hi")], tools=tools) == "Hello"

    offered = [tool["function"]["name"] for tool in upstream.requests[-1].body["tools"]]
    assert offered == ["transfer_to_sales", "transfer_to_repairs"]
    assert caller.headers["x-ignored-parameters"] == "tools"


async def test_one_caller_cannot_answer_the_calls_of_another(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"})))
    completion = await Caller(served, "key-one").completion(REQUESTED, tools=[WEATHER])

    with pytest.raises(openai.BadRequestError):
        await Caller(served, "key-two").ask([result(call_ids(completion)[0], "rain")], tools=[WEATHER])


async def test_without_stored_content_the_agent_sees_the_message_list(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(calls(("transfer_to_repairs", {})), calls(("weather", {"city": "Bonn"})), text("Rain"))
    completion = await caller.completion(REQUESTED, tools=[WEATHER], store=False)
    answered = [*REQUESTED, echoed(completion), result(call_ids(completion)[0], "rain")]

    assert await caller.ask(answered, tools=[WEATHER], store=False) == "Rain"
    assert agent_of(upstream) == "repairs"
    assert shape_of(upstream)[1:] == ["user:What is the weather in Bonn?", "calls:weather", "result"]


async def test_results_alone_are_rejected_without_stored_content(
    served: Served, upstream: FakeUpstream
) -> None:
    caller, headers = Caller(served), {"X-Conversation-Id": "chat-1"}
    upstream.reply(calls(("weather", {"city": "Bonn"})))
    completion = await caller.completion(REQUESTED, tools=[WEATHER], headers=headers, store=False)

    with pytest.raises(openai.BadRequestError) as refused:
        await caller.ask([result(call_ids(completion)[0], "rain")], tools=[WEATHER], headers=headers)
    assert "Send the complete message list" in refused.value.message
