"""Teams on providers whose streams deviate: text, server tools, handoffs and client tools, plain and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import WEATHER, user
from tests.fakes.deviations import DEVIATIONS, FAILURES, Content, Deviation, stream
from tests.fakes.payment_tool import paid
from tests.fakes.replies import chunk
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  bank:
    entry: clerk
    agents:
      clerk:
        instructions: You are clerk.
        handoffs: [{{to: cashier, tool: transfer_to_cashier}}]
      cashier:
        instructions: You are cashier.
        tools: ["tests.fakes.payment_tool:pay"]
"""
TEXT = "Paid 😀 to Ada."
ANSWER = Content(TEXT)
PAY = Content(name="pay", arguments={"amount": 5, "to": "Ada"})
HANDOFF = Content(name="transfer_to_cashier", arguments={"reason": "to pay"})
FORECAST = Content(name="weather", arguments={"city": "Bonn"})
MODES = pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
DEVIATING = pytest.mark.parametrize("deviate", [pytest.param(one, id=name) for name, one in DEVIATIONS])


class Received:
    """What a client received: the text, its own calls, and the finish reason."""

    def __init__(self) -> None:
        self.text = ""
        self.calls: dict[int, tuple[str, str, str]] = {}
        self.reason: str | None = None


async def ask(served: Served, *, is_streamed: bool, model: str = "bank", **more: Any) -> Received:
    requested = {"model": model, "messages": [user("Pay")], **more}
    create = served.client().chat.completions.create
    reply = Received()
    if not is_streamed:
        choice = (await create(**requested)).choices[0]
        reply.text, reply.reason = choice.message.content or "", choice.finish_reason
        for index, call in enumerate(choice.message.tool_calls or ()):
            reply.calls[index] = (call.id, call.function.name, call.function.arguments)
        return reply
    async for one in await create(**requested, stream=True):
        for choice in one.choices:
            reply.text += choice.delta.content or ""
            reply.reason = choice.finish_reason or reply.reason
            for piece in choice.delta.tool_calls or ():
                call_id, name, arguments = reply.calls.get(piece.index, ("", "", ""))
                call_id, name = piece.id or call_id, piece.function.name or name
                reply.calls[piece.index] = (call_id, name, arguments + (piece.function.arguments or ""))
    return reply


@MODES
@DEVIATING
async def test_text_server_tools_handoffs_and_client_tools(
    tmp_path: Path, deviate: Deviation, is_streamed: bool
) -> None:
    contents = [ANSWER, PAY, ANSWER, HANDOFF, PAY, ANSWER, FORECAST, ANSWER]
    async with FakeUpstream(*map(deviate, contents)) as upstream:
        teams = tmp_path / "bank.yaml"
        teams.write_text(TEAM.format(upstream=upstream.base_url))
        async with serve(tmp_path, teams=teams, idle_timeout=0.2) as served:
            texts = await ask(served, is_streamed=is_streamed)
            one_paid = await ask(served, is_streamed=is_streamed, model="bank/cashier")
            handed = await ask(served, is_streamed=is_streamed)
            wanted = await ask(served, is_streamed=is_streamed, tools=[WEATHER])
            ((call_id, name, arguments),) = wanted.calls.values()
            function = {"name": name, "arguments": arguments}
            calling = {
                "role": "assistant",
                "tool_calls": [{"id": call_id, "type": "function", "function": function}],
            }
            received = [user("Pay"), calling, {"role": "tool", "tool_call_id": call_id, "content": "dry"}]
            resumed = await ask(served, is_streamed=is_streamed, tools=[WEATHER], messages=received)
        requests = len(upstream.requests)

    assert [one.text for one in (texts, one_paid, handed, resumed)] == [TEXT] * 4
    assert [one.reason for one in (texts, one_paid, handed, resumed)] == ["stop"] * 4
    assert (wanted.text, wanted.reason, name, json.loads(arguments)) == (
        "",
        "tool_calls",
        "weather",
        {"city": "Bonn"},
    )
    assert paid(tmp_path) == ["5 Ada"] * 2, "a tool with effects runs once for each call"
    assert requests == len(contents)


@MODES
@pytest.mark.parametrize("reason", FAILURES)
async def test_a_failure_as_finish_reason_is_retried_if_nothing_was_sent(
    tmp_path: Path, reason: str, is_streamed: bool
) -> None:
    async with (
        FakeUpstream(stream(chunk(finish=reason)), text(TEXT)) as upstream,
        serve(tmp_path, upstream.base_url) as served,
    ):
        reply = await ask(served, is_streamed=is_streamed, model="shop")

    assert (reply.text, reply.reason) == (TEXT, "stop")


@MODES
@pytest.mark.parametrize("reason", FAILURES)
async def test_a_failure_as_finish_reason_behind_text_fails_the_turn(
    tmp_path: Path, reason: str, is_streamed: bool
) -> None:
    broken = stream(chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk(finish=reason))
    async with FakeUpstream(broken) as upstream, serve(tmp_path, upstream.base_url) as served:
        with pytest.raises(openai.APIError) as caught:
            await ask(served, is_streamed=is_streamed, model="shop")

    assert caught.value.code == "upstream_error"
    assert isinstance(caught.value, openai.APIStatusError) is not is_streamed


@MODES
async def test_a_failure_behind_a_call_runs_no_tool(tmp_path: Path, is_streamed: bool) -> None:
    calls = [chunk(delta) for delta in PAY.deltas]
    error = {"choices": [{"index": 0, "error": {"message": "no", "code": 502}, "delta": {}}]}
    async with FakeUpstream(stream(*calls, chunk(finish="error")), stream(*calls, error)) as upstream:
        teams = tmp_path / "bank.yaml"
        teams.write_text(TEAM.format(upstream=upstream.base_url))
        async with serve(tmp_path, teams=teams) as served:
            for _ in range(2):
                with pytest.raises(openai.APIError):
                    await ask(served, is_streamed=is_streamed, model="bank/cashier")

    assert paid(tmp_path) == []


@MODES
@pytest.mark.parametrize(
    ("reason", "reported"),
    [
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("sensitive", "content_filter"),
        ("SAFETY", "content_filter"),
    ],
)
async def test_finish_reasons_of_other_apis(
    tmp_path: Path, reason: str, reported: str, is_streamed: bool
) -> None:
    async with (
        FakeUpstream(stream(chunk({"content": TEXT}), chunk(finish=reason))) as upstream,
        serve(tmp_path, upstream.base_url) as served,
    ):
        reply = await ask(served, is_streamed=is_streamed, model="shop")

    assert (reply.text, reply.reason) == (TEXT, reported)


@MODES
async def test_think_tags_are_reasoning_in_json_mode_too(tmp_path: Path, is_streamed: bool) -> None:
    pieces = ("<thi", "nk>{not JSON}</th", "ink>\n", '{"ok": ', "true}")
    reply = stream(*(chunk({"content": piece}) for piece in pieces), chunk(finish="stop"))
    async with FakeUpstream(reply) as upstream, serve(tmp_path, upstream.base_url) as served:
        answer = await ask(
            served, is_streamed=is_streamed, model="shop", response_format={"type": "json_object"}
        )

    assert json.loads(answer.text) == {"ok": True}
