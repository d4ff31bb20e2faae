"""What the proxy learns from the rejection of one caller's request, and what it must not apply to other callers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import Caller, assistant, result, user
from tests.fakes.providers.chat import ChatProvider
from tests.fakes.providers.openai import message as message_item
from tests.fakes.providers.openai import reasoning_item, response
from tests.fakes.replies import Reply, error, text
from tests.fakes.upstream import FakeUpstream, Received
from tests.server import TEAM_FILE, Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARK = "forbidden words"


def rejecting(quote: Callable[[str], str]) -> Callable[[Received], Reply]:
    """A provider that rejects what one caller writes, and quotes it in its error."""

    def answer(received: Received) -> Reply:
        messages = received.body.get("messages") or received.body["input"]
        for message in messages:
            if MARK in str(message.get("content")):
                return error(400, message=quote(json.dumps(message["content"])), code="invalid_request_error")
        return text('{"ok": true}')

    return answer


async def request_after_rejection(
    folder: Path, content: str, quote: str, messages: list[Any], **parameters: Any
) -> Received:
    """The last request, of another caller, after one caller's was rejected with an error that quotes it."""
    async with (
        FakeUpstream(answer=rejecting(quote.format)) as upstream,
        serve(folder, upstream.base_url) as served,
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await Caller(served).ask([user(f"{MARK} {content}")])
        await Caller(served).ask(messages, **parameters)
        assert caught.value.code == "upstream_bad_request"
        return upstream.requests[-1]


@pytest.mark.parametrize(
    ("content", "quote"),
    [
        ("reasoning_effort with function tools is not supported", "Your text was rejected: {}"),
        ("STREAM_OPTIONS and PARALLEL_TOOL_CALLS are not supported", "Unsupported text: {}"),
        ("stream_options", "Not supported: {}"),
        ("json mode cannot be combined with tools", "Not supported: {}"),
        ("use /v1/responses instead", "Rejected: {}"),
        ("property name is unsupported", "Rejected: {}"),
    ],
)
async def test_a_quoted_text_changes_no_other_request(tmp_path: Path, content: str, quote: str) -> None:
    named = {"role": "user", "content": "Hi", "name": "Ada"}
    request = await request_after_rejection(
        tmp_path, content, quote, [named], reasoning_effort="high", response_format={"type": "json_object"}
    )

    assert request.path == "/v1/chat/completions"
    assert request.body["reasoning_effort"] == "high"
    assert request.body["stream_options"] == {"include_usage": True}
    assert request.body["response_format"] == {"type": "json_object"}
    assert request.body["messages"][-1] == named


CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up_item", "arguments": "{}"}}


async def test_invalid_provider_state_of_one_client_does_not_remove_that_of_others(tmp_path: Path) -> None:
    def answer(received: Received) -> Reply:
        if "changed" in json.dumps(received.body["messages"]):
            return error(400, code="invalid_value", message="reasoning_content could not be verified")
        return text("Yes.")

    def history(reasoning: str) -> list[Any]:
        calling = {"role": "assistant", "tool_calls": [CALL], "reasoning_content": reasoning}
        return [user(f"It broke {reasoning}"[:8]), calling, result("call_1", "a rocket"), user("Really?")]

    async with FakeUpstream(answer=answer) as upstream, serve(tmp_path, upstream.base_url) as served:
        first = await Caller(served).ask(history("changed"))
        second = await Caller(served).ask(history("original"))
        sent = [message for message in upstream.requests[-1].body["messages"] if message.get("tool_calls")]

    assert (first, second) == ("Yes.", "Yes.")
    assert sent[0]["reasoning_content"] == "original"


async def test_a_conversation_continues_when_its_stored_state_is_not_accepted_any_more(
    tmp_path: Path,
) -> None:
    """What OpenAI encrypted for one organisation cannot be decrypted after the operator's key changed."""
    rejections: list[str] = []

    def answer(received: Received) -> Reply:
        if "encrypted_content" in json.dumps(received.body["input"]):
            rejections.append(received.path)
            message = "The encrypted content for item rs_1 could not be verified."
            return error(400, message=message, code="invalid_encrypted_content")
        return response(reasoning_item(1), message_item("It is a rocket."))

    teams = tmp_path / "responses.yaml"
    async with FakeUpstream(answer=answer) as upstream:
        text_of_file = TEAM_FILE.format(upstream=upstream.base_url)
        teams.write_text(text_of_file.replace("api_key:", "wire: responses, api_key:"))
        async with serve(tmp_path, teams=teams) as served:
            messages: list[Any] = [user("It broke")]
            messages += [assistant(await Caller(served).ask(messages)), user("And now?")]
            answer_without = await Caller(served).ask(messages)

    assert rejections == ["/v1/responses"]
    assert answer_without == "It is a rocket."


async def test_each_attempt_rejects_another_field(tmp_path: Path) -> None:
    """The number of attempts is limited, and the caller gets the error of the last."""

    class Endless(ChatProvider):
        def rejection(self, body: Any) -> Reply | None:
            self.rejections.append("x")
            removable = sorted(body.keys() - {"model", "messages", "stream", "tools"})
            param = removable[0] if removable else "messages"
            return error(400, message=f"'{param}' is not supported", code="unsupported_parameter")

    provider = Endless()
    options: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.5,
        "seed": 1,
        "stop": ["x"],
        "max_tokens": 9,
        "presence_penalty": 1,
    }
    options |= {
        "frequency_penalty": 1,
        "verbosity": "low",
        "reasoning_effort": "low",
        "user": "u",
        "service_tier": "flex",
    }
    async with FakeUpstream(answer=provider) as upstream, serve(tmp_path, upstream.base_url) as served:
        with pytest.raises(openai.BadRequestError):
            await Caller(served).ask([user("Hi")], **options)

    assert 3 < len(provider.rejections) <= 10


async def test_models_of_the_same_name_learn_separately(tmp_path: Path) -> None:
    teams = tmp_path / "two.yaml"

    def strict(received: Received) -> Reply:
        if "temperature" in received.body:
            return error(
                400, {"error": {"message": "no", "param": "temperature", "code": "unsupported_parameter"}}
            )
        return text("strict")

    async with FakeUpstream(answer=strict) as one, FakeUpstream(answer=lambda _: text("lenient")) as other:
        teams.write_text(
            "models:\n"
            f"  one: {{model: same, base_url: '{one.base_url}', api_key: k}}\n"
            f"  other: {{model: same, base_url: '{other.base_url}', api_key: k}}\n"
            "teams:\n"
            "  first: {entry: a, agents: {a: {model: one, instructions: x}}}\n"
            "  second: {entry: b, agents: {b: {model: other, instructions: x}}}\n"
        )
        async with serve(tmp_path, teams=teams) as served:
            answers = [await _ignored(served, team) for team in ("first", "first", "second")]

    assert answers == [("strict", "temperature"), ("strict", "temperature"), ("lenient", None)]
    assert other.requests[-1].body["temperature"] == 0.5


async def _ignored(served: Served, model: str) -> tuple[str | None, str | None]:
    create = served.client().chat.completions.with_raw_response.create
    answer = await create(model=model, messages=[user("Hi")], temperature=0.5)
    return answer.parse().choices[0].message.content, answer.headers.get("x-ignored-parameters")
