"""What a socket holds on to, and a client that takes nothing any more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.auth import ANYONE
from proxy.routes.request_body import ClientDisconnected
from proxy.routes.sockets import WebSocketChannel
from proxy.routes.websocket import WebSocketSession
from tests.fakes.upstream import FakeUpstream, hang, text
from tests.server import Served


class Socket:
    """A WebSocket whose client takes what it is sent, until it is ``stalled``."""

    def __init__(self) -> None:
        self.scope: Any = {"type": "websocket", "headers": [], "subprotocols": []}
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.released = asyncio.Event()
        self.released.set()

    async def send_text(self, message: str) -> None:
        await self.released.wait()
        self.sent.put_nowait(json.loads(message))

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def until(self, kind: str) -> Any:
        async with asyncio.timeout(5):
            while (message := await self.sent.get())["type"] != kind:
                pass
        return message


def channel_of(served: Served, socket: Any, **settings: Any) -> WebSocketChannel:
    services = replace(served.services, settings=served.services.settings.model_copy(update=settings))
    return WebSocketChannel(socket, lambda: services, ANYONE)


def message(kind: str, **more: Any) -> bytes:
    return json.dumps({"type": kind, **more}).encode()


START = message("start", request={"model": "shop", "messages": [{"role": "user", "content": "Hi"}]})


async def test_a_finished_turn_is_released_without_subscribers(
    served: Served, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))
    socket: Any = Socket()
    session = WebSocketSession(channel_of(served, socket), {})

    await session.serve(START)
    turn_id = (await socket.until("text.delta"))["turn_id"]
    live = (await served.services.turns.attach("anyone", turn_id)).live
    await session.serve(message("unsubscribe", turn_id=turn_id))
    held = session.started
    rest.set()
    assert live.task is not None
    await asyncio.wait([live.task])
    await asyncio.sleep(0)

    assert (held, session.started) == ([turn_id], [])
    await session.close()


async def test_a_client_that_takes_nothing_any_more_has_left_and_its_turn_stops(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())
    socket: Any = Socket()
    channel = channel_of(served, socket, stalled_client_timeout=0.05)
    session = WebSocketSession(channel, {"x-on-disconnect": "cancel"})
    await session.serve(START)
    requested = await upstream.received(1)
    await socket.until("turn.started")

    socket.released.clear()
    with pytest.raises(ClientDisconnected):
        await session.serve(message("ping"))
    async with asyncio.timeout(5):
        assert [one async for one in channel.messages()] == []
    await session.close()

    await requested.closed()


async def test_one_that_waits_for_messages_learns_that_its_client_takes_nothing(
    served: Served,
) -> None:
    socket: Any = Socket()
    channel = channel_of(served, socket, stalled_client_timeout=0.05)

    async def wait() -> list[bytes]:
        return [one async for one in channel.messages()]

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    socket.released.clear()
    with pytest.raises(ClientDisconnected):
        await channel.send("{}")

    async with asyncio.timeout(5):
        assert await waiting == []
    socket.released.set()
    with pytest.raises(ClientDisconnected):
        await channel.send("{}")


class Burst(Socket):
    """A WebSocket with messages that have all arrived."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    async def receive(self) -> Any:
        self._count -= 1
        if self._count < 0:
            return {"type": "websocket.disconnect"}
        return {"type": "websocket.receive", "text": "{"}


async def test_other_tasks_run_between_messages_that_arrived_at_once(served: Served) -> None:
    steps = 0

    async def count_steps() -> None:
        nonlocal steps
        while True:
            steps += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count_steps())
    session = WebSocketSession(channel := channel_of(served, Burst(100)), {})
    async for received in channel.messages():
        await session.serve(received)
    other.cancel()

    assert steps >= 100
