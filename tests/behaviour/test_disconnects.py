"""A turn whose client leaves waits for it, at every worker, and starts nothing meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.chat_client import Caller, assistant, shape_of, user
from tests.fakes.tcp_relay import relayed
from tests.fakes.upstream import FakeUpstream, calls, hang, text
from tests.polling import until
from tests.server import Served, serve

AUTHORIZED = {"Authorization": "Bearer test-key"}
CHAT = {"X-Conversation-Id": "chat-1"}
ORDER = calls(("execute_order", {"product": "Rocket", "price": 10}))
SALE = (calls(("transfer_to_sales", {})), ORDER)


@pytest.fixture
async def other(tmp_path: Path, upstream: FakeUpstream, served: Served) -> AsyncIterator[Served]:
    """A second worker on the database of ``served``."""
    async with serve(tmp_path, upstream.base_url) as created:
        yield created


@asynccontextmanager
async def http(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": "Bearer test-key"}
    # ``verify=False``: loading the certificates takes longer than the test.
    async with httpx2.AsyncClient(
        base_url=served.base_url, headers=headers, timeout=20, verify=False
    ) as client:
        yield client


async def cut(
    served: Served, messages: list[Any], until_text: str = "", *, headers: dict[str, str] | None = None
) -> tuple[str, str]:
    """Read a stream until it has this text, and close the connection; return the turn id and the last event id."""
    body = {"model": "shop", "messages": messages, "stream": True}
    headers = {**(headers or {}), "X-Event-Ids": "true"}
    async with (
        http(served) as client,
        client.stream("POST", "/chat/completions", json=body, headers=headers) as stream,
    ):
        got = ""
        async for piece in stream.aiter_text():
            got += piece
            if until_text in got:
                break
    turn_id = await served.running_turn()
    await until(lambda: served.services.turns.unattended == 1)
    seen = [line for line in got.splitlines() if line.startswith("id: ")]
    return turn_id, seen[-1].removeprefix("id: ")


async def leave(served: Served, upstream: FakeUpstream, *, model_calls: int, **headers: str) -> str:
    """Send a request for a plain answer, and leave at a model call; return the turn id."""
    async with http(served) as client:
        body = {"model": "shop", "messages": [user("One rocket")]}
        pending = asyncio.create_task(client.post("/chat/completions", json=body, headers=headers))
        await upstream.received(model_calls)
        turn_id = await served.running_turn()
        pending.cancel()
    await until(lambda: served.services.turns.unattended == 1)
    return turn_id


async def log_of(served: Served, turn_id: str) -> list[str]:
    """Return the names of the events of a running turn."""
    caller = served.services.keys.caller("Bearer test-key")
    record = await served.services.history.turn(caller, turn_id)
    assert record is not None
    return [type(entry.event).__name__ for entry in served.services.turns.log_of(record)]


@pytest.mark.parametrize("at", ["same worker", "other worker"])
async def test_a_cut_stream_resumes_by_default(
    served: Served, other: Served, upstream: FakeUpstream, at: str
) -> None:
    go = asyncio.Event()
    upstream.reply(text("One two three", chunks=["One ", "two ", go, "three"]))
    turn_id, seen = await cut(served, [user("Hi")], "two")

    async with http(served if at == "same worker" else other) as client:
        resuming = asyncio.create_task(
            client.get(f"/chat/completions/{turn_id}/stream", headers={"Last-Event-ID": seen})
        )
        go.set()
        rest = await resuming

    assert '"three"' in rest.text
    assert '"One' not in rest.text
    assert rest.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("at", ["same worker", "other worker"])
async def test_no_model_call_or_tool_call_starts_without_a_reader(
    served: Served, other: Served, upstream: FakeUpstream, at: str
) -> None:
    go = asyncio.Event()
    upstream.reply(calls(("transfer_to_sales", {})), ORDER.held(go), text("Ordered", chunks=1))
    turn_id = await leave(served, upstream, model_calls=2)
    go.set()
    async with asyncio.timeout(5):
        while (await log_of(served, turn_id)).count("ModelCalled") < 2:
            await asyncio.sleep(0.01)
    # The tool would start in the step of the event loop that ends the model call.
    assert (await log_of(served, turn_id))[-1] == "ModelCalled"

    async with http(served if at == "same worker" else other) as client:
        rest = await client.get(f"/chat/completions/{turn_id}/stream")

    assert "Ordered" in rest.text
    assert len(upstream.requests) == 3
    assert shape_of(upstream)[-2:] == ["calls:execute_order", "result"]


@pytest.mark.parametrize("at", ["same worker", "other worker"])
async def test_a_new_message_ends_the_turn_that_waits(
    served: Served, other: Served, upstream: FakeUpstream, at: str
) -> None:
    upstream.reply(text("A long answer", chunks=4).hang(after=2), text("Short"))
    turn_id, _ = await cut(served, [user("Hi")], "A l", headers=CHAT)
    served_by = served if at == "same worker" else other

    assert await Caller(served_by).ask([user("In short, please")], headers=CHAT) == "Short"

    turn: Any = await served.client().get(f"/turns/{turn_id}", cast_to=object)
    assert (turn["status"], turn["cancel_reason"]) == ("cancelled", "client_left")


async def test_a_turn_is_cancelled_when_no_client_returns(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(hang())
    async with serve(tmp_path, upstream.base_url, disconnect_grace=0.01) as served, http(served) as client:
        body = {"model": "shop", "messages": [user("Hi")]}
        pending = asyncio.create_task(client.post("/chat/completions", json=body))
        call = await upstream.received(1)
        pending.cancel()
        await call.closed()
        await until(lambda: served.services.turns.running == 0)


async def test_a_second_departure_counts_from_the_beginning(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("One two three", chunks=["One ", go, "two ", "three"]))
    turn_id, _ = await cut(served, [user("Hi")], "One")
    async with (
        http(served) as client,
        client.stream("GET", f"/chat/completions/{turn_id}/stream") as stream,
    ):
        reading = stream.aiter_text()
        await anext(reading)
        assert served.services.turns.unattended == 0
    await until(lambda: served.services.turns.unattended == 1)
    go.set()
    async with http(served) as client:
        rest = await client.get(f"/chat/completions/{turn_id}/stream")

    assert "three" in rest.text


async def test_a_turn_that_waits_does_not_delay_a_shutdown(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(hang())
    async with serve(tmp_path, upstream.base_url, shutdown_grace=3600) as served:
        await leave(served, upstream, model_calls=1)

    async with serve(tmp_path, upstream.base_url) as served:
        upstream.reply(text("Hello"))
        assert await Caller(served).ask([user("Hi"), assistant("Hm?"), user("Hello?")]) == "Hello"


async def test_a_conversation_can_be_deleted_while_its_turn_waits(
    served: Served, other: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("First"), hang())
    await Caller(served).ask([user("Hi")], headers=CHAT)
    await leave(served, upstream, model_calls=2, **CHAT)

    deleted = await other.client().conversations.delete("chat-1")

    assert deleted.deleted


async def test_a_client_that_leaves_another_worker_is_noticed_there(
    served: Served, other: Served, upstream: FakeUpstream
) -> None:
    go = asyncio.Event()
    upstream.reply(calls(("transfer_to_sales", {})), ORDER.held(go), text("Ordered", chunks=1))
    turn_id = await leave(served, upstream, model_calls=2)
    async with (
        http(other) as client,
        client.stream("GET", f"/chat/completions/{turn_id}/stream") as stream,
    ):
        reading = stream.aiter_text()
        await anext(reading)
        await until(lambda: served.services.turns.unattended == 0)

    await until(lambda: served.services.turns.unattended == 1)
    go.set()
    async with asyncio.timeout(5):
        while (await log_of(served, turn_id)).count("ModelCalled") < 2:
            await asyncio.sleep(0.01)
    assert (await log_of(served, turn_id))[-1] == "ModelCalled"


@pytest.mark.parametrize("at", ["same worker", "other worker"])
async def test_a_message_right_after_stop_is_answered_although_the_disconnect_is_noticed_later(
    served: Served, other: Served, upstream: FakeUpstream, at: str
) -> None:
    never = asyncio.Event()
    upstream.reply(text("One two three", chunks=["One ", never, "two"]), text("Short"))
    body = {"model": "shop", "messages": [user("Long, please")], "stream": True}
    async with relayed(served.base_url, end_delay=0.1) as proxy:
        async with (
            httpx2.AsyncClient(base_url=proxy.url, timeout=20, verify=False) as client,
            client.stream("POST", "/chat/completions", json=body, headers={**AUTHORIZED, **CHAT}) as stream,
        ):
            async for piece in stream.aiter_text():
                if "One" in piece:
                    break
        assert served.services.turns.unattended == 0
        answer = await Caller(served if at == "same worker" else other, max_retries=0).ask(
            [user("Short, please")], headers=CHAT
        )

    assert answer == "Short"


async def test_a_message_while_the_client_reads_gets_409_soon(
    served: Served, other: Served, upstream: FakeUpstream
) -> None:
    never = asyncio.Event()
    upstream.reply(text("One two three", chunks=["One ", never, "two"]))
    body = {"model": "shop", "messages": [user("Long, please")], "stream": True}
    async with (
        http(served) as client,
        client.stream("POST", "/chat/completions", json=body, headers=CHAT) as stream,
    ):
        reading = stream.aiter_text()
        await anext(reading)
        async with asyncio.timeout(5):
            with pytest.raises(openai.ConflictError):
                await Caller(other, max_retries=0).ask([user("Short, please")], headers=CHAT)
