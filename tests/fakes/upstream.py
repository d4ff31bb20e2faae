"""The fake provider: an HTTP server on 127.0.0.1 with the OpenAI API, which sends the replies that a test scripts.

In a test, in the same loop::

    async with FakeUpstream(text("Hello!"), calls(("look_up_item", {"search_query": "rocket"}))) as upstream:
        ...                                     # point a model or the proxy at upstream.base_url
        assert upstream.requests[0].body["messages"][-1] == {"role": "user", "content": "Hi"}

Each request takes the next reply of the queue (``upstream.reply(...)`` adds more); with ``answer=function`` a
function of the request chooses, sync or async. A request that nothing was scripted for is answered with 418
and fails the test when the block is left. Replies: ``text``, ``calls``, ``error``, ``raw``, ``bare``,
``events``, ``hang``, ``cut``, and ``reply.held(event, after=n)``, ``.cut(after=n)``, ``.hang(after=n)``,
``.end(after=n)``. ``GET /v1/models`` always answers.

Wait for things, not for time: ``await upstream.received(2)`` (the second request), ``await
upstream.requests[0].closed()`` (its connection), ``request.is_open``.

As a separate process (the first line on stdout is the base URL; SIGTERM or the end of stdin's parent stops
it)::

    python -m tests.fakes.upstream --port 0 [--rules rules.json]

There, rules choose the reply (``tests.fakes.scripted_provider`` documents their format and the built-in rules), ``GET
/requests`` gives what was asked so far, and ``PUT /rules`` sets other rules.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from tests.fakes.replies import (
    JSON,
    USAGE,
    Reply,
    Step,
    Stop,
    bare,
    calls,
    chunk,
    cut,
    error,
    events,
    hang,
    joined,
    raw,
    text,
)

__all__ = [
    "USAGE",
    "FakeUpstream",
    "Received",
    "Reply",
    "Stop",
    "bare",
    "calls",
    "chunk",
    "cut",
    "error",
    "events",
    "hang",
    "raw",
    "text",
]

Answer = Callable[["Received"], "Reply | Awaitable[Reply]"]
Aside = Callable[["Received"], "Reply | None"]


class Connection:
    """One TCP connection of the provider."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()


@dataclass
class Received:
    """A request as it came in. ``body`` is the decoded JSON, or None."""

    number: int
    """1, 2, …"""
    method: str
    path: str
    query: str
    """The raw query string."""
    headers: dict[str, str]
    """With lower-case names."""
    body: Any
    content: bytes = field(repr=False)
    """The body as it came."""
    connection: Connection = field(repr=False)
    is_answered: bool = False
    """Whether the whole reply was written."""

    @property
    def is_open(self) -> bool:
        """Whether its connection still stands."""
        return not self.connection.lost.is_set()

    async def closed(self, within: float = 20.0) -> None:
        """Wait until its connection is gone."""
        async with asyncio.timeout(within):
            await self.connection.lost.wait()


