"""Conversations that outgrow the context window of the model go on, and their beginning is not forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import WEATHER, Caller, assistant, result, user
from tests.fakes.providers.windowed import WindowedProvider, calls_of, prompt_text, says
from tests.fakes.upstream import FakeUpstream, Reply, error, hang, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt " * 16
TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k{window}}}
  writer: {{model: writer-model, base_url: "{upstream}", api_key: k, context_window: {side_window}}}
teams:
  shop:
    entry: triage
    side_model: writer
    {settings}
    agents:
      triage:
        instructions: You are triage.
        tools: [look_up_item]
        handoffs: [{{to: sales, when: the user wants to buy}}]
      sales:
        instructions: You are sales.
        handoffs: [{{to: triage, when: anything else}}]
"""


@asynccontextmanager
async def shop(
    folder: Path,
    provider: WindowedProvider,
    *,
    window: int | None = None,
    settings: str = "compaction: true",
) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    async with FakeUpstream(answer=provider) as upstream:
        known = "" if window is None else f", context_window: {window}"
        text = TEAM.format(
            upstream=upstream.base_url, window=known, settings=settings, side_window=provider.side_window
        )
        (folder / "team.yaml").write_text(text, encoding="utf-8")
        async with serve(folder, teams=folder / "team.yaml") as served:
            yield served, upstream


async def converse(caller: Caller, turns: int, *, first: str = "", headers: Any = None) -> list[Any]:
    """A stateless client's chat of so many turns with long messages; return its message list."""
    messages: list[Any] = []
    for number in range(turns):
        messages.append(user(f"{first if number == 0 else ''} message {number}: {TEXT}"))
        messages.append(assistant(await caller.ask(messages, headers=headers)))
    return messages


@pytest.mark.parametrize("window", [4000, None], ids=["known window", "learned window"])
async def test_a_chat_that_outgrows_the_window_continues_with_a_summary(
    tmp_path: Path, window: int | None
) -> None:
    provider = WindowedProvider(4000)
    async with shop(tmp_path, provider, window=window) as (served, _):
        caller = Caller(served)
        messages = await converse(caller, 20, first="Remember fact-1-blue.")

    assert len(messages) == 40
    assert len(provider.rejected) == (0 if window else 1)
    assert len(provider.summaries) < 10
    last = provider.accepted[-1]["messages"]
    assert last[0]["content"].startswith("You are triage.")
    assert "fact-1-blue" in last[1]["content"]
    assert last[2]["role"] == "assistant"
    assert last[2]["content"].startswith("Summary of the earlier part of this conversation")
    assert last[-1]["content"] == messages[-2]["content"]


