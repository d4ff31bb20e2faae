"""One answer of an OpenAI-compatible API: sends the request, reads the response, releases the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Protocol

import msgspec

from proxy.errors import (
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamProtocolError,
    UpstreamResponseTooLarge,
    UpstreamTimeout,
)
from proxy.events import ParametersIgnored, ReasoningDelta
from proxy.messages import Usage
from proxy.providers.http.body_start import first_bytes, is_json
from proxy.providers.http.connection import Response
from proxy.providers.http.pool import TRANSPORT_ERRORS
from proxy.providers.model import Finished, ModelDelta, ModelRequest, Take, ToolCallPiece
from proxy.providers.openai.batch_delivery import BatchDelivery
from proxy.providers.openai.responses_stream import ResponsesReader
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.timeouts import Alarm, AlarmClock, ModelLimits
from proxy.turns.text_relay import OpenRelay

_FOR_REUSE = 0.05
"""Seconds that a read answer waits for the end of its body, so that the connection can be used again."""


class Accepted(msgspec.Struct, frozen=True):
    """A response with a good status, whose body was not read yet."""

    response: Response
    make_reader: Callable[..., AnswerReader | ResponsesReader]
    ignored: tuple[str, ...] = ()
    """Parameters of the caller that the request did not have."""
    defers_form: bool = False
    """The request did not have ``response_format``, because it has tools."""


class AnsweringModel(Protocol):
    """The model that an answer is of."""

    provider: str
    """The name of the model at its provider (``provider_of``): only the same one gets its state back."""
    alarm_clock: AlarmClock

    def send(self, request: ModelRequest) -> Awaitable[Accepted]:
        """Send the request, and return its response when the head came.

        Raises:
            UpstreamFailed: The provider does not accept it.
        """
        ...

    def describe(self, failure: UpstreamFailed, request: ModelRequest) -> None:
        """Add the provider, and what it reported, to the facts of a failure."""
        ...

    def finish(self, reader: AnswerReader | ResponsesReader) -> None:
        """Receive the reader of a complete answer."""
        ...


class ProviderAnswer:
    """One call: sends the request when its block is entered, and releases the connection when it is left."""

    _response: Response | None
    _reader: AnswerReader | ResponsesReader
    _is_whole: bool
    _start: bytes | None
    """The first bytes of the body, read to distinguish JSON from an event stream."""
    _has_received: bool
    _first_deadline: float
    _reason_deadline: float | None
    _may_continue: bool
    """Whether the deadline is for a reader whose answer may continue."""
    _sender: asyncio.Task[object] | None
    """The task that waits for the head of the response."""
    _defers_form: bool

    def __init__(self, model: AnsweringModel, request: ModelRequest, limits: ModelLimits) -> None:
        self._model = model
        self._request = request
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(model.alarm_clock, self._give_up)
        self._is_late = False
        """Whether the task was cancelled, because the head did not arrive in time."""
        self._ignored: tuple[str, ...] = ()
        self._usage_before: Usage | None = None
        """Of the call with tools, before the one with ``response_format``."""
        self._ahead: Sequence[ModelDelta] = ()
        """The batch that ended ``forward``."""

    def __aenter__(self) -> Coroutine[Any, Any, AsyncIterator[Sequence[ModelDelta]]]:
        # Plain function: a coroutine would add a frame to the wait for the answer.
        return self._open(self._request)

    @property
    def is_streamed(self) -> bool:
        """Whether the provider sent events, and not one JSON object."""
        return not self._is_whole

    def __aiter__(self) -> AsyncIterator[Sequence[ModelDelta]]:
        return self

    def __anext__(self) -> Awaitable[Sequence[ModelDelta]]:
        # Plain function: nearly every batch comes as it is, and a coroutine would add a frame to each read.
        if self._ignored or self._defers_form or self._usage_before is not None:
            return self._changed_batch()
        return self._batch()

    async def _changed_batch(self) -> Sequence[ModelDelta]:
        deltas = await (self._first_of_two() if self._defers_form else self._batch())
        if self._ignored:
            deltas = [ParametersIgnored(self._ignored), *deltas]
            self._ignored = ()
        if self._usage_before is not None and isinstance(last := deltas[-1], Finished):
            usage = self._usage_before + (last.usage or Usage())
            return [*deltas[:-1], msgspec.structs.replace(last, usage=usage)]
        return deltas

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.stop()
        is_good = kind is None and self._reader.is_finished
        if is_good:
            self._model.finish(self._reader)
        response = self._response
        if is_good and response is not None and response.is_complete:
            self._response = None
            response.release()
        else:
            await self._leave(is_good=is_good)

    async def _open(self, request: ModelRequest) -> ProviderAnswer:
        """Send the request, and check the head of the response."""
        self._first_deadline = self._loop.time() + self._limits.first_token
        task = self._sender = asyncio.current_task(self._loop)
        assert task is not None
        cancellations = task.cancelling()
        self._alarm.set(self._first_deadline)
        has_begun = False
        try:
            self._begin(await self._model.send(request))
            has_begun = True
        except UpstreamFailed as failure:
            if self._is_late:
                task.uncancel()
            self._model.describe(failure, self._request)
            raise
        except asyncio.CancelledError:
            # As asyncio.timeout does it, with the timer that the rest of the answer needs anyway.
            if not self._is_late or task.uncancel() > cancellations:
                raise
            late = UpstreamTimeout("timeout_first")
            self._model.describe(late, self._request)
            raise late from None
        finally:
            self._alarm.deadline = self._sender = None
            if not has_begun:
                # The block is not left, and the timer would hold the request until the deadline.
                self._alarm.stop()
        return self

    def _begin(self, accepted: Accepted) -> None:
        self._response = response = accepted.response
        self._reader = accepted.make_reader(
            provider=self._model.provider,
            max_answer_bytes=self._limits.answer_bytes,
            max_line_bytes=self._limits.line_bytes,
        )
        self._is_whole = self._has_received = self._may_continue = False
        self._start = self._reason_deadline = None
        if accepted.ignored:
            self._ignored = tuple(dict.fromkeys((*self._ignored, *accepted.ignored)))
        self._defers_form = accepted.defers_form
        encoding = response.fields.get(b"content-encoding")
        kind = response.fields.get(b"content-type", b"").lower()
        response.forget_headers()
        if encoding is not None and encoding.lower() != b"identity":
            response.release()
            raise UpstreamProtocolError("protocol")
        if kind.startswith(b"text/html") and kind.partition(b";")[0].strip() == b"text/html":
            # The page of a gateway whose provider is gone.
            response.release()
            raise UpstreamFailed("status_5xx", is_retryable=True)

    async def _first_of_two(self) -> Sequence[ModelDelta]:
        """Read the whole answer to the request with tools; without calls in it, call again for the form.

        Providers that reject ``response_format`` next to tools (Gemini, Groq) get it in a request without tools.
        """
        self._defers_form = False
        deltas: list[ModelDelta] = []
        while not self._reader.is_finished:
            deltas += await self._batch()
        finished = deltas[-1]
        assert isinstance(finished, Finished)
        if finished.reason != "stop" or any(isinstance(delta, ToolCallPiece) for delta in deltas):
            return deltas
        await self._leave(is_good=True)
        await self._open(
            msgspec.structs.replace(self._request, tools=(), tool_choice=None, parallel_tool_calls=None)
        )
        if self._defers_form:
            # The provider needs tools, because earlier messages have calls, and rejects the form next to them.
            raise UpstreamBadRequest(param="response_format")
        self._usage_before = finished.usage
        reasoning = [delta for delta in deltas if isinstance(delta, ReasoningDelta)]
        return reasoning or await self._batch()

    async def forward(self, take: Take, open_relay: OpenRelay | None = None) -> bool:
        """Forward the batches of a streamed answer that has begun, up to its end; see ``forward_of``."""
        response, reader = self._response, self._reader
        is_running = reader.has_said and not (reader.has_reason or reader.is_finished or reader.failure)
        is_changed = self._ignored or self._defers_form or self._usage_before is not None
        if response is None or not is_running or is_changed or self._is_whole or self._start or self._ahead:
            return True
        forwarding = BatchDelivery(response, reader, take, self._alarm, self._limits.idle, open_relay)
        try:
            # No coroutine in between: each would be a frame of each waiting stream.
            return await forwarding.start()
        except UpstreamFailed as failure:
            self._model.describe(failure, self._request)
            raise
        finally:
            forwarding.stop()
            self._ahead = forwarding.untaken

    async def _batch(self) -> Sequence[ModelDelta]:
        if self._ahead:
            deltas, self._ahead = self._ahead, ()
            return deltas
        try:
            reader, response = self._reader, self._response
            if reader.failure is not None:
                raise reader.failure
            if reader.is_finished:
                raise StopAsyncIteration
            assert response is not None
            if self._start is None:
                start = response.read_now() or await self._more()
                if not start.startswith(b"data:"):
                    # It is rare: JSON, or events that begin in another way.
                    start = await first_bytes(self._more, start)
                    self._is_whole = is_json(start)
                self._start = start
            if self._is_whole:
                return reader.read_whole(await self._whole())
            while True:
                received, self._start = self._start or response.read_now() or await self._more(), b""
                if received:
                    self._has_received = True
                    deltas = reader.feed(received)
                    if not reader.has_reason:
                        self._reason_deadline = None
                elif self._has_received:
                    deltas = reader.end()
                else:
                    raise UpstreamFailed("status_5xx", is_retryable=True)
                if deltas:
                    return deltas
        except UpstreamFailed as failure:
            self._model.describe(failure, self._request)
            raise

    async def _leave(self, *, is_good: bool) -> None:
        """Release the connection; after a complete answer it is used again if its end arrives soon."""
        response, self._response = self._response, None
        if response is None:
            return
        try:
            if is_good and not response.is_complete:
                async with asyncio.timeout(_FOR_REUSE):
                    await response.end()
        except (TimeoutError, UpstreamTimeout, *TRANSPORT_ERRORS):
            # The answer is complete; a timeout that ended the wait for usage is raised here again.
            pass
        finally:
            response.release()

    async def _more(self) -> bytes:
        """Return what came since the last read, b"" at the end."""
        assert self._response is not None
        self._alarm.set(self._deadline())
        try:
            return await self._response.read()
        except (UpstreamTimeout, *TRANSPORT_ERRORS) as failure:
            if self._reader.has_reason:
                # The answer itself is whole.
                return b""
            if isinstance(failure, UpstreamTimeout):
                raise
            raise UpstreamFailed("broken", is_retryable=True) from None
        finally:
            self._alarm.pause()

    async def _whole(self) -> bytes:
        assert self._start is not None
        body = bytearray(self._start)
        while len(body) <= self._limits.answer_bytes and (received := await self._more()):
            body += received
        if len(body) > self._limits.answer_bytes:
            raise UpstreamResponseTooLarge("too_much")
        if not body:
            raise UpstreamFailed("status_5xx", is_retryable=True)
        return bytes(body)

    def _deadline(self) -> float:
        reader = self._reader
        if reader.has_reason:
            # Set once: comments that keep the connection alive do not make it later.
            if self._reason_deadline is None or self._may_continue != reader.may_continue:
                self._may_continue = reader.may_continue
                idle = self._limits.idle
                wait = idle if self._may_continue else min(self._limits.usage, idle)
                self._reason_deadline = self._loop.time() + wait
            return self._reason_deadline
        if reader.has_said:
            return self._loop.time() + self._limits.idle
        return self._first_deadline

    def _give_up(self) -> None:
        if self._sender is not None:
            self._is_late = True
            self._sender.cancel()
            return
        assert self._response is not None
        label = "timeout_idle" if self._reader.has_said else "timeout_first"
        self._response.fail(UpstreamTimeout(label))
