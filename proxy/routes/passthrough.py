"""Forward requests for passthrough models to their provider, and stream the responses back unchanged.

Such a request is not a turn: it has no conversation, nothing is stored, and the proxy does not validate its fields.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from proxy.auth import Terms
from proxy.errors import ModelNotFound, ProxyError, ShuttingDown
from proxy.messages import Usage
from proxy.routes.client_connection import ClientConnection, wait_for_disconnect
from proxy.routes.request_body import ClientDisconnected
from proxy.routes.streaming import STREAM_HEADERS, Headers
from proxy.wire.errors import envelope
from proxy.wire.events import sse


class UpstreamResponse(Protocol):
    """A response of a provider."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Headers:
        """The headers to forward to the caller."""
        ...

    @property
    def is_stream(self) -> bool:
        """Whether the response is an event stream."""
        ...

    @property
    def usage(self) -> Usage | None:
        """The usage in the response; None if it has none, or was not read."""
        ...

    @property
    def upstream_request_id(self) -> str:
        """The request id of the provider."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body in parts that end at the end of an event."""
        ...


class UpstreamModel(Protocol):
    """A passthrough model."""

    @property
    def name(self) -> str:
        """The name of the model at its provider."""
        ...

    def ask(self, body: bytes, *, is_stream: bool) -> AbstractAsyncContextManager[UpstreamResponse]:
        """Send a body; the response can be read within the block."""
        ...


class UpstreamModels(Protocol):
    """All passthrough models."""

    async def find(self, name: str) -> UpstreamModel | None:
        """Return the model with this id; None if there is none, or a team has the id."""
        ...


RecordUsage = Callable[[str, str, Usage | None], None]
"""Records the usage of a response, by caller and model."""


class _Named(Struct):
    model: str = ""
    stream: Any = None


_decode = msgspec.json.Decoder(_Named).decode


class PassthroughHandler:
    """Forwards requests; one instance per process."""

    def __init__(self, models: UpstreamModels, *, stall: float, used: RecordUsage) -> None:
        """``stall`` is the timeout in seconds for a client that does not read its response."""
        self._models = models
        self._stall = stall
        self._used = used
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def serve(self, body: bytes, connection: ClientConnection, caller: str, terms: Terms) -> bool:
        """Serve a request for a passthrough model; return False if it is for another model.

        Raises:
            ModelNotFound: The API key does not allow the model.
            UpstreamFailed: The provider did not respond, and nothing was sent.
            ShuttingDown: The server is shutting down.
        """
        try:
            named = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        model = await self._models.find(named.model) if named.model else None
        if model is None:
            return False
        if not terms.allow(named.model):
            raise ModelNotFound(named.model)
        if self._stopping.is_set():
            raise ShuttingDown
        is_stream = named.stream is True
        facts = connection.scope["state"]["facts"]
        facts.update(model=named.model[:100], upstream_model=model.name[:100], stream=is_stream)
        call = _Call(connection, self._stall, partial(self._used, caller, named.model))
        work = asyncio.create_task(call.forward(model, body, is_stream=is_stream), name="passing on")
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        await call.watch(work, self._stopping)
        return True

    async def reject_other_endpoint(self, name: str) -> None:
        """Reject a request for a passthrough model at another endpoint than chat completions.

        Raises:
            ModelNotFound: It is a passthrough model; the message names the supported endpoint.
        """
        if await self._models.find(name) is not None:
            raise ModelNotFound(name, only_at="/v1/chat/completions")

    async def close(self, *, grace: float) -> None:
        """Wait ``grace`` seconds for running requests, then end their streams with an error; reject new requests."""
        if self._running and grace > 0:
            await asyncio.wait(self._running, timeout=grace)
        self._stopping.set()
        if self._running:
            await asyncio.wait(self._running)


class _Call:
    """One forwarded request."""

    def __init__(
        self, connection: ClientConnection, stall: float, used: Callable[[Usage | None], None]
    ) -> None:
        self._connection = connection
        self._used = used
        self._stall = stall
        self._facts = connection.scope["state"]["facts"]
        self._is_complete = False
        """Whether the complete response was sent."""

    async def watch(self, work: asyncio.Task[None], stopping: asyncio.Event) -> None:
        """Wait for the request; cancel it if the client disconnects or the server stops."""
        left = asyncio.create_task(wait_for_disconnect(self._connection.receive), name="client")
        stopped = asyncio.create_task(stopping.wait(), name="stopping")
        try:
            await asyncio.wait({work, left, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._is_complete:
                work.cancel()
                await asyncio.wait({work})
                if left.done():
                    self._facts.update(outcome="client_disconnect")
                elif not self._is_complete:
                    await self._fail(ShuttingDown())
                return
            await work
        finally:
            for task in (work, left, stopped):
                task.cancel()
            await asyncio.gather(work, left, stopped, return_exceptions=True)

    async def forward(self, model: UpstreamModel, body: bytes, *, is_stream: bool) -> None:
        """Send the request to the provider and the response to the client."""
        async with model.ask(body, is_stream=is_stream) as answer:
            self._facts.update(upstream_request_id=answer.upstream_request_id)
            try:
                if answer.is_stream:
                    await self._stream(answer)
                else:
                    await self._send_body(answer)
            except ProxyError as error:
                await self._fail(error)
            finally:
                self._used(answer.usage)
                if answer.usage is not None:
                    self._facts.update(
                        prompt_tokens=answer.usage.prompt, completion_tokens=answer.usage.completion
                    )

    async def _stream(self, answer: UpstreamResponse) -> None:
        await self._begin(answer.status, _with_defaults(answer.headers, STREAM_HEADERS))
        async for piece in answer.pieces():
            try:
                async with asyncio.timeout(self._stall):
                    await self._send(piece, more=True)
            except TimeoutError:
                # The client does not read: end the request, which closes the connection.
                raise ClientDisconnected from None
        await self._send(b"", more=False)

    async def _send_body(self, answer: UpstreamResponse) -> None:
        body = b"".join([piece async for piece in answer.pieces()])
        await self._begin(answer.status, [*answer.headers, (b"content-length", b"%d" % len(body))])
        await self._send(body, more=False)

    async def _fail(self, error: ProxyError) -> None:
        """End a stream with an error event; raise the error if the headers were not sent yet."""
        if "status" not in self._facts:
            raise error
        self._facts.update(outcome=error.code)
        await self._send(b"data: %b\n\n%b" % (sse.one_line(envelope(error)), sse.DONE), more=False)

    async def _begin(self, status: int, headers: Headers) -> None:
        await self._connection.send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send(self, body: bytes, *, more: bool) -> None:
        self._is_complete = self._is_complete or not more
        await self._connection.send({"type": "http.response.body", "body": body, "more_body": more})


def _with_defaults(headers: Sequence[tuple[bytes, bytes]], defaults: Headers) -> Headers:
    given = {name for name, _ in headers}
    return [*headers, *((name, value) for name, value in defaults if name not in given)]
