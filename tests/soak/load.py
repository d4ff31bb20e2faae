"""Clients of a soak run: what they send, and what the provider answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import aiohttp

from tests.fakes.upstream import Received, Reply, calls, cut, error, hang, text

CLIENTS = 8
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_ENDINGS = ('"turn.completed"', '"turn.failed"', '"turn.cancelled"', '"type":"error"')
_LONGEST = 60
"""Seconds of one action. A turn ends after 15 s, and a busy machine needs time for the rest."""
_EXPECTED = {200, 201, 204, 404, 409, 429, 502, 503, 504}
"""404: another client has deleted it. 409: a turn of the conversation runs. 429 and 5xx: faults of the provider."""


class FaultyProvider:
    """Answers like a provider on a bad day; a seed determines how."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def answer(self, received: Received) -> Reply:
        chance = self._rng.random()
        if chance < 0.03:
            return error(self._rng.choice((429, 500, 503)))
        if chance < 0.05:
            return cut()
        if chance < 0.08:
            return text("A truncated answer", chunks=list("truncated")).cut(after=4)
        if chance < 0.09:
            return hang()
        if chance < 0.2 and received.body["messages"][-1]["role"] != "tool":
            return calls(("get_time", {}))
        return text("0123456789" * self._rng.choice((1, 10, 2_000)))


class Clients:
    """Sends requests to any of the workers until it is stopped; counts what came back."""

    def __init__(self, urls: list[str], rng: random.Random) -> None:
        self.statuses: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self._urls = urls
        self._rng = rng
        self._is_stopping = False

    async def run(self) -> None:
        """Run until ``stop``."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as client, asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._run_one(client, number))

    def stop(self) -> None:
        """Let every client end after what it does."""
        self._is_stopping = True

    def _is_running(self) -> bool:
        return not self._is_stopping

    async def _run_one(self, client: aiohttp.ClientSession, number: int) -> None:
        turn = 0
        while self._is_running():
            turn += 1
            conversation = f"soak-{number}-{turn}"
            try:
                for _ in range(self._rng.randint(1, 4)):
                    if not self._is_running():
                        break
                    action = self._rng.choice(_ACTIONS)
                    async with asyncio.timeout(_LONGEST):
                        await action(self, client, conversation)
                url = f"{self._rng.choice(self._urls)}/v1/conversations/{conversation}"
                async with client.delete(url) as response:
                    await self._count("delete", response)
            except TimeoutError:
                self.statuses["timeout"] += 1
            except (aiohttp.ClientError, OSError) as failure:
                # The worker was killed, or is not back yet.
                self.statuses[type(failure).__name__] += 1
                await asyncio.sleep(0.1)

    async def _count(self, action: str, response: aiohttp.ClientResponse) -> None:
        body = await response.read()
        self.statuses[f"{action} {response.status}"] += 1
        if response.status not in _EXPECTED or b'"internal_error"' in body:
            self.unexpected.append(f"{action}: {response.status} {body[:500]!r}")

    def _chat(self, *, stream: bool, store: bool = True) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Question {self._rng.random()}"}]
        return {"model": "chat", "messages": messages, "stream": stream, "store": store}

    async def whole(self, client: aiohttp.ClientSession, conversation: str) -> None:
        """A chat completion, streamed or not."""
        url, body = self._rng.choice(self._urls), self._chat(stream=self._rng.random() < 0.5)
        headers = {"X-Conversation-Id": conversation}
        async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            await self._count("chat", response)

    async def disconnected(self, client: aiohttp.ClientSession, conversation: str) -> None:
        """A stream that the client leaves after its first bytes."""
        url, body = self._rng.choice(self._urls), self._chat(stream=True)
        headers = {"X-Conversation-Id": conversation}
        async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            await response.content.read(10)
            self.statuses["left"] += 1
            response.close()

    async def response(self, client: aiohttp.ClientSession, conversation: str) -> None:
        """A request of the Responses API that is not stored."""
        url = self._rng.choice(self._urls)
        body = {"model": "chat", "input": "Hi", "store": False, "stream": self._rng.random() < 0.5}
        async with client.post(f"{url}/v1/responses", json=body) as response:
            await self._count("response", response)

    async def socket(self, client: aiohttp.ClientSession, conversation: str) -> None:
        """A turn over a WebSocket, closed in the middle or at its end."""
        url = self._rng.choice(self._urls)
        async with client.ws_connect(f"{url}/v1/ws") as socket:
            headers = {"X-Conversation-Id": conversation}
            start = {"type": "start", "id": "1", "request": self._chat(stream=True), "headers": headers}
            await socket.send_json(start)
            for _ in range(self._rng.choice((1, 3, 10))):
                message = await socket.receive(timeout=25)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                if "internal_error" in message.data:
                    self.unexpected.append(f"socket: {message.data[:500]}")
                if any(ending in message.data for ending in _ENDINGS):
                    break
            self.statuses["socket"] += 1

    async def listed(self, client: aiohttp.ClientSession, conversation: str) -> None:
        """The newest conversations."""
        async with client.get(f"{self._rng.choice(self._urls)}/v1/conversations?limit=5") as response:
            await self._count("list", response)


_ACTIONS = (
    Clients.whole,
    Clients.whole,
    Clients.whole,
    Clients.disconnected,
    Clients.response,
    Clients.socket,
    Clients.listed,
)


async def delete_all(url: str) -> None:
    """Delete every conversation; those whose worker was killed are busy until its lease has expired."""
    async with asyncio.timeout(180), aiohttp.ClientSession(timeout=_TIMEOUT) as client:
        while True:
            async with client.get(f"{url}/v1/conversations?limit=100") as response:
                found = [one["id"] for one in (await response.json())["data"]]
            if not found:
                return
            for conversation in found:
                async with client.delete(f"{url}/v1/conversations/{conversation}") as response:
                    busy = response.status == 409
                if busy:
                    await asyncio.sleep(1)
