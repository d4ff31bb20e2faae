"""Turns over WebSockets: of older clients, and of our own protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.behaviour.asking import shape_of
from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.serving import Served, serve


class Client:
    """One socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, message: Any) -> None:
        await self.socket.send_str(message if isinstance(message, str) else json.dumps(message))

    async def next(self) -> Any:
        return json.loads(await self.socket.receive_str(timeout=10))

    async def until(self, *types: str) -> list[Any]:
        """Everything up to the first message of these types."""
        found = [await self.next()]
        while found[-1]["type"] not in types:
            found.append(await self.next())
        return found


@asynccontextmanager
async def connected(
    served: Served, path: str, *, key: str = "k", protocols: tuple[str, ...] = (), **headers: str
) -> AsyncIterator[Client]:
    given = {**({"Authorization": f"Bearer {key}"} if key else {}), **headers}
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(served.url + path, headers=given, protocols=protocols) as socket,
    ):
        yield Client(socket)


def chat(message: Any, **more: Any) -> Any:
    return {"type": "chat", "data": {"message": message, **more}}


# --- /ws -----------------------------------------------------------------------------------------------------


async def test_an_older_chat_is_told_over_its_socket(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {})),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("", chunks=["Ord", "ered"]),
    )

    async with connected(served, "/ws") as client:
        await client.send(chat("A rocket", parallel_tools=False))
        told = await client.until("chat_complete")

    assert [message["type"] for message in told] == [
        "tool_call",
        "tool_call",
        "chat_chunk",
        "chat_chunk",
        "chat_complete",
    ]
    assert [message["data"]["event_type"] for message in told[:2]] == [
        "tool_call_start",
        "tool_call_complete",
    ]
    assert told[1]["data"]["tool_call"]["name"] == "execute_order"
    assert told[2:] == [
        {"type": "chat_chunk", "data": {"content": "Ord"}},
        {"type": "chat_chunk", "data": {"content": "ered"}},
        {"type": "chat_complete", "data": {"final_response": "Ordered"}},
    ]


async def test_an_older_chat_goes_on_until_it_is_reset(served: Served, upstream: FakeUpstream) -> None:
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


@pytest.mark.parametrize(
    "message", ["", "{", "[]", {"type": "talk", "data": {}}, {"type": "chat"}, chat(""), chat(7), "\u0000"]
)
async def test_a_bad_message_is_told_and_the_socket_stays(
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


async def test_an_older_chat_that_fails_is_told(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(error(400))

    async with connected(served, "/ws") as client:
        await client.send(chat("Hi"))

        assert (await client.next())["type"] == "error"


@pytest.mark.parametrize("path", ["/ws"])
async def test_a_socket_that_is_left_stops_its_turn(
    path: str, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())

    async with connected(served, path) as client:
        await client.send(chat("Hi"))
        asked = await upstream.received(1)

    await asked.closed(within=5)


# --- /v1/ws --------------------------------------------------------------------------------------------------


def start(content: str = "Hi", *, id: str = "1", **more: Any) -> Any:
    request = {"model": "shop", "messages": [{"role": "user", "content": content}]}
    return {"type": "start", "id": id, "request": request, **more}


ENDS = ("turn.completed", "turn.failed", "turn.cancelled")


async def test_a_turn_is_told_over_the_socket_as_in_the_feed(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {"reason": "wants a rocket"})), text("Which colour?"))

    async with connected(served, "/v1/ws") as client:
        await client.send(start(headers={"X-Conversation-Id": "anna"}))
        told = await client.until(*ENDS)
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
        feed = await (await http.get(f"{served.base_url}/turns/{told[0]['turn_id']}/events")).text()

    reply = {"type": "reply", "id": "1", "action": "start", "turn_id": told[0]["turn_id"]}
    assert told[0] == {**reply, "conversation_id": "anna", "match": "conversation-id"}
    frames = [line.removeprefix("data: ") for line in feed.split("\n") if line.startswith("data: ")]
    assert told[1:] == [json.loads(frame) for frame in frames]


