"""Turns over the legacy WebSocket, and access to all WebSockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.behaviour.chat_client import shape_of, turn_after_running
from tests.behaviour.websocket_client import connected
from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.server import Served, serve


def chat(message: Any, **more: Any) -> Any:
    return {"type": "chat", "data": {"message": message, **more}}


# --- /ws -----------------------------------------------------------------------------------------------------


async def test_a_legacy_chat_is_streamed_over_its_websocket(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {})),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("", chunks=["Ord", "ered"]),
    )

    async with connected(served, "/ws") as client:
        await client.send(chat("A rocket", parallel_tools=False))
        reported = await client.until("chat_complete")

    assert [message["type"] for message in reported] == [
        "tool_call",
        "tool_call",
        "chat_chunk",
        "chat_chunk",
        "chat_complete",
    ]
    assert [message["data"]["event_type"] for message in reported[:2]] == [
        "tool_call_start",
        "tool_call_complete",
    ]
    assert reported[1]["data"]["tool_call"]["name"] == "execute_order"
    assert reported[2:] == [
        {"type": "chat_chunk", "data": {"content": "Ord"}},
        {"type": "chat_chunk", "data": {"content": "ered"}},
        {"type": "chat_complete", "data": {"final_response": "Ordered"}},
    ]


async def test_a_long_text_is_sent_in_several_messages(served: Served, upstream: FakeUpstream) -> None:
    long = "Lorem ipsum " * 1000
    upstream.reply(text(long, chunks=[long]))

    async with connected(served, "/ws") as client:
        await client.send(chat("Long"))
        *chunks, complete = await client.until("chat_complete")

    assert [len(chunk["data"]["content"]) for chunk in chunks] == [4000, 4000, 4000]
    assert "".join(chunk["data"]["content"] for chunk in chunks) == long
    assert complete["data"] == {"final_response": long}


async def test_a_legacy_chat_continues_until_it_is_reset(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"), text("Two"), text("Three"))

    async with connected(served, "/ws") as client:
        await client.send(chat("1"))
        await client.send(chat("2"))
        await client.until("chat_complete")
        await client.until("chat_complete")
        assert shape_of(upstream) == ["system", "user:1", "assistant:One", "user:2"]
    async with connected(served, "/ws") as client:
        await client.send(chat("3", reset_history=True))
        await client.until("chat_complete")

    assert shape_of(upstream) == ["system", "user:3"]


async def test_browsers_without_a_key_have_separate_chats(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"), text("Two"), text("Three"))

    async def say(message: str, cookie: str = "") -> str:
        async with connected(served, "/ws", key="", Origin=served.url, Cookie=cookie) as client:
            await client.send(chat(message))
            await client.until("chat_complete")
            return client.socket._response.headers.get("Set-Cookie", "")

    cookie = await say("1")
    await say("2")
    again = await say("3", f"theme=dark; {cookie.partition(';')[0]}")

    assert again == ""
    assert shape_of(upstream, 1) == ["system", "user:2"]
    assert shape_of(upstream, 2) == ["system", "user:1", "assistant:One", "user:3"]


@pytest.mark.parametrize(
    "message", ["", "{", "[]", {"type": "talk", "data": {}}, {"type": "chat"}, chat(""), chat(7), "\u0000"]
)
async def test_an_invalid_message_gets_an_error_and_the_connection_stays_open(
    message: Any, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello."))

    async with connected(served, "/ws") as client:
        await client.send(message)
        refused = await client.next()
        await client.send(chat("Hi"))
        rest = await client.until("chat_complete")

    assert (refused["type"], bool(refused["data"]["error"])) == ("error", True)
    assert rest[-1]["data"] == {"final_response": "Hello."}


async def test_a_failed_legacy_chat_sends_an_error(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(error(400))

    async with connected(served, "/ws") as client:
        await client.send(chat("Hi"))

        assert (await client.next())["type"] == "error"


async def test_closing_the_socket_cancels_its_turn(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(hang())

    async with connected(served, "/ws", headers={"X-On-Disconnect": "cancel"}) as client:
        await client.send(chat("Hi"))
        requested = await upstream.received(1)
        turn_id = await served.running_turn("Bearer k")

    await requested.closed()
    assert (await turn_after_running(served.client("k"), turn_id))["status"] == "cancelled"


# --- who may open one ----------------------------------------------------------------------------------------

PATHS = ["/ws", "/v1/ws"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_socket_needs_a_key(path: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys="secret") as served:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connected(served, path, key="other"):
                pass
        async with connected(served, path, key="secret") as client:
            assert client.socket.protocol is None
        async with connected(served, path, key="", protocols=("handoff.v1", "handoff-key.secret")) as client:
            assert client.socket.protocol == "handoff.v1"

    assert refused.value.status == 401


async def test_a_key_that_is_not_a_subprotocol_token_is_percent_encoded(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with (
        serve(tmp_path, upstream.base_url, api_keys="a/b+c=") as served,
        connected(served, "/v1/ws", key="", protocols=("handoff.v1", "handoff-key.a%2Fb%2Bc%3D")) as client,
    ):
        await client.send({"type": "ping"})

        assert (await client.next())["type"] == "reply"


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_of_another_origin_cannot_open_a_websocket(path: str, served: Served) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connected(served, path, Origin="https://evil.example"):
            pass
    async with connected(served, path, Origin="http://localhost:3000"):
        pass

    assert refused.value.status == 403


@pytest.mark.parametrize("path", PATHS)
async def test_a_message_over_the_limit_closes_the_socket(
    path: str, tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with (
        serve(tmp_path, upstream.base_url, max_body_bytes=1000) as served,
        connected(served, path) as client,
    ):
        await client.send("x" * 1001)
        message = await client.socket.receive(timeout=5)

    assert message.type is aiohttp.WSMsgType.CLOSE
    assert message.data == 1009
    assert "1000" in str(message.extra)


@pytest.mark.parametrize("path", PATHS)
async def test_open_sockets_do_not_hold_the_end_of_the_server_up(path: str, tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        async with serve(tmp_path, shutdown_grace=0) as served:
            http = aiohttp.ClientSession()
            socket = await http.ws_connect(served.url + path)
        closed = await socket.receive(timeout=5)
        await http.close()

    assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1012)
