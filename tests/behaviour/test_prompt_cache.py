"""``prompt_cache``: the share of each prompt that is the beginning of the one before, and providers that reject it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.teamfiles.team_sources import BUNDLED
from tests.behaviour.chat_client import Caller, assistant, user
from tests.fakes.providers.chat import USAGE, ChatProvider, Plan
from tests.fakes.providers.openai import Gpt55
from tests.fakes.providers.rejecting import Anthropic
from tests.fakes.upstream import FakeUpstream
from tests.server import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

PLAN: Plan = (
    ("transfer_to_issues_and_repairs", {"reason": "broken"}),
    ("look_up_item", {"search_query": "rocket"}),
    ("transfer_back_to_triage", {"reason": "to buy"}),
    ("transfer_to_sales_agent", {"reason": "to buy"}),
)
TEXT = ("It exploded when I started it.", "It is the unicycle.", "Can I buy a new one?")


@asynccontextmanager
async def shop(
    folder: Path, provider: ChatProvider | Gpt55, *, prompt_cache: bool, wire: str = "chat"
) -> AsyncIterator[tuple[Caller, FakeUpstream]]:
    text = (BUNDLED / "acme-support.yaml").read_text(encoding="utf-8")
    text = text.replace("    entry:", f"    prompt_cache: {str(prompt_cache).lower()}\n    entry:", 1)
    async with FakeUpstream(answer=provider) as upstream:
        models = f"models: {{default: {{model: m, base_url: '{upstream.base_url}', wire: {wire}}}}}\n"
        (folder / "team.yaml").write_text(models + text, encoding="utf-8")
        async with serve(folder, teams=folder / "team.yaml") as served:
            yield Caller(served), upstream


async def converse(caller: Caller, *, has_clock: bool = False) -> list[Any]:
    """Three turns; with a clock the client's system message is another one in each."""
    messages: list[Any] = []
    answers = []
    for hour, content in enumerate(TEXT):
        system = [{"role": "system", "content": f"This is a chat. It is {hour}:15."}] if has_clock else []
        messages.append(user(content))
        answers.append(await caller.completion([*system, *messages], model="acme-support"))
        messages.append(assistant(answers[-1].choices[0].message.content))
    return answers


def prompt_of(body: Any) -> str:
    """The parts of a request that form the prompt, in the order in which providers cache them."""
    messages = [body.get("instructions"), *(body.get("messages") or body["input"])]
    return json.dumps(body.get("tools")) + json.dumps(messages)[:-1]


def shares(upstream: FakeUpstream) -> list[float]:
    """The share of each prompt but the first that is the beginning of the prompt before it."""
    prompts = [prompt_of(request.body) for request in upstream.requests]
    return [_shared(before, prompt) / len(prompt) for before, prompt in pairwise(prompts)]


def _shared(before: str, prompt: str) -> int:
    """How many characters at the beginning are the same."""
    pairs = enumerate(zip(before, prompt, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(before), len(prompt)))


def handoffs(upstream: FakeUpstream, shares: Sequence[float]) -> list[float]:
    """The shares of the prompts of agents that were just handed off to."""
    last = [(request.body.get("messages") or request.body["input"])[-1] for request in upstream.requests[1:]]
    texts = [str(message.get("content") or message.get("output") or "") for message in last]
    return [share for share, text in zip(shares, texts, strict=True) if text.startswith("You are ")]


@pytest.mark.parametrize("wire", ["chat", "responses"])
async def test_a_handoff_keeps_at_least_80_percent_of_the_prompt(tmp_path: Path, wire: str) -> None:
    provider = Gpt55(PLAN) if wire == "responses" else ChatProvider(PLAN)
    async with shop(tmp_path, provider, prompt_cache=True, wire=wire) as (caller, upstream):
        await converse(caller)
        shared = shares(upstream)

    assert len(handoffs(upstream, shared)) == 3
    assert min(shared) >= 0.8


async def test_without_the_option_a_handoff_keeps_almost_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path, ChatProvider(PLAN), prompt_cache=False) as (caller, upstream):
        await converse(caller)
        shared = shares(upstream)

    assert max(handoffs(upstream, shared)) <= 0.1


@pytest.mark.parametrize(("prompt_cache", "least"), [(True, 0.75), (False, 0.0)], ids=["on", "off"])
async def test_a_clock_in_the_clients_system_message_costs_only_the_turn_before(
    tmp_path: Path, prompt_cache: bool, least: float
) -> None:
    async with shop(tmp_path, ChatProvider(PLAN), prompt_cache=prompt_cache) as (caller, upstream):
        await converse(caller, has_clock=True)
        shared = shares(upstream)
        messages = upstream.requests[-1].body["messages"]

    assert least <= min(shared[-2:]) < (0.9 if prompt_cache else 0.6)
    if not prompt_cache:
        return
    late = [(at, m["content"]) for at, m in enumerate(messages) if m["role"] == "system"][1:]
    newest = max(at for at, message in enumerate(messages) if message["role"] == "user")
    assert late == [(newest - 1, "This is a chat. It is 2:15.")]


async def test_the_request_names_the_tools_that_the_active_agent_may_call(tmp_path: Path) -> None:
    async with shop(tmp_path, Gpt55(PLAN), prompt_cache=True, wire="responses") as (caller, upstream):
        await converse(caller)
        bodies = [request.body for request in upstream.requests]

    tools = [[tool["name"] for tool in body["tools"]] for body in bodies]
    allowed = [[tool["name"] for tool in body["tool_choice"]["tools"]] for body in bodies]
    assert tools == [tools[0]] * len(tools)
    assert allowed[0] == ["transfer_to_sales_agent", "transfer_to_issues_and_repairs"]
    assert allowed[1] == ["look_up_item", "execute_refund", "transfer_back_to_triage"]
    assert {body["tool_choice"]["type"] for body in bodies} == {"allowed_tools"}


async def test_a_provider_that_rejects_late_system_messages_gets_one_in_front(tmp_path: Path) -> None:
    provider = Anthropic(PLAN)
    async with shop(tmp_path, provider, prompt_cache=True) as (caller, upstream):
        answers = await converse(caller, has_clock=True)
        requests = [request.body for request in upstream.requests]

    assert len(provider.rejections) == 1
    assert len(requests) == len(PLAN) + len(TEXT) + 1
    roles = [[message["role"] for message in body["messages"]] for body in requests[1:]]
    assert all(role[0] == "system" and "system" not in role[1:] for role in roles)
    assert all(answer.choices[0].message.content for answer in answers)


async def test_cached_tokens_are_reported_per_agent(tmp_path: Path) -> None:
    cached = USAGE["prompt_tokens_details"]["cached_tokens"]  # type: ignore[index]
    async with shop(tmp_path, ChatProvider(PLAN[:2]), prompt_cache=True) as (caller, _):
        answer = await caller.completion(
            [user(TEXT[0])], model="acme-support", headers={"X-Handoff-Events": "extension"}
        )

    used = {use["agent"]: use for use in answer.model_dump()["handoff"]["usage"]}
    assert used["TriageAgent"]["cached_tokens"] == cached
    assert used["IssuesAndRepairsAgent"]["cached_tokens"] == 2 * cached
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3 * cached