async def test_several_turns_run_at_a_time(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(hang(), text("Hello."))

    async with connected(served, "/v1/ws") as client:
        await client.send(start("One", id="a"))
        first = (await client.until("turn.started"))[0]
        await client.send(start("Two", id="b"))
        told = await client.until("turn.completed")
        await client.send({"type": "cancel", "id": "c", "turn_id": first["turn_id"]})
        rest = [await client.next() for _ in range(3)]

    assert told[0]["id"] == "b"
    assert {frame["turn_id"] for frame in told} == {told[0]["turn_id"]}
    assert {frame["type"] for frame in rest} == {"usage", "turn.cancelled", "reply"}
    (reply,) = [frame for frame in rest if frame["type"] == "reply"]
    assert (reply["id"], reply["turn_id"], reply["status"]) == ("c", first["turn_id"], "cancelled")


async def test_a_reader_goes_on_where_it_was(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One two three", chunks=3))

    async with connected(served, "/v1/ws") as client:
        await client.send(start())
        told = await client.until(*ENDS)
    turn_id, seen = told[0]["turn_id"], told[3]
    async with connected(served, "/v1/ws") as client:
        after = f"{seen['position']}.{seen['part']}"
        await client.send({"type": "subscribe", "id": 2, "turn_id": turn_id})
        mistaken = await client.next()
        await client.send({"type": "subscribe", "turn_id": turn_id, "after": after})
        rest = await client.until(*ENDS)
        await client.send({"type": "subscribe", "turn_id": turn_id, "types": ["turn.completed"]})
        some = await client.until(*ENDS)

    assert (mistaken["type"], mistaken["error"]["param"]) == ("error", "id")
    assert rest[1:] == told[4:]
    assert some[1:] == told[-1:]


async def test_a_turn_is_no_longer_told_when_unsubscribed_and_goes_on(
    served: Served, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))

    async with connected(served, "/v1/ws") as client:
        await client.send(start())
        turn_id = (await client.until("text.delta"))[0]["turn_id"]
        await client.send({"type": "unsubscribe", "id": "u", "turn_id": turn_id})
        silenced = await client.next()
        rest.set()
        await client.send({"type": "subscribe", "turn_id": turn_id, "types": ["turn.completed"]})
        told = await client.until(*ENDS)

    assert silenced == {"type": "reply", "id": "u", "action": "unsubscribe", "turn_id": turn_id}
    assert [frame["type"] for frame in told] == ["reply", "turn.completed"]


async def test_a_turn_outlives_its_socket_when_asked_to(served: Served, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))

    async with connected(served, "/v1/ws") as client:
        await client.send(start(headers={"X-On-Disconnect": "detach"}))
        turn_id = (await client.until("text.delta"))[0]["turn_id"]
    rest.set()
    async with connected(served, "/v1/ws") as client:
        await client.send({"type": "subscribe", "turn_id": turn_id})

        assert (await client.until(*ENDS))[-1]["type"] == "turn.completed"


async def test_a_socket_that_is_closed_stops_the_turns_that_it_began(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())

    async with connected(served, "/v1/ws") as client:
        await client.send(start())
        asked = await upstream.received(1)

    await asked.closed(within=5)


async def test_one_that_only_looks_on_stops_nothing(served: Served, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))

    async with connected(served, "/v1/ws") as client:
        await client.send(start())
        turn_id = (await client.until("text.delta"))[0]["turn_id"]
        async with connected(served, "/v1/ws") as other:
            await other.send({"type": "subscribe", "turn_id": turn_id})
            await other.until("text.delta")
        rest.set()

        assert (await client.until(*ENDS))[-1]["type"] == "turn.completed"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("{", None),
        ("[]", None),
        ({}, "type"),
        ({"type": "dance"}, "type"),
        ({"type": "start"}, "request"),
        ({"type": "start", "request": {}}, "model"),
        (
            {"type": "start", "request": {"model": "nobody", "messages": [{"role": "user"}]}},
            "messages[0].content",
        ),
        ({"type": "subscribe"}, "turn_id"),
        ({"type": "subscribe", "turn_id": "chatcmpl-none"}, None),
        ({"type": "subscribe", "turn_id": "t", "after": "x"}, "after"),
        ({"type": "subscribe", "turn_id": "t", "types": ["gossip"]}, "types"),
        ({"type": "cancel", "turn_id": "chatcmpl-none"}, None),
        ({"type": "unsubscribe"}, "turn_id"),
        ({"type": "start", "request": {"model": "shop"}, "headers": {"X-Conversation-Id": 7}}, "headers"),
    ],
)
async def test_a_mistake_is_told_and_ends_nothing(
    message: Any, param: str | None, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello."))

    async with connected(served, "/v1/ws") as client:
        await client.send({**message, "id": "m"} if isinstance(message, dict) else message)
        refused = await client.next()
        await client.send(start())
        rest = await client.until(*ENDS)

    assert (refused["type"], refused["id"]) == ("error", "m" if isinstance(message, dict) else None)
    assert set(refused["error"]) == {"message", "type", "param", "code"}
    if param is not None:
        assert refused["error"]["param"].startswith(param)
    assert rest[-1]["type"] == "turn.completed"


async def test_the_turns_of_others_are_not_there(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello."))
    async with connected(served, "/v1/ws") as client:
        await client.send(start())
        turn_id = (await client.until(*ENDS))[0]["turn_id"]

    async with connected(served, "/v1/ws", key="other") as client:
        for action in ("subscribe", "cancel"):
            await client.send({"type": action, "turn_id": turn_id})
            assert (await client.next())["type"] == "error"


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


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_of_elsewhere_may_not_open_one(path: str, served: Served) -> None:
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
    assert (message.data, bool(message.extra)) == (1009, True)


@pytest.mark.parametrize("path", PATHS)
async def test_open_sockets_do_not_hold_the_end_of_the_server_up(path: str, tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        async with serve(tmp_path, shutdown_grace=0) as served:
            http = aiohttp.ClientSession()
            socket = await http.ws_connect(served.url + path)
        closed = await socket.receive(timeout=5)
        await http.close()

    assert closed.type is aiohttp.WSMsgType.CLOSE
