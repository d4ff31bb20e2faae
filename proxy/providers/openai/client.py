"""Models that speak the OpenAI wire, asked over our own connections and read by our own reader: the hot path.

The ``openai`` package costs forty times as much per chunk and 0.17 ms for every message of the history;
nothing of it is used here. One ``HttpSession`` serves all models of a process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from yarl import URL

from proxy.errors import (
    ConfigurationError,
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamTooMuch,
)
from proxy.providers.capabilities import Abilities
from proxy.providers.http.connection import Response
from proxy.providers.http.pool import TRANSPORT_ERRORS, Endpoint, HttpSession, error_body
from proxy.providers.model import ModelDelta, ModelRequest
from proxy.providers.openai.errors import refusal
from proxy.providers.openai.request import DISPENSABLE, body_of, headers_of
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.timeouts import Alarm, ModelLimits
from proxy.teamfiles.definitions import OpenAIModel

logger = logging.getLogger(__name__)

_AFTER_REASON = 2.0
"""Seconds that a finished answer waits for its usage, and for the end of its stream."""
_FOR_REUSE = 0.05
"""Seconds that a read answer waits for the end of its body, so that the connection can be used again."""


class OpenAIWireModel:
    """One model at one provider. The session is the caller's to close."""

    def __init__(
        self, definition: OpenAIModel, session: HttpSession, limits: ModelLimits | None = None
    ) -> None:
        """``limits`` are the defaults unless given.

        Raises:
            ConfigurationError: The key or a header has characters that cannot be sent.
        """
        self._definition = definition
        self._session = session
        self._limits = limits or ModelLimits()
        self._endpoint = endpoint_of(definition, "chat", "completions")
        self._refused: frozenset[str] = frozenset()
        """Fields that the provider does not know."""

    @property
    def name(self) -> str:
        """The model's name at its provider."""
        return self._definition.model

    @property
    def abilities(self) -> Abilities:
        """Everything, as far as is known here; the provider refuses what its model cannot do."""
        return Abilities()

    def stream(
        self, request: ModelRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ModelDelta]]]:
        """Ask, and read the answer in batches inside the block."""
        return _Answer(self, request)

    async def close(self) -> None:
        """Nothing is held beside the session."""

    async def ask(self, request: ModelRequest) -> Response:
        """Return a good answer whose body was not read yet.

        Raises:
            UpstreamFailed: There is none.
        """
        while True:
            # Calls at the same time learn of a refusal each by themselves.
            without = self._refused
            response, told = await self._post(request, without)
            refused = {name for name in DISPENSABLE if name.encode() in told} - without
            if response.status not in (400, 422) or not refused:
                return _accepted(response, told)
            self._refused |= refused
            facts = {"model": self.name, "fields": sorted(refused)}
            logger.info("provider refuses fields that it can do without", extra=facts)

    async def _post(self, request: ModelRequest, without: Collection[str]) -> tuple[Response, bytes]:
        try:
            body = body_of(self._definition, request, without=without)
        except (ValueError, TypeError):
            raise UpstreamBadRequest("bad_request") from None
        response = await self._session.ask(self._endpoint, body, connect=self._limits.connect)
        if response.status < 300:
            return response, b""
        return response, await error_body(response)


class _Answer:
    """One call: asks when its block is entered, and lets go of the connection when it is left."""

    def __init__(self, model: OpenAIWireModel, request: ModelRequest) -> None:
        self._model = model
        self._request = request
        self._limits = model._limits
        self._reader = AnswerReader(
            max_answer_bytes=self._limits.answer_bytes, max_line_bytes=self._limits.line_bytes
        )
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._give_up)
        self._response: Response | None = None
        self._is_whole = False
        self._has_received = False

    async def __aenter__(self) -> AsyncIterator[Sequence[ModelDelta]]:
        self._first_deadline = self._loop.time() + self._limits.first_token
        try:
            async with asyncio.timeout_at(self._first_deadline):
                response = self._response = await self._model.ask(self._request)
        except TimeoutError:
            raise UpstreamTimeout("timeout_first") from None
        encoding = response.headers.get("content-encoding", "identity")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if encoding.lower() != "identity":
            response.release()
            raise UpstreamProtocolError("protocol")
        if kind == "text/html":
            # The page of a gateway whose provider is gone.
            response.release()
            raise UpstreamFailed("status_5xx", is_retryable=True)
        self._is_whole = kind == "application/json" or kind.endswith("+json")
        return self

    def __aiter__(self) -> AsyncIterator[Sequence[ModelDelta]]:
        return self

    async def __anext__(self) -> Sequence[ModelDelta]:
        reader = self._reader
        if reader.failure is not None:
            raise reader.failure
        if reader.is_finished:
            raise StopAsyncIteration
        if self._is_whole:
            return reader.read_whole(await self._whole())
        while True:
            received = await self._more()
            if received:
                self._has_received = True
                deltas = reader.feed(received)
            elif self._has_received:
                deltas = reader.end()
            else:
                raise UpstreamFailed("status_5xx", is_retryable=True)
            if deltas:
                return deltas

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.stop()
        response = self._response
        assert response is not None
        try:
            if kind is None and self._reader.is_finished and not response.is_complete:
                async with asyncio.timeout(_FOR_REUSE):
                    await response.end()
        except (TimeoutError, *TRANSPORT_ERRORS):
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
        body = bytearray()
        while received := await self._more():
            body += received
            if len(body) > self._limits.answer_bytes:
                raise UpstreamTooMuch("too_much")
        if not body:
            raise UpstreamFailed("status_5xx", is_retryable=True)
        return bytes(body)

    def _deadline(self) -> float:
        reader = self._reader
        if reader.has_reason:
            return self._loop.time() + min(_AFTER_REASON, self._limits.idle)
        if reader.has_said:
            return self._loop.time() + self._limits.idle
        return self._first_deadline

    def _give_up(self) -> None:
        assert self._response is not None
        label = "timeout_idle" if self._reader.has_said else "timeout_first"
        self._response.fail(UpstreamTimeout(label))


def endpoint_of(definition: OpenAIModel, *path: str, method: str = "POST") -> Endpoint:
    """Return where something of a model's provider is asked for; a query behind the base stays.

    Raises:
        ConfigurationError: The URL, the key or a header cannot be used.
    """
    try:
        base = URL(definition.base_url)
        url = base.joinpath(*path).with_query(base.query)
        return Endpoint.at(url, headers_of(definition), method)
    except ValueError:
        raise ConfigurationError(
            f"model {definition.model!r}: its URL, or the name of a header, cannot be used"
        ) from None


def _accepted(response: Response, error_body: bytes) -> Response:
    if response.status >= 300:
        raise refusal(response.status, error_body, response.headers)
    return response
