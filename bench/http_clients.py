"""CPU of a client of the provider alone: run as a process, it prints its figures as JSON.

``python -m bench.http_clients own|aiohttp PORT``: the proxy's own client, or aiohttp, with the same streamed responses.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

from bench.loops import run

REQUESTS, CONCURRENCY = 3_000, 8
STREAMS = 10

Call = Callable[[bytes], Awaitable[int]]
"""Sends a request body and returns the size of the response body."""


def _body(model: str) -> bytes:
    messages = [{"role": "user", "content": "Hello, I would like to know something."}]
    return json.dumps({"model": model, "messages": messages, "stream": True}).encode()


async def measure(call: Call) -> dict[str, float]:
    """Return the CPU of a request with one read, and of a chunk of a stream, in µs."""

    async def several(count: int, model: str) -> None:
        for _ in range(count):
            assert await call(_body(model)) > 0

    async def at_once(count: int, model: str, tasks: int) -> float:
        began = time.process_time()
        await asyncio.gather(*(several(count // tasks, model) for _ in range(tasks)))
        return (time.process_time() - began) * 1e6

    await at_once(REQUESTS // 10, "plain", CONCURRENCY)
    request = await at_once(REQUESTS, "plain", CONCURRENCY) / REQUESTS
    chunk = await at_once(STREAMS, "paced", STREAMS) / (STREAMS * 100)
    return {"request": request, "chunk": chunk}


async def own(port: int) -> dict[str, float]:
    """Measure the proxy's client."""
    from proxy.providers.http.pool import Endpoint, HttpSession
    from proxy.providers.http.url import HttpUrl

    session = HttpSession()
    url = HttpUrl.parse(f"http://127.0.0.1:{port}/v1/chat/completions")
    endpoint = Endpoint.at(url, {"content-type": "application/json", "authorization": "Bearer bench"})

    async def call(body: bytes) -> int:
        response = await session.ask(endpoint, body, connect=5.0)
        is_over = asyncio.get_running_loop().create_future()
        size = 0

        # In the call of the event loop that reads them, as the server takes the chunks of an answer.
        def take() -> None:
            nonlocal size
            size += len(response.read_now())
            if response.is_over and not is_over.done():
                is_over.set_result(None)

        response.on_news = take
        take()
        await is_over
        response.release()
        return size

    try:
        return await measure(call)
    finally:
        await session.close()


async def with_aiohttp(port: int) -> dict[str, float]:
    """Measure aiohttp, with the time limits that the proxy needs."""
    import aiohttp

    headers = {"content-type": "application/json", "authorization": "Bearer bench"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def call(body: bytes) -> int:
            size = 0
            async with session.post(url, data=body) as response:
                while data := await response.content.readany():
                    size += len(data)
            return size

        return await measure(call)


if __name__ == "__main__":
    measured = own if sys.argv[1] == "own" else with_aiohttp
    print(json.dumps(run(measured(int(sys.argv[2])))))
