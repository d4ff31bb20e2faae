"""Provider state where it must not be: in histories, and at other models. The table of providers has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.providers.chat import ANSWER, SECRET
from tests.fakes.providers.openai import Gpt55
from tests.fakes.providers.reasoning import DeepSeek, Gemini
from tests.fakes.upstream import FakeUpstream
from tests.server import TEAM_FILE, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"X-Conversation-Id": "chat-1"}


async def ask(client: Any, content: str, **more: Any) -> str:
    """Return the text of the answer."""
    completion = await client.chat.completions.create(
        model="shop", messages=[{"role": "user", "content": content}], extra_headers=CHAT, **more
    )
    return str(completion.choices[0].message.content)


async def test_state_is_not_in_the_history_of_the_conversation(tmp_path: Path) -> None:
    async with FakeUpstream(answer=Gemini()) as upstream, serve(tmp_path, upstream.base_url) as served:
        client = served.client()
        await ask(client, "It broke", store=True)
        items = await client.conversations.items.list("chat-1", limit=50)
        stored = await client.chat.completions.list()
        messages = [(await client.chat.completions.messages.list(one.id)).to_json() for one in stored.data]

    assert "rocket" in items.to_json()
    assert messages
    assert SECRET not in items.to_json() + stored.to_json() + "".join(messages)


async def test_state_is_not_sent_to_another_model(tmp_path: Path) -> None:
    async with FakeUpstream(answer=DeepSeek()) as upstream:
        async with serve(tmp_path, upstream.base_url) as served:
            await ask(served.client(), "It broke")
        file = tmp_path / "other-model.yaml"
        file.write_text(TEAM_FILE.format(upstream=upstream.base_url).replace("test-model", "another-model"))
        provider = DeepSeek()
        upstream._answer = provider
        async with serve(tmp_path, upstream.base_url, teams=file) as served:
            text = await ask(served.client(), "Really?")

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
