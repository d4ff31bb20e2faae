"""A request for a model that is served straight through: handed on, and its answer handed back as it comes.

Such a request is no turn: it has no conversation, nothing of it is kept, and none of its fields is ours to judge.
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
from proxy.routes.request_body import ClientDisconnected
from proxy.routes.streaming import STREAM_HEADERS, Connection, Headers, wait_for_disconnect
from proxy.wire.errors import envelope
from proxy.wire.events import sse


class Answer(Protocol):
    """An answer on its way."""

    @property
    def status(self) -> int:
        """Its status."""
        ...

    @property
    def headers(self) -> Headers:
        """Those that concern the caller."""
        ...

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream of events; any other answer is whole."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What it says that it used, once it was read."""
        ...

    @property
    def upstream_request_id(self) -> str:
        """What its provider calls the request."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body, in pieces that end where an event ends."""
        ...


class StraightModel(Protocol):
    """A model that is served straight through."""

    @property
    def name(self) -> str:
        """Its name at its provider."""
        ...

    def ask(self, body: bytes, *, is_stream: bool) -> AbstractAsyncContextManager[Answer]:
        """Hand on a body; inside the block its answer can be read."""
        ...


class StraightModels(Protocol):
    """All of them."""

    async def find(self, name: str) -> StraightModel | None:
        """Return the model with this id; None when there is none, or a team has it."""
        ...


Used = Callable[[str, str, Usage | None], None]
"""Is told who asked which model, and what the answer says that it used."""


class _Named(Struct):
    model: str = ""
    stream: Any = None


_decode = msgspec.json.Decoder(_Named).decode


class Passing:
    """Hands requests on; one for the process."""

    def __init__(self, models: StraightModels, *, stall: float, used: Used) -> None:
        """``stall``: for how many seconds a client may take nothing of what it is sent; ``used`` is told of answers."""
        self._models = models
        self._stall = stall
        self._used = used
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def serve(self, body: bytes, connection: Connection, caller: str, terms: Terms) -> bool:
        """Answer the caller's request if it is for such a model; False when it is not.

        Raises:
            ModelNotFound: The caller's key is not for it.
            UpstreamFailed: There is no answer, and nothing was sent.
            ShuttingDown: The server is stopping.
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
        work = asyncio.create_task(call.pass_on(model, body, is_stream=is_stream), name="passing on")
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        await call.watch(work, self._stopping)
        return True

    async def refuse_elsewhere(self, name: str) -> None:
        """Refuse a request for such a model in the words of another API than chat completions.

        Raises:
            ModelNotFound: It is one, and is listed like any other, so that the caller is told where to ask.
        """
        if await self._models.find(name) is not None:
            raise ModelNotFound(name, only_at="/v1/chat/completions")

    async def close(self, *, grace: float) -> None:
        """Take no new requests, let the running ones finish for ``grace`` seconds, then end their streams properly."""
        if self._running and grace > 0:
            await asyncio.wait(self._running, timeout=grace)
        self._stopping.set()
        if self._running:
            await asyncio.wait(self._running)


class _Call:
    """One request on its way."""

    def __init__(self, connection: Connection, stall: float, used: Callable[[Usage | None], None]) -> None:
        self._connection = connection
        self._used = used
        self._stall = stall
        self._facts = connection.scope["state"]["facts"]
        self._is_told = False
        """All of the answer is sent."""

    async def watch(self, work: asyncio.Task[None], stopping: asyncio.Event) -> None:
        """Wait for the work as long as the client is there, and the server does not stop."""
        left = asyncio.create_task(wait_for_disconnect(self._connection.receive), name="client")
        stopped = asyncio.create_task(stopping.wait(), name="stopping")
        try:
            await asyncio.wait({work, left, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._is_told:
                work.cancel()
                await asyncio.wait({work})
                if left.done():
                    self._facts.update(outcome="client_disconnect")
                elif not self._is_told:
                    await self._break_off(ShuttingDown())
                return
            await work
        finally:
            for task in (work, left, stopped):
                task.cancel()
            await asyncio.gather(work, left, stopped, return_exceptions=True)

    async def pass_on(self, model: StraightModel, body: bytes, *, is_stream: bool) -> None:
        """Ask, and send what is answered."""
        async with model.ask(body, is_stream=is_stream) as answer:
            self._facts.update(upstream_request_id=answer.upstream_request_id)
            try:
                if answer.is_stream:
                    await self._stream(answer)
                else:
                    await self._whole(answer)
            except ProxyError as error:
                await self._break_off(error)
            finally:
                self._used(answer.usage)
                if answer.usage is not None:
                    self._facts.update(
                        prompt_tokens=answer.usage.prompt, completion_tokens=answer.usage.completion
                    )

    async def _stream(self, answer: Answer) -> None:
        await self._begin(answer.status, _with_defaults(answer.headers, STREAM_HEADERS))
        async for piece in answer.pieces():
            try:
                async with asyncio.timeout(self._stall):
                    await self._send(piece, more=True)
            except TimeoutError:
                # Nobody reads this any more; the connection ends with the request.
                raise ClientDisconnected from None
        await self._send(b"", more=False)

    async def _whole(self, answer: Answer) -> None:
        body = b"".join([piece async for piece in answer.pieces()])
        await self._begin(answer.status, [*answer.headers, (b"content-length", b"%d" % len(body))])
        await self._send(body, more=False)

    async def _break_off(self, error: ProxyError) -> None:
        """End a stream that cannot be finished; before its headers, the error has a status of its own."""
        if "status" not in self._facts:
            raise error
        self._facts.update(outcome=error.code)
        await self._send(b"data: %b\n\n%b" % (sse.one_line(envelope(error)), sse.DONE), more=False)

    async def _begin(self, status: int, headers: Headers) -> None:
        await self._connection.send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send(self, body: bytes, *, more: bool) -> None:
        self._is_told = self._is_told or not more
        await self._connection.send({"type": "http.response.body", "body": body, "more_body": more})


def _with_defaults(headers: Sequence[tuple[bytes, bytes]], defaults: Headers) -> Headers:
    given = {name for name, _ in headers}
    return [*headers, *((name, value) for name, value in defaults if name not in given)]
