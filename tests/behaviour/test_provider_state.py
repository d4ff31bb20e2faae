"""Teams on providers that want back what they returned: tool loop, handoff, restart, plain and streamed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.bank import bank
from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.fakes.providers.chat import ANSWER, PLAN, SECRET, ChatProvider, Plan
from tests.fakes.providers.openai import Gpt55
from tests.fakes.providers.reasoning import DeepSeek, Gemini, OpenRouter
from tests.fakes.upstream import FakeUpstream
from tests.server import TEAM_FILE, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"X-Conversation-Id": "chat-1"}
FAMILIES = [
    pytest.param(DeepSeek, id="DeepSeek"),
    pytest.param(Gemini, id="Gemini 3"),
    pytest.param(OpenRouter, id="OpenRouter"),
    pytest.param(Gpt55, id="GPT-5.5"),
]


async def ask(client: Any, words: str, *, is_streamed: bool, **more: Any) -> tuple[str, str]:
    """The answer's text, and everything that the client received."""
    asked = {"model": "shop", "messages": [{"role": "user", "content": words}], "extra_headers": CHAT, **more}
    if not is_streamed:
        completion = await client.chat.completions.create(**asked)
        return completion.choices[0].message.content, completion.model_dump_json()
    chunks = [one async for one in await client.chat.completions.create(**asked, stream=True)]
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    return text, "".join(one.model_dump_json() for one in chunks)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("family", FAMILIES)
async def test_state_comes_back_in_tool_loops_over_handoffs_and_after_a_restart(
    tmp_path: Path, family: Callable[[], ChatProvider | Gpt55], is_streamed: bool
) -> None:
    provider = family()
    async with FakeUpstream(answer=provider) as upstream:
        async with serve(tmp_path, upstream.base_url) as served:
            first, received = await ask(served.client(), "It broke", is_streamed=is_streamed)
        async with serve(tmp_path, upstream.base_url) as served:
            second, more = await ask(served.client(), "Really?", is_streamed=is_streamed)
        requests = len(upstream.requests)

    assert (first, second) == (ANSWER, ANSWER)
    # The first call of GPT-5.5 in each process learns that the model needs the other wire.
    assert provider.rejections == (["reasoning_effort"] * 2 if family is Gpt55 else [])
    assert requests == 4 + len(provider.rejections)
    if family is not DeepSeek:
        # DeepSeek's is the visible reasoning text too.
        assert SECRET not in received + more


@pytest.mark.parametrize("family", FAMILIES)
async def test_state_comes_back_when_another_worker_gets_the_result_of_a_client_tool(
    tmp_path: Path, family: Callable[[Plan], ChatProvider | Gpt55]
) -> None:
    provider = family((("transfer_to_repairs", {}), ("weather", {"city": "Bonn"}), PLAN[1]))
    async with (
        FakeUpstream(answer=provider) as upstream,
        serve(tmp_path, upstream.base_url) as served,
        serve(tmp_path, upstream.base_url) as other,
    ):
        asked = [user("Is it wet?")]
        completion = await Caller(served).completion(asked, tools=[WEATHER])
        message = completion.choices[0].message
        assert message.tool_calls
        answered = [*asked, message.model_dump(), result(message.tool_calls[0].id, "rain")]
        answer = await Caller(other).ask(answered, tools=[WEATHER])

    assert answer == ANSWER
    assert set(provider.rejections) <= {"reasoning_effort"}


@pytest.mark.parametrize("family", FAMILIES)
async def test_state_comes_back_behind_an_approval_and_on_a_branch(
    tmp_path: Path, family: Callable[[Plan], ChatProvider | Gpt55]
) -> None:
    provider = family((("transfer_to_cashier", {}), ("pay", {"to": "Ada", "amount": 5})))
    async with FakeUpstream(answer=provider) as upstream, bank(tmp_path, upstream) as served:
        caller = Caller(served)
        asked = [user("Pay Ada")]
        question = await caller.ask(asked, model="bank")
        agreed = [*asked, assistant(question), user("yes")]
        answer = await caller.ask(agreed, model="bank")
        continued = await caller.ask([*agreed, assistant(answer), user("Thanks")], model="bank")
        edited = await caller.ask([*agreed, assistant(answer), user("Thank you")], model="bank")

    assert question != ANSWER
    assert [answer, continued, edited] == [ANSWER] * 3
    assert set(provider.rejections) <= {"reasoning_effort"}


async def test_state_is_not_in_the_history_of_the_conversation(tmp_path: Path) -> None:
    async with FakeUpstream(answer=Gemini()) as upstream, serve(tmp_path, upstream.base_url) as served:
        client = served.client()
        await ask(client, "It broke", is_streamed=False, store=True)
        items = await client.conversations.items.list("chat-1", limit=50)
        stored = await client.chat.completions.list()
        messages = [(await client.chat.completions.messages.list(one.id)).to_json() for one in stored.data]

    assert "rocket" in items.to_json()
    assert messages
    assert SECRET not in items.to_json() + stored.to_json() + "".join(messages)


async def test_state_is_not_sent_to_another_model(tmp_path: Path) -> None:
    async with FakeUpstream(answer=DeepSeek()) as upstream:
        async with serve(tmp_path, upstream.base_url) as served:
            await ask(served.client(), "It broke", is_streamed=False)
        file = tmp_path / "other-model.yaml"
        file.write_text(TEAM_FILE.format(upstream=upstream.base_url).replace("test-model", "another-model"))
        provider = DeepSeek()
        upstream._answer = provider
        async with serve(tmp_path, upstream.base_url, teams=file) as served:
            text, _ = await ask(served.client(), "Really?", is_streamed=False)

    assert (text, provider.rejections) == (ANSWER, [])
    sent = provider.requests[0]["messages"]
    assert any(message.get("tool_calls") for message in sent)
    assert not any("reasoning_content" in message for message in sent)


async def test_parameters_without_a_responses_name_are_reported_as_ignored(tmp_path: Path) -> None:
    file = tmp_path / "responses.yaml"
    async with FakeUpstream(answer=Gpt55()) as upstream:
        teams = TEAM_FILE.format(upstream=upstream.base_url)
        file.write_text(teams.replace("api_key:", "wire: responses, api_key:"))
        async with serve(tmp_path, upstream.base_url, teams=file) as served:
            answer = await served.client().chat.completions.with_raw_response.create(
                model="shop",
                messages=[{"role": "user", "content": "It broke"}],
                reasoning_effort="high",
                max_completion_tokens=500,
                seed=7,
                stop="x",
            )
        bodies = [request.body for request in upstream.requests]

    assert answer.parse().choices[0].message.content == ANSWER
    assert set(answer.headers["x-ignored-parameters"].replace(" ", "").split(",")) == {"seed", "stop"}
    assert [body["reasoning"] for body in bodies] == [{"effort": "high", "summary": "auto"}] * 3
    assert {body["max_output_tokens"] for body in bodies} <= set(range(1, 501))
    usage = answer.parse().usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 12
