"""Any number of turns over one WebSocket, in our own protocol."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.behaviour.chat_client import turn_after_running
from tests.behaviour.websocket_client import ENDS, connected, start
from tests.fakes.upstream import FakeUpstream, calls, hang, text
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest.fixture
def upstream(open_shop: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return open_shop[1].forget()


async def test_a_turn_is_streamed_over_the_websocket_as_in_the_feed(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_sales", {"reason": "wants a rocket"})), text("Which colour?"))

    async with connected(served, "/v1/ws") as client:
        await client.send(start(headers={"X-Conversation-Id": "anna"}))
        reported = await client.until(*ENDS)
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
        feed = await (await http.get(f"{served.base_url}/turns/{reported[0]['turn_id']}/events")).text()

    reply = {"type": "reply", "id": "1", "action": "start", "turn_id": reported[0]["turn_id"]}
    assert reported[0] == {**reply, "conversation_id": "anna", "match": "conversation-id"}
    frames = [line.removeprefix("data: ") for line in feed.split("\n") if line.startswith("data: ")]
    assert reported[1:] == [json.loads(frame) for frame in frames]


async def test_messages_may_be_binary_and_a_ping_is_answered(served: Served) -> None:
    async with connected(served, "/v1/ws") as client:
        await client.socket.send_bytes(b'{"type": "ping", "id": "p"}')

        assert await client.next() == {"type": "reply", "id": "p", "action": "ping"}


async def test_an_error_has_status_and_retry_after(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(hang())
    named = {"X-Conversation-Id": "busy"}

    async with connected(served, "/v1/ws") as client:
        await client.send(start(headers=named))
        turn_id = (await client.until("turn.started"))[0]["turn_id"]
        await client.send(start(id="2", headers=named))
        refused = await client.next()
        await client.send({"type": "cancel", "turn_id": turn_id})
        await client.until(*ENDS)

    assert (refused["id"], refused["status"], refused["retry_after"]) == ("2", 409, 1.0)
    assert refused["error"]["code"] == "conversation_busy"


async def test_what_has_no_effect_is_named(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello."))

    async with connected(served, "/v1/ws") as client:
        message = start()
        message["request"]["top_k"] = 3
        await client.send(message)
        reported = await client.until(*ENDS)

    assert reported[0]["ignored"] == ["top_k"]


async def test_a_side_request_can_be_stopped_where_it_was_begun(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())

    async with connected(served, "/v1/ws") as client:
        await client.send(start(headers={"X-Task": "title"}))
        began = (await client.until("turn.started"))[0]
        requested = await upstream.received(1)
        await client.send({"type": "cancel", "id": "c", "turn_id": began["turn_id"]})
        reported = [await client.next() for _ in range(3)]

    await requested.closed()
    assert began["match"] == "side-request"
    assert {message["type"] for message in reported} == {"usage", "turn.cancelled", "reply"}


async def test_the_person_of_a_socket_is_who_opened_it_or_who_a_message_names(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello."))
    anna: Any = {"X-OpenWebUI-User-Id": "anna"}
    otto: Any = {"X-OpenWebUI-User-Id": "otto"}

    async with connected(served, "/v1/ws") as client:
        await client.send(start(headers=anna))
        turn_id = (await client.until(*ENDS))[0]["turn_id"]
        for headers in (otto, anna):
            await client.send(
                {"type": "subscribe", "turn_id": turn_id, "headers": headers, "types": ["handoff"]}
            )
        seen = [(await client.next())["type"] for _ in range(2)]
    async with connected(served, "/v1/ws", **otto) as client:
        await client.send({"type": "subscribe", "turn_id": turn_id, "headers": anna})
        hidden = await client.next()

    assert seen == ["error", "reply"]
    assert hidden["status"] == 404


async def test_several_turns_run_at_a_time(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(hang(), text("Hello."))

    async with connected(served, "/v1/ws") as client:
        await client.send(start("One", id="a"))
        first = (await client.until("turn.started"))[0]
        await client.send(start("Two", id="b"))
        reported = await client.until("turn.completed")
        await client.send({"type": "cancel", "id": "c", "turn_id": first["turn_id"]})
        rest = [await client.next() for _ in range(3)]

    assert reported[0]["id"] == "b"
    assert {frame["turn_id"] for frame in reported} == {reported[0]["turn_id"]}
    assert {frame["type"] for frame in rest} == {"usage", "turn.cancelled", "reply"}
    (reply,) = [frame for frame in rest if frame["type"] == "reply"]
    assert (reply["id"], reply["turn_id"], reply["status"]) == ("c", first["turn_id"], "cancelled")


async def test_a_reader_resumes_after_its_position(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One two three", chunks=3))

    async with connected(served, "/v1/ws") as client:
        await client.send(start())
        reported = await client.until(*ENDS)
    turn_id, seen = reported[0]["turn_id"], reported[3]
    async with connected(served, "/v1/ws") as client:
        after = f"{seen['position']}.{seen['part']}"
        await client.send({"type": "subscribe", "id": 2, "turn_id": turn_id})
        mistaken = await client.next()
        await client.send({"type": "subscribe", "turn_id": turn_id, "after": after})
        rest = await client.until(*ENDS)
        await client.send({"type": "subscribe", "turn_id": turn_id, "types": ["turn.completed"]})
        some = await client.until(*ENDS)

    assert (mistaken["type"], mistaken["error"]["param"]) == ("error", "id")
    assert rest[1:] == reported[4:]
    assert some[1:] == reported[-1:]


async def test_unsubscribing_ends_the_frames_but_not_the_turn(served: Served, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))

    async with connected(served, "/v1/ws") as client:
        await client.send(start())
        turn_id = (await client.until("text.delta"))[0]["turn_id"]
        await client.send({"type": "unsubscribe", "id": "u", "turn_id": turn_id})
        silenced = await client.next()
        rest.set()
        await client.send({"type": "subscribe", "turn_id": turn_id, "types": ["turn.completed"]})
        reported = await client.until(*ENDS)

    assert silenced == {"type": "reply", "id": "u", "action": "unsubscribe", "turn_id": turn_id}
    assert [frame["type"] for frame in reported] == ["reply", "turn.completed"]


async def test_a_turn_outlives_its_socket_on_request(served: Served, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))

    async with connected(served, "/v1/ws") as client:
        await client.send(start(headers={"X-On-Disconnect": "detach"}))
        turn_id = (await client.until("text.delta"))[0]["turn_id"]
    rest.set()
    async with connected(served, "/v1/ws") as client:
        await client.send({"type": "subscribe", "turn_id": turn_id})

        assert (await client.until(*ENDS))[-1]["type"] == "turn.completed"


async def test_closing_a_socket_cancels_the_turns_that_it_started(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())

    async with connected(served, "/v1/ws", headers={"X-On-Disconnect": "cancel"}) as client:
        await client.send(start())
        requested = await upstream.received(1)
        turn_id = await served.running_turn("Bearer k")

    await requested.closed()
    assert (await turn_after_running(served.client("k"), turn_id))["status"] == "cancelled"


async def test_an_observer_does_not_cancel_the_turn(served: Served, upstream: FakeUpstream) -> None:
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
async def test_an_invalid_message_gets_an_error_and_ends_no_turn(
    message: Any, param: str | None, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello."))

    async with connected(served, "/v1/ws") as client:
        await client.send({**message, "id": "m"} if isinstance(message, dict) else message)
        refused = await client.next()
        await client.send(start())
        rest = await client.until(*ENDS)

    assert (refused["type"], refused["id"]) == ("error", "m" if isinstance(message, dict) else None)
    assert refused["status"] in (400, 404)
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
