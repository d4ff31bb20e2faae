"""Connections that are open when their API key is revoked or expires."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from msgspec.structs import replace

from proxy.auth import Keys, Terms, new_key
from proxy.routes.key_monitor import KeyMonitor
from proxy.store.turns import SqlHistory
from tests.behaviour.chat_client import Caller, user
from tests.behaviour.websocket_client import Client, connected, start
from tests.fakes.upstream import FakeUpstream, hang, text
from tests.polling import until
from tests.server import Served, serve


def key_store(served: Served) -> Any:
    assert isinstance(served.services.history, SqlHistory)
    return served.services.history.keys


async def create_key(served: Served, *, expires_at: float | None = None) -> tuple[str, str]:
    """Return a stored key and its public part."""
    key, record = new_key("desk", Terms(), now=1.0, expires_at=expires_at)
    await key_store(served).add(record)
    return key, record.id


def replace_keys(served: Served) -> None:
    """Cache no records of keys, and check no keys at an interval."""
    clock = count(step=10)
    keys = Keys(("fixed",), key_store(served), monotonic=lambda: float(next(clock)))
    assert served.app is not None
    served.app.state.services = replace(served.services, keys=keys, key_monitor=KeyMonitor(keys))


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Served]:
    async with serve(tmp_path, upstream.base_url, api_keys=("fixed",)) as created:
        yield created


@asynccontextmanager
async def feed(served: Served, path: str, key: str) -> AsyncIterator[httpx2.Response]:
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(base_url=served.base_url, headers=headers, timeout=20, verify=False) as http,
        http.stream("GET", path) as response,
    ):
        yield response


async def close_of(client: Client) -> tuple[int | None, Any]:
    """The close frame of a socket; no message may come before it."""
    closing = await client.socket.receive(timeout=10)
    assert closing.type is aiohttp.WSMsgType.CLOSE
    return closing.data, closing.extra


async def test_a_revoked_key_closes_idle_sockets(served: Served) -> None:
    key, key_id = await create_key(served)
    other, _ = await create_key(served)
    async with (
        connected(served, "/v1/ws", key=key) as client,
        connected(served, "/ws", key=key) as legacy,
        connected(served, "/v1/ws", key=other) as unaffected,
        connected(served, "/v1/ws", key="fixed") as configured,
    ):
        await key_store(served).revoke(key_id, now=2.0)

        error = await client.next()
        assert (error["type"], error["id"], error["status"]) == ("error", None, 401)
        assert error["error"]["code"] == "invalid_api_key"
        assert await close_of(client) == (1008, "invalid_api_key")
        assert (await legacy.next())["data"]["code"] == "invalid_api_key"
        assert await close_of(legacy) == (1008, "invalid_api_key")
        for still_open in (unaffected, configured):
            await still_open.send({"type": "ping", "id": "1"})
            assert (await still_open.next())["type"] == "reply"


async def test_an_expired_key_closes_its_socket(served: Served) -> None:
    key, _ = await create_key(served, expires_at=time.time() + 1)
    async with connected(served, "/v1/ws", key=key) as client:
        assert (await client.next())["status"] == 401
        assert await close_of(client) == (1008, "invalid_api_key")


@pytest.mark.parametrize("kind", ["start", "subscribe"])
async def test_a_revoked_key_cannot_start_or_subscribe(
    served: Served, upstream: FakeUpstream, kind: str
) -> None:
    upstream.reply(text("Hello"))
    key, key_id = await create_key(served)
    turn = await Caller(served, key).completion([user("Hi")])
    message = start(id="7") if kind == "start" else {"type": "subscribe", "id": "7", "turn_id": turn.id}
    replace_keys(served)
    async with connected(served, "/v1/ws", key=key) as client:
        await key_store(served).revoke(key_id, now=2.0)
        await client.send(message)
        error = await client.next()
        assert (error["type"], error["id"], error["error"]["code"]) == ("error", "7", "invalid_api_key")
        assert await close_of(client) == (1008, "invalid_api_key")
    assert len(upstream.requests) == 1


async def test_a_revoked_key_stops_the_turns_of_its_socket(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(hang())
    key, key_id = await create_key(served)
    async with connected(served, "/v1/ws", key=key) as client:
        await client.send(start())
        call = await upstream.received(1)
        turn_id = await served.running_turn(f"Bearer {key}")
        caller = served.services.keys.caller(f"Bearer {key}")
        await key_store(served).revoke(key_id, now=2.0)
        *_, error = await client.until("error")
        await call.closed()
        await until(lambda: not served.services.turns.running_turns())
    turn = await served.services.history.turn(caller, turn_id)
    assert error["error"]["code"] == "invalid_api_key"
    assert turn is not None
    assert turn.status == "cancelled"


@pytest.mark.parametrize("resource", ["turn", "conversation"])
async def test_a_revoked_key_ends_event_feeds_with_an_error_event(
    served: Served, upstream: FakeUpstream, resource: str
) -> None:
    upstream.reply(hang())
    key, key_id = await create_key(served)
    caller = Caller(served, key)
    turn = asyncio.create_task(caller.ask([user("Hi")], headers={"X-Conversation-Id": "anna"}))
    await upstream.received(1)
    turn_id = await served.running_turn(f"Bearer {key}")
    path = f"/turns/{turn_id}/events" if resource == "turn" else "/conversations/anna/events"
    async with feed(served, f"{path}?types=handoff,turn.completed", key) as response:
        assert response.status_code == 200
        await key_store(served).revoke(key_id, now=2.0)
        async with asyncio.timeout(10):
            body = "".join([part async for part in response.aiter_text()])
        assert body.startswith("event: error\ndata: ")
        error = json.loads(body.removeprefix("event: error\ndata: "))
        assert (error["type"], error["status"]) == ("error", 401)
        assert error["error"]["code"] == "invalid_api_key"
        async with feed(served, path, key) as refused:
            assert refused.status_code == 401
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)


async def test_the_first_key_of_an_open_server_ends_open_connections(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url) as served, connected(served, "/v1/ws", key="") as client:
        await create_key(served)
        assert (await client.next())["status"] == 401
        assert await close_of(client) == (1008, "invalid_api_key")


async def test_a_stream_that_answers_a_request_ends_with_its_turn(
    served: Served, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))
    key, key_id = await create_key(served)
    async with connected(served, "/v1/ws", key=key) as witness:
        stream = await served.client(key).chat.completions.create(
            model="shop", messages=[user("Hi")], stream=True
        )
        await key_store(served).revoke(key_id, now=2.0)
        # Its close shows that the server has noticed.
        await witness.until("error")
        rest.set()
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(parts) == "One two"