async def test_facts_of_later_messages_stay_in_the_context(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        for number in range(16):
            messages.append(user(f"fact-{number}-green {TEXT}"))
            messages.append(assistant(await caller.ask(messages)))

    prompt = prompt_text(provider.accepted[-1])
    assert all(f"fact-{number}-green" in prompt for number in range(16))


async def test_the_stored_conversation_and_the_client_see_no_change(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    headers = {"X-Conversation-Id": "long"}
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        for number in range(12):
            messages.append(user(f"message {number}: {TEXT}"))
            answer = await caller.ask(messages[-1:], headers=headers)
            messages.append(assistant(answer))
        items = [
            item async for item in caller.client.conversations.items.list("long", limit=100, order="asc")
        ]

    listed: list[Any] = items
    shown = [(item.role, item.content[0].text) for item in listed]
    assert provider.summaries
    assert shown == [(message["role"], message["content"]) for message in messages]


async def test_old_tool_results_are_shortened_before_messages_are_summarised(tmp_path: Path) -> None:
    provider = WindowedProvider(10_000)
    async with shop(tmp_path, provider, window=10_000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        for number in range(8):
            messages.append(user(f"What is the weather in city {number}?"))
            provider.then(calls_of(("weather", {"city": str(number)})))
            called = (await caller.completion(messages, tools=[WEATHER])).choices[0].message
            call = called.tool_calls[0] if called.tool_calls else None
            assert call is not None
            messages.append(assistant(None, tool_calls=[call.model_dump()]))
            messages.append(result(call.id, f"Report {number}: {'x' * 6000}"))
            messages.append(assistant(await caller.ask(messages, tools=[WEATHER])))

    assert not provider.rejected
    assert not provider.summaries
    results = [m["content"] for m in provider.accepted[-1]["messages"] if m["role"] == "tool"]
    assert len(results) == 8
    assert len(results[0]) < 1200
    assert "characters of this result are not shown any more" in results[0]
    assert results[-1] == messages[-2]["content"]


async def test_a_long_turn_of_one_message_keeps_its_newest_steps(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = [user("Do all of it. fact-1-red")]
        for number in range(16):
            provider.then(calls_of(("weather", {"city": f"fact-{number}-step {'y' * 1200}"})))
            called = (await caller.completion(messages, tools=[WEATHER])).choices[0].message
            assert called.tool_calls is not None
            call = called.tool_calls[0]
            messages.append(assistant(None, tool_calls=[call.model_dump()]))
            messages.append(result(call.id, "done"))
        provider.then(says("All done."))
        answer = await caller.ask(messages, tools=[WEATHER])

    assert answer == "All done."
    assert not provider.rejected
    prompt = prompt_text(provider.accepted[-1])
    assert "fact-1-red" in prompt
    assert all(f"fact-{number}-step" in prompt for number in range(16))


async def test_an_agent_that_was_handed_to_continues_behind_the_summary(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        provider.then(calls_of(("transfer_to_sales", {"reason": "to buy"})))
        await converse(caller, 14)

    assert provider.summaries
    assert provider.accepted[-1]["messages"][0]["content"].startswith("You are sales.")


async def test_one_summary_serves_all_branches_of_a_point(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        while not provider.summaries:
            messages.append(user(f"message {len(messages)}: {TEXT}"))
            messages.append(assistant(await caller.ask(messages)))
        for branch in range(5):
            await caller.ask([*messages[:-2], user(f"branch {branch}: {TEXT}")])

    assert len(provider.summaries) == 1


async def test_another_worker_and_a_restart_use_the_summary_of_a_branch(tmp_path: Path) -> None:
    """Each server has its own connections to the database and no memory of the others."""
    provider = WindowedProvider(4000)
    messages: list[Any] = []
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        while not provider.summaries:
            messages.append(user(f"message {len(messages)}: {TEXT}"))
            messages.append(assistant(await caller.ask(messages)))
        conversation = {"X-Conversation-Id": caller.conversation}
        async with serve(tmp_path, teams=tmp_path / "team.yaml") as other:
            branch = [*messages[:-2], user(f"of the other worker: {TEXT}")]
            await Caller(other).ask(branch, headers=conversation)
    async with shop(tmp_path, provider, window=4000) as (served, upstream):
        branch = [*messages[:-2], user(f"after a restart: {TEXT}")]
        await Caller(served).ask(branch, headers=conversation)
        seen = prompt_text(upstream.requests[-1].body)

    assert len(provider.summaries) == 1
    assert "Summary of the earlier part of this conversation" in seen


async def test_two_workers_that_compact_at_once_make_at_most_one_summary_each(tmp_path: Path) -> None:
    """Frontends send one message to several models at the same time; each branch continues with a valid context."""
    provider = WindowedProvider(4000)
    messages: list[Any] = []
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        async with serve(tmp_path, teams=tmp_path / "team.yaml") as other:
            while len(messages) < 12:
                messages.append(user(f"message {len(messages)}: {TEXT}"))
                messages.append(assistant(await caller.ask(messages)))
            before = len(provider.summaries)
            callers = [Caller(served), Caller(other)]
            branches = [[*messages, user(f"branch {number}: {TEXT * 2}")] for number in range(2)]
            answers = await asyncio.gather(
                *(one.ask(branch) for one, branch in zip(callers, branches, strict=True))
            )
            created = len(provider.summaries) - before
            for one, branch, answer in zip(callers, branches, answers, strict=True):
                await one.ask([*branch, assistant(answer), user("And now?")])

    assert 1 <= created <= 2
    assert len(provider.summaries) - before <= 2
    assert not provider.rejected


async def test_a_client_that_stores_nothing_gets_one_summary_for_many_requests(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        for number in range(16):
            messages.append(user(f"message {number}: {TEXT}"))
            messages.append(assistant(await caller.ask(messages, store=False)))

    assert not provider.rejected
    assert 1 <= len(provider.summaries) <= 4


async def test_one_message_that_is_too_long_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with shop(tmp_path, provider, window=4000) as (served, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await Caller(served).ask([user("x" * 40_000)])

    error: Any = caught.value.body
    assert (caught.value.status_code, error["code"], error["param"]) == (
        400,
        "context_length_exceeded",
        "messages",
    )
    assert error["message"] == (
        "The conversation exceeds the context window of the model, also after older messages were summarised and "
        "tool results shortened. Shorten the newest message or its attachments, or start a new conversation."
    )


async def test_a_team_can_switch_compaction_off(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    async with shop(tmp_path, provider, settings="compaction: false") as (served, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await converse(Caller(served), 20)

    assert caught.value.code == "context_length_exceeded"
    assert "enable the compaction of long conversations" in caught.value.message
    assert not provider.summaries


async def test_a_summary_that_cannot_be_written_does_not_end_the_conversation(tmp_path: Path) -> None:
    provider = WindowedProvider(4000, summary="")
    async with shop(tmp_path, provider, window=4000) as (served, _):
        messages = await converse(Caller(served), 13, first="fact-1-blue")

    last = provider.accepted[-1]["messages"]
    assert "fact-1-blue" in last[1]["content"]
    assert last[2]["content"].endswith("Earlier messages of this conversation are not available.")
    assert len(messages) == 26


@pytest.mark.parametrize("reply", [error(401), hang(), text("  ")], ids=["401", "hang", "blank"])
async def test_a_side_model_that_fails_or_hangs_does_not_end_the_conversation(
    reply: Reply, tmp_path: Path
) -> None:
    class Failing(WindowedProvider):
        def _summary(self, body: Any) -> Reply:
            return reply

    provider = Failing(4000)
    settings = "limits: {turn_seconds: 8}"
    async with shop(tmp_path, provider, window=4000, settings=settings) as (served, _):
        # One that hangs delays each of the last turns by two seconds.
        messages = await converse(Caller(served), 9, first="fact-1-blue")

    assert len(provider.summaries) > 1
    assert "fact-1-blue" in provider.accepted[-1]["messages"][1]["content"]
    assert len(messages) == 18


async def test_a_side_model_with_a_small_window_summarises_in_pieces(tmp_path: Path) -> None:
    provider = WindowedProvider(8000, side_window=2000)
    async with shop(tmp_path, provider, window=8000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        while not provider.summaries:
            messages.append(user(f"fact-{len(messages)}-pink {TEXT}"))
            messages.append(assistant(await caller.ask(messages)))

    assert len(provider.summaries) > 3
    assert "Existing summary" in prompt_text(provider.summaries[-1])
    prompt = prompt_text(provider.accepted[-1])
    assert all(f"fact-{number}-pink" in prompt for number in range(0, len(messages), 2))


async def test_the_threshold_of_a_team(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    settings = "compaction: {threshold: 0.3}"
    async with shop(tmp_path, provider, window=4000, settings=settings) as (served, _):
        await converse(Caller(served), 9)

    sizes = [len(prompt_text(body)) // 4 for body in provider.accepted]
    assert max(sizes) < 0.5 * 4000


async def test_the_model_of_compaction_writes_summaries_instead_of_the_side_model(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    settings = "compaction: {model: default}"
    async with shop(tmp_path, provider, window=4000, settings=settings) as (served, _):
        await converse(Caller(served), 9)

    assert {body["model"] for body in provider.summaries} == {"test-model"}


async def test_the_extension_reports_a_compaction_with_its_usage(tmp_path: Path) -> None:
    provider = WindowedProvider(4000)
    reported: list[Any] = []
    async with shop(tmp_path, provider, window=4000) as (served, _):
        caller = Caller(served)
        messages: list[Any] = []
        for number in range(13):
            messages.append(user(f"message {number}: {TEXT}"))
            stream = await caller.client.chat.completions.create(
                model="shop", messages=messages, stream=True, extra_headers={"X-Handoff-Events": "all"}
            )
            content = ""
            async for chunk in stream:
                content += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                extension = (chunk.model_extra or {}).get("handoff")
                reported += [extension] if extension else []
            messages.append(assistant(content))

    compactions = [one for one in reported if one["type"] == "context.compacted"]
    assert len(compactions) == len(provider.summaries) > 0
    first = compactions[0]
    assert (first["agent"], first["method"]) == ("triage", "summarised")
    assert first["tokens_before"] > 3200 > 2500 > first["tokens_after"]
    at = reported.index(first)
    completed = next(one for one in reported[at:] if one["type"] == "turn.completed")
    assert [use["model"] for use in completed["usage"]] == ["writer-model", "test-model"]


@pytest.mark.parametrize("stored", [0, 2], ids=["only the end", "the first messages and the end"])
async def test_a_client_that_shortens_its_own_list_keeps_the_hidden_items_of_what_is_left(
    tmp_path: Path, stored: int
) -> None:
    provider = WindowedProvider(100_000)
    async with shop(tmp_path, provider) as (served, _):
        caller = Caller(served)
        messages = await converse(caller, 3)
        conversation = caller.conversation
        provider.then(calls_of(("transfer_to_sales", {"reason": "to buy"})), says("What colour?"))
        messages += [user("I want a rocket"), assistant("What colour?")]
        assert await caller.ask(messages[:-1]) == "What colour?"
        messages.append(user("Red"))
        provider.then(says("Sold."))
        shortened = [*messages[:stored], *messages[6:]]
        assert await caller.ask(shortened) == "Sold."
        sold = provider.accepted[-1]["messages"]

        messages += [assistant("Sold."), user("Thanks")]
        await caller.ask([*messages[:stored], *messages[6:]])

    assert caller.conversation == conversation
    assert sold[0]["content"].startswith("You are sales.")
    roles = [message["role"] for message in sold[1:]]
    assert roles == [*["user", "assistant"][:stored], "user", "assistant", "tool", "assistant", "user"]
    assert sold[1 + stored]["content"] == "I want a rocket"
    last = [message["content"] for message in provider.accepted[-1]["messages"][-3:]]
    assert last == ["Red", "Sold.", "Thanks"]
