"""Two workers on one database, and workers that die: no affinity, no turn twice, no conversation locked for long."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.chat_client import HIDDEN, Caller, agent_of, assistant, shape_of, sold, user
from tests.fakes.upstream import FakeUpstream, hang, text
from tests.server import Served, serve, serve_process

CHAT = {"X-Conversation-Id": "chat-1"}


@pytest.fixture
async def other(tmp_path: Path, upstream: FakeUpstream, served: Served) -> AsyncIterator[Served]:
    """A second worker on the database of ``served``."""
    async with serve(tmp_path, upstream.base_url) as created:
        yield created


async def test_a_conversation_continues_at_another_worker(
    served: Served, other: Served, upstream: FakeUpstream
) -> None:
    messages = await sold(Caller(served), upstream)
    upstream.reply(text("Ten"), text("Sold"))
    there, here = Caller(other), Caller(served)

    messages += [user("How much?"), assistant(await there.ask([*messages, user("How much?")]))]
    await here.ask([*messages, user("Yes")])

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == [*HIDDEN, "user:How much?", "assistant:Ten", "user:Yes"]


async def test_the_lock_holds_across_workers(served: Served, other: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("First").held(go))
    first = asyncio.create_task(Caller(served).ask([user("Hi")], headers=CHAT))
    await upstream.received(1)
    await served.running_turn()

    with pytest.raises(openai.ConflictError):
        await Caller(other).ask([user("Me too")], headers=CHAT)
    go.set()
    assert await first == "First"


@pytest.mark.parametrize("is_stream", [False, True], ids=["answer", "stream"])
async def test_turn_that_another_worker_interrupted_fails_with_its_own_code(
    served: Served, other: Served, upstream: FakeUpstream, is_stream: bool
) -> None:
    go = asyncio.Event()
    upstream.reply(text("First", chunks=2).held(go), text("Second"))
    client: Any = served.client()

    async def request() -> None:
        answer = await client.chat.completions.create(
            model="shop", messages=[user("Hi")], stream=is_stream, extra_headers=CHAT
        )
        if is_stream:
            async for _ in answer:
                pass

    lost = asyncio.create_task(request())
    await upstream.received(1)
    turn_id = await served.running_turn()
    await other.services.history.interrupt(now=time.time() + 60)
    assert await Caller(other).ask([user("Hi")], headers=CHAT) == "Second"
    go.set()

    with pytest.raises(openai.APIError) as error:
        await lost
    assert error.value.code == "turn_lease_lost"
    turn: Any = await other.client().get(f"/turns/{turn_id}", cast_to=object)
    assert (turn["status"], turn["error_code"]) == ("interrupted", "turn_lease_lost")
    feed = await other.client().get(f"/turns/{turn_id}/events", cast_to=httpx2.Response)
    assert '"type":"turn.failed"' in feed.text
    assert '"code":"turn_lease_lost"' in feed.text


async def test_a_retry_at_another_worker_waits_for_the_same_answer(
    served: Served, other: Served, upstream: FakeUpstream
) -> None:
    go, key = asyncio.Event(), {"Idempotency-Key": "k1"}
    upstream.reply(text("Once").held(go))
    first = asyncio.create_task(Caller(served).completion([user("Hi")], headers=key))
    await upstream.received(1)
    second = asyncio.create_task(Caller(other).completion([user("Hi")], headers=key))
    await asyncio.sleep(0.1)
    go.set()

    assert (await first) == (await second)
    assert len(upstream.requests) == 1


async def test_a_turn_can_be_stopped_from_another_worker(
    served: Served, other: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())
    pending = asyncio.create_task(Caller(served).completion([user("Hi")]))
    requested = await upstream.received(1)
    turn = await served.running_turn()

    await other.client().post(f"/chat/completions/{turn}/cancel", cast_to=object)

    await requested.closed()
    assert (await pending).choices[0].finish_reason == "stop"


async def test_the_product_survives_a_restart_in_the_middle_of_a_conversation(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve_process(tmp_path, upstream.base_url) as (served, _):
        await sold(Caller(served), upstream, headers=CHAT)
    upstream.reply(text("Ten"))

    async with serve_process(tmp_path, upstream.base_url) as (served, _):
        caller = Caller(served)
        assert await caller.ask([user("How much?")], headers=CHAT) == "Ten"

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == [*HIDDEN, "user:How much?"]


async def test_after_a_kill_in_the_middle_of_a_turn_the_next_turn_works_at_once(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve_process(tmp_path, upstream.base_url) as (served, process):
        await sold(Caller(served), upstream, headers=CHAT)
        upstream.reply(hang())
        pending = asyncio.create_task(Caller(served).ask([user("How much?")], headers=CHAT))
        await upstream.received(3)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        with pytest.raises(openai.APIConnectionError):
            await pending
    upstream.reply(text("Ten"))

    async with serve_process(tmp_path, upstream.base_url) as (served, _):
        assert await Caller(served).ask([user("How much?")], headers=CHAT) == "Ten"

    assert shape_of(upstream) == [*HIDDEN, "user:How much?"]