class FakeUpstream:
    """The server, as a context manager."""

    def __init__(
        self,
        *replies: Reply,
        answer: Answer | None = None,
        api_key: str | None = None,
        port: int = 0,
        lists_models: bool = True,
        aside: Aside | None = None,
    ) -> None:
        """With ``lists_models`` false, the list of models is a request like any other.

        A request for which ``aside`` returns a reply is in ``asides``, not ``requests``, and takes no scripted reply.
        """
        self.requests: list[Received] = []
        self.asides: list[Received] = []
        self._aside = aside
        self.base_url = ""
        self._queue = deque(replies)
        self._answer = answer
        self._api_key = api_key
        self._port = port
        self._lists_models = lists_models
        self._unscripted = 0
        self._arrival = asyncio.Event()

    def reply(self, *replies: Reply) -> None:
        """Add to the queue."""
        self._queue.extend(replies)

    def forget(self) -> FakeUpstream:
        """Reset for another test: without requests and without replies."""
        self.requests.clear()
        self.asides.clear()
        self._queue.clear()
        return self

    async def received(self, count: int, within: float = 20.0) -> Received:
        """Wait until ``count`` requests came, and return that one."""
        async with asyncio.timeout(within):
            while len(self.requests) < count:
                self._arrival.clear()
                await self._arrival.wait()
        return self.requests[count - 1]

    async def __aenter__(self) -> Self:
        self._web = _Server(self._handle)
        listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
        self._server = await asyncio.get_running_loop().create_server(self._web, sock=listener)
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._web.abort()
        await self._web.shutdown(0.1)
        assert kind is not None or not self._unscripted, (
            f"{self._unscripted} requests without a scripted reply"
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        content = await request.read()
        try:
            body = json.loads(content) if content else None
        except ValueError:
            body = None
        received = Received(
            number=len(self.requests) + 1,
            method=request.method,
            path=request.path,
            query=request.query_string,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            content=content,
            connection=self._web.connection_of(request),
        )
        aside = self._aside(received) if self._aside is not None else None
        (self.requests if aside is None else self.asides).append(received)
        self._arrival.set()
        reply = await self._choose(received) if aside is None else aside
        response = await _play(reply, request, received)
        received.is_answered = True
        return response

    async def _choose(self, received: Received) -> Reply:
        if self._api_key is not None and received.headers.get("authorization") != f"Bearer {self._api_key}":
            return error(401, code="invalid_api_key")
        if self._lists_models and received.method == "GET" and received.path.endswith("/models"):
            models = {
                "object": "list",
                "data": [{"id": "fake-model", "object": "model", "created": 1_750_000_000}],
            }
            return raw(json.dumps(models).encode(), content_type=JSON)
        if self._answer is not None:
            chosen = self._answer(received)
            return await chosen if inspect.isawaitable(chosen) else chosen
        if self._queue:
            return self._queue.popleft()
        self._unscripted += 1
        return error(418, message="nothing is scripted for this request")


class _Server(web.Server):
    """aiohttp's low-level server, which also reports the end of each connection."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(handler, handler_cancellation=True, access_log=None)
        self._standing: dict[Any, tuple[Connection, asyncio.Transport]] = {}

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._standing[handler] = (Connection(), transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        connection, _ = self._standing.pop(handler)
        connection.lost.set()

    def connection_of(self, request: web.BaseRequest) -> Connection:
        return self._standing[request.protocol][0]

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        # A provider takes whole histories; the library's limit is 1 MiB.
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=1 << 30)

    def abort(self) -> None:
        for _, transport in self._standing.values():
            transport.abort()


async def _play(reply: Reply, request: web.BaseRequest, received: Received) -> web.StreamResponse:
    for step in reply.before:
        await _wait(step, request)
    content_type, steps = reply.script(received)
    if reply.is_bare:
        transport = request.transport
        for step in steps:
            if isinstance(step, bytes) and transport is not None:
                transport.write(step)
            else:
                await _wait(step, request)
        if transport is not None:
            transport.close()
        return web.Response()
    headers = {"content-type": content_type, "x-request-id": f"req_{received.number}", **reply.headers}
    body = joined(steps)
    if body is not None and not content_type.startswith("text/event-stream"):
        return web.Response(status=reply.status, headers=headers, body=body)
    response = web.StreamResponse(status=reply.status, headers=headers)
    await response.prepare(request)
    for step in steps:
        if step is Stop.END:
            break
        if isinstance(step, bytes):
            await response.write(step)
        else:
            await _wait(step, request)
    await response.write_eof()
    return response


async def _wait(step: Step, request: web.BaseRequest) -> None:
    if isinstance(step, asyncio.Event):
        await step.wait()
    elif step is Stop.CUT:
        assert request.transport is not None
        request.transport.abort()
        await asyncio.Event().wait()
    elif step is Stop.HANG:
        await asyncio.Event().wait()


if __name__ == "__main__":
    from tests.fakes.scripted_provider import main

    main()
