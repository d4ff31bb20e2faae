"""Requests for a conversation with a running turn: rejected, queued, interrupting, or answered in parallel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.chat_client import Caller, agent_of, assistant, shape_of, sold, user
from tests.fakes.upstream import FakeUpstream, Received, Reply, calls, text
from tests.polling import until
from tests.server import TEAM_FILE, Served, serve

ANNA = {"X-Conversation-Id": "anna"}
CHAT = {"X-OpenWebUI-Chat-Id": "chat-1"}


def ask(served: Served, question: str, **headers: str) -> asyncio.Task[str]:
    given = {**ANNA, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return asyncio.create_task(Caller(served).ask([user(question)], headers=given))


async def test_queued_requests_run_in_their_order(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("1").held(go), text("2"), text("3"))
    first = ask(served, "One")
    await upstream.received(1)
    turns = served.services.turns
    second = ask(served, "Two", x_busy="queue")
    await until(lambda: turns.queued == 1)
    third = ask(served, "Three", x_busy="queue")
    await until(lambda: turns.queued == 2)

    with pytest.raises(openai.ConflictError) as refused:
        await ask(served, "Four")
    go.set()

    assert refused.value.response.headers["retry-after"] == "1"
    assert [await one for one in (first, second, third)] == ["1", "2", "3"]
    assert shape_of(upstream) == [
        "system",
        *("user:One", "assistant:1", "user:Two", "assistant:2", "user:Three"),
    ]
    assert turns.queued == 0


async def test_a_queued_request_whose_client_leaves_does_not_run(
    served: Served, upstream: FakeUpstream
) -> None:
    go = asyncio.Event()
    upstream.reply(text("1").held(go), text("3"))
    first = ask(served, "One")
    await upstream.received(1)
    turns = served.services.turns
    second = ask(served, "Two", x_busy="queue")
    await until(lambda: turns.queued == 1)

    second.cancel()
    await until(lambda: turns.queued == 0)
    third = ask(served, "Three", x_busy="queue")
    await until(lambda: turns.queued == 1)
    go.set()

    assert [await one for one in (first, third)] == ["1", "3"]
    assert shape_of(upstream) == ["system", "user:One", "assistant:1", "user:Three"]


async def test_a_repetition_that_waits_does_not_interrupt_its_own_turn(
    served: Served, upstream: FakeUpstream
) -> None:
    go, answer = asyncio.Event(), asyncio.Event()
    upstream.reply(text("1").held(go), text("2").held(answer))
    first = ask(served, "One")
    await upstream.received(1)
    turns = served.services.turns
    second = ask(served, "Two", x_busy="queue", idempotency_key="two")
    await until(lambda: turns.queued == 1)
    # Its turn has not begun, so neither request is known to be the same as the other one.
    repeated = ask(served, "Two", x_busy="interrupt", idempotency_key="two")
    await until(lambda: turns.queued == 2)

    go.set()
    await upstream.received(2)
    await until(lambda: turns.queued == 0)
    answer.set()

    assert [await one for one in (first, second, repeated)] == ["1", "2", "2"]
    assert len(upstream.requests) == 2


async def test_an_interrupting_request_ends_the_running_turn(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("Once upon a time", chunks=["Once ", go, "upon"]), text("2"))
    running: Any = await served.client().chat.completions.create(
        model="shop", messages=[user("One")], stream=True, extra_headers=ANNA
    )
    await anext(aiter(running))
    async for chunk in running:
        if chunk.choices[0].delta.content:
            break

    assert await ask(served, "Two", x_busy="interrupt") == "2"

    assert [chunk.choices[0].finish_reason async for chunk in running][-1] == "stop"
    assert shape_of(upstream) == ["system", "user:One", "assistant:Once ", "user:Two"]


async def test_another_policy_is_rejected(served: Served, upstream: FakeUpstream) -> None:
    with pytest.raises(openai.BadRequestError, match="X-Busy"):
        await ask(served, "One", x_busy="wait")


async def test_the_policy_of_a_team_applies_without_a_header(tmp_path: Path, upstream: FakeUpstream) -> None:
    teams = tmp_path / "queue.yaml"
    teams.write_text(
        TEAM_FILE.format(upstream=upstream.base_url).replace("    entry:", "    busy: queue\n    entry:")
    )
    async with serve(tmp_path, teams=teams) as served:
        go = asyncio.Event()
        upstream.reply(text("1").held(go), text("2"))
        first = ask(served, "One")
        await upstream.received(1)
        second = ask(served, "Two")
        await until(lambda: served.services.turns.queued == 1)
        with pytest.raises(openai.ConflictError):
            await ask(served, "Three", x_busy="reject")
        go.set()

        assert [await one for one in (first, second)] == ["1", "2"]


async def test_users_of_one_legacy_chat_are_all_answered(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("1").held(go), text("2"), text("3"))
    async with httpx2.AsyncClient(base_url=served.url, timeout=20, verify=False) as http:

        async def say(message: str) -> str:
            body = {"message": message, "conversation_id": "lobby"}
            answer = await http.post("/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            return answer.text

        requested = [asyncio.create_task(say(message)) for message in ("One", "Two", "Three")]
        await upstream.received(1)
        await until(lambda: served.services.turns.queued == 2)
        go.set()
        answers = await asyncio.gather(*requested)

    assert all(json.loads(answer.splitlines()[0]) for answer in answers)
    assert len(shape_of(upstream)) == 6


# --- several models in one chat of a frontend ----------------------------------------------------------------


class Models:
    """The provider while two models answer: every reply waits until both requests are there."""

    def __init__(self) -> None:
        self.seen: list[Received] = []
        self.both = asyncio.Event()

    def __call__(self, received: Received) -> Reply:
        self.seen.append(received)
        if len(self.seen) == 2:
            self.both.set()
        return text(f"Answer {len(self.seen)}").held(self.both)


@pytest.mark.parametrize("second", ["shop", "shop/sales"], ids=["same model", "other model"])
async def test_models_of_one_chat_answer_at_the_same_time_on_separate_branches(
    tmp_path: Path, second: str
) -> None:
    models = Models()
    async with FakeUpstream(answer=models) as upstream, serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        answers = await asyncio.gather(
            caller.ask([user("Hello")], headers=CHAT, model="shop"),
            Caller(served).ask([user("Hello")], headers=CHAT, model=second),
        )
        assert sorted(answers) == ["Answer 1", "Answer 2"]

        models.seen, models.both = [], asyncio.Event()
        more = await asyncio.gather(
            *(
                Caller(served).ask(
                    [user("Hello"), assistant(answer), user("More")], headers=CHAT, model=model
                )
                for answer, model in zip(answers, ("shop", second), strict=True)
            )
        )

        assert sorted(more) == ["Answer 1", "Answer 2"]
        assert sorted(map(tuple, (shape_of(upstream, -1)[1:], shape_of(upstream, -2)[1:]))) == [
            ("user:Hello", f"assistant:{answer}", "user:More") for answer in sorted(answers)
        ]


async def test_a_retry_attaches_to_its_turn_while_another_model_answers(
    served: Served, upstream: FakeUpstream
) -> None:
    go = asyncio.Event()
    upstream.reply(text("One"), text("Two").held(go))
    caller = Caller(served)
    first = await caller.completion([user("Hello")], headers=CHAT)
    other = asyncio.create_task(Caller(served).ask([user("Hello")], headers=CHAT, model="shop/sales"))
    await upstream.received(2)

    again = await caller.completion([user("Hello")], headers={**CHAT, "x-stainless-retry-count": "1"})

    assert again.id == first.id
    go.set()
    assert await other == "Two"


async def test_a_new_message_to_a_running_turn_of_a_chat_is_rejected(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, headers=CHAT)
    go = asyncio.Event()
    upstream.reply(text("Ten").held(go))
    running = asyncio.create_task(Caller(served).ask([*messages, user("Red")], headers=CHAT))
    await upstream.received(3)

    with pytest.raises(openai.ConflictError):
        await caller.ask([*messages, user("Red"), user("And fast")], headers=CHAT)

    upstream.reply(calls(("transfer_back_to_triage", {})), text("Hi"))
    assert await caller.ask([*messages, user("Stop")], headers=CHAT) == "Hi"
    assert agent_of(upstream) == "triage"
    go.set()
    assert await running == "Ten"


@pytest.fixture
async def impatient(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Served]:
    """A server with a short keep-alive interval."""
    async with serve(tmp_path, upstream.base_url, keep_alive_interval=0.05) as created:
        yield created


async def queued_stream(
    served: Served, path: str, body: dict[str, Any], **headers: str
) -> tuple[asyncio.Task[str], list[str]]:
    """Send a streamed request that has to wait, and return its reader and what it has read so far."""
    got: list[str] = []

    async def read() -> str:
        given = {"Authorization": "Bearer test-key", **ANNA, "X-Busy": "queue", **headers}
        async with (
            httpx2.AsyncClient(base_url=served.base_url, timeout=20, verify=False) as client,
            client.stream(
                "POST", path, json={"model": "shop", "stream": True, **body}, headers=given
            ) as answer,
        ):
            assert answer.status_code == 200
            assert answer.headers["x-conversation-id"] == "anna"
            async for piece in answer.aiter_text():
                got.append(piece)
        return "".join(got)

    reading = asyncio.create_task(read())
    await until(lambda: "".join(got).count(": ping") >= 2)
    return reading, got


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("/chat/completions", {"messages": [user("Two")]}, "data: [DONE]\n\n"),
        ("/responses", {"input": "Two"}, "response.completed"),
    ],
    ids=["chat completions", "responses"],
)
async def test_a_queued_stream_gets_keep_alive_comments_before_its_turn_begins(
    impatient: Served, upstream: FakeUpstream, path: str, body: dict[str, Any], end: str
) -> None:
    go = asyncio.Event()
    upstream.reply(text("1").held(go), text("Second", chunks=1))
    first = ask(impatient, "One")
    await upstream.received(1)
    reading, got = await queued_stream(impatient, path, body)
    assert all(line in ("", ": ping") for line in "".join(got).split("\n"))
    go.set()

    answer = await reading
    assert await first == "1"
    assert "Second" in answer
    assert end in answer


async def test_a_queued_stream_is_read_by_the_official_sdk(impatient: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("1").held(go), text("Second", chunks=1))
    first = ask(impatient, "One")
    await upstream.received(1)

    stream = await impatient.client().chat.completions.create(
        model="shop", messages=[user("Two")], stream=True, extra_headers={**ANNA, "X-Busy": "queue"}
    )
    assert impatient.services.turns.queued == 1
    go.set()

    said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert (await first, said) == ("1", "Second")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/chat/completions", {"messages": [user("Two")]}), ("/responses", {"input": "Two"})],
    ids=["chat completions", "responses"],
)
async def test_a_queued_stream_that_cannot_begin_ends_with_the_error(
    impatient: Served, upstream: FakeUpstream, path: str, body: dict[str, Any]
) -> None:
    never = asyncio.Event()
    upstream.reply(text("1").held(never))
    first = ask(impatient, "One")
    await upstream.received(1)
    reading, _ = await queued_stream(impatient, path, body)

    closing = asyncio.create_task(impatient.services.turns.close(grace=0))
    answer = await reading
    await closing

    assert "shutting_down" in answer
    first.cancel()


async def test_a_queued_stream_without_a_client_runs_if_it_is_detached(
    impatient: Served, upstream: FakeUpstream
) -> None:
    go = asyncio.Event()
    upstream.reply(text("1").held(go), text("Second", chunks=1))
    first = ask(impatient, "One")
    await upstream.received(1)
    reading, _ = await queued_stream(
        impatient, "/chat/completions", {"messages": [user("Two")]}, **{"X-On-Disconnect": "detach"}
    )
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    go.set()

    assert await first == "1"
    await upstream.received(2)
    await until(lambda: not impatient.services.turns.running)
    assert shape_of(upstream)[-1] == "user:Two"
