"""The response of a streamed request while it waits for its conversation."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from proxy.messages import UserMessage
from proxy.routes.client_connection import ClientConnection
from proxy.routes.queued_stream import QueuedStream
from proxy.routes.streaming import SSE
from proxy.service.turns import TurnHandle, TurnService
from proxy.turns.request import TurnRequest
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.stream import ChunkEncoder

REQUEST = TurnRequest(caller="c", model="shop", messages=[UserMessage("Hi")])
HANDLE = cast("TurnHandle", object())


class Client:
    """A client; ``send`` waits for ``reads`` before it writes the message, as a server with a full buffer does."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.is_sent_to = asyncio.Event()
        self.messages: list[Any] = []

    async def receive(self) -> Any:
        await asyncio.get_running_loop().create_future()

    async def send(self, message: Any) -> None:
        self.is_sent_to.set()
        await self.reads.wait()
        self.messages.append(message)


class QueuedTurns:
    """Opens a turn when ``begins`` is set; until then the request waits as in a queue."""

    def __init__(self) -> None:
        self.begins = asyncio.Event()

    async def open(self, request: TurnRequest, *, left: Any) -> TurnHandle:
        accompanying = asyncio.create_task(left())
        await self.begins.wait()
        accompanying.cancel()
        await asyncio.gather(accompanying, return_exceptions=True)
        return HANDLE


START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": False}


@pytest.mark.parametrize("rest", [[START, BODY], [{**BODY, **START}]], ids=["two messages", "one message"])
@pytest.mark.parametrize("is_read", [True, False])
async def test_response_starts_once_if_the_turn_begins_during_a_keep_alive_comment(
    rest: list[dict[str, Any]], *, is_read: bool
) -> None:
    client, turns = Client(), QueuedTurns()
    if is_read:
        client.reads.set()
    queued = QueuedStream(
        ClientConnection({"type": "http"}, client.receive, client.send), SSE, keep_alive=0.001
    )

    def encoder() -> ChunkEncoder:
        return ChunkEncoder(AnswerOptions(id="chatcmpl-1", created=0, model="shop"))

    async with asyncio.timeout(5):
        opening = asyncio.create_task(queued.open(cast("TurnService", turns), REQUEST, encoder))
        await client.is_sent_to.wait()
        turns.begins.set()
        assert await opening is HANDLE
        client.reads.set()
        for message in rest:
            await queued.connection.send(message)

    assert [message["type"] for message in client.messages].count("http.response.start") == 1
    assert client.messages[0]["type"] == "http.response.start"
    assert client.messages[-1]["body"] == BODY["body"]
    assert queued.framing.starts_immediately == is_read
