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
from typing import Literal

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
from proxy.providers.openai.errors import error_code, error_message, refusal, rejected_fields
from proxy.providers.openai.provider_state import provider_of
from proxy.providers.openai.request import DISPENSABLE, body_of, headers_of
from proxy.providers.openai.responses_request import OPTIONAL, UNSUPPORTED, responses_body
from proxy.providers.openai.responses_stream import ResponsesReader
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.timeouts import Alarm, ModelLimits
from proxy.teamfiles.definitions import OpenAIModel
from proxy.teamfiles.model_requests import NO_SIGN_IN, can_sign_in

logger = logging.getLogger(__name__)

Wire = Literal["chat", "responses"]
_NO_MODEL = ("model_not_found", "deploymentnotfound")
_AZURE_HOSTS = (".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")

_AFTER_REASON = 2.0
"""Seconds that a finished answer waits for its usage, and for the end of its stream."""
_BLANK = b"\xef\xbb\xbf \t\r\n"
"""White space and a byte order mark."""
_LONGEST_BLANK_START = 4096
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
        self._endpoints = {
            "chat": endpoint_of(definition, "chat", "completions"),
            "responses": endpoint_of(definition, "responses"),
        }
        self._wire: Wire = first_wire(definition)
        self._may_switch = definition.wire == "auto"
        self.provider = provider_of(definition.base_url, definition.model)
        """What provider state is bound to."""
        self._refused: frozenset[str] = frozenset()
        """Fields that the provider does not know."""

    @property
    def name(self) -> str:
        """The model's name at its provider."""
        return self._definition.model

    @property
    def abilities(self) -> Abilities:
        """Everything that the wire has; the provider rejects what its model cannot do."""
        return Abilities().without(*UNSUPPORTED) if self._wire == "responses" else Abilities()

    def stream(
        self, request: ModelRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ModelDelta]]]:
        """Ask, and read the answer in batches inside the block."""
        return _Answer(self, request)

    async def close(self) -> None:
        """Nothing is held beside the session."""

    async def ask(self, request: ModelRequest) -> tuple[Response, Wire]:
        """Return a good answer whose body was not read yet, and the wire that it is in.

        With ``wire: auto`` the other wire is tried, once, when the provider does not have the first or points to the
        other; if it has that one, it is used from then on.

        Raises:
            UpstreamFailed: There is none.
        """
        # Taken now: another call may switch while this one waits for its answer.
        wire = first = self._wire
        may_switch = self._may_switch
        refusal_of_first: UpstreamFailed | None = None
        dropped: frozenset[str] = frozenset()
        while True:
            # Concurrent calls learn of a rejected field independently.
            without = self._refused | dropped
            body = self._body(request, wire, without)
            response, error = await self._post(body, wire)
            if may_switch and wire == first and (other := _other_wire(wire, response.status, error)):
                refusal_of_first = refusal(response.status, error, response.headers)
                wire = other
                continue
            if wire != first:
                if response.status in (404, 405):
                    raise refusal_of_first or refusal(response.status, error, response.headers)
                self._switch(wire)
            optional = OPTIONAL if wire == "responses" else DISPENSABLE
            rejected = (
                rejected_fields(error, optional) - without if response.status in (400, 422) else frozenset()
            )
            if not rejected:
                return _accepted(response, error), wire
            dropped |= rejected
            # If the caller's text has the name as well, the error may quote it: nothing is learned for other callers.
            learned = {name for name in rejected if body.count(name.encode()) <= 1}
            if learned:
                self._refused |= learned
                facts = {"model": self.name, "fields": sorted(learned)}
                logger.info("provider rejects optional fields; they are no longer sent", extra=facts)

    def _switch(self, wire: Wire) -> None:
        if self._may_switch:
            self._wire = wire
            self._may_switch = False
            logger.info("model uses the other wire of its provider", extra={"model": self.name, "wire": wire})

    def _body(self, request: ModelRequest, wire: Wire, without: Collection[str]) -> bytes:
        make_body = responses_body if wire == "responses" else body_of
        try:
            return make_body(self._definition, request, provider=self.provider, without=without)
        except (ValueError, TypeError):
            raise UpstreamBadRequest("bad_request") from None

    async def _post(self, body: bytes, wire: Wire) -> tuple[Response, bytes]:
        """Return the response and, if it is an error, its body."""
        response = await self._session.ask(self._endpoints[wire], body, connect=self._limits.connect)
        if response.status < 300:
            return response, b""
        return response, await error_body(response)


class _Answer:
    """One call: asks when its block is entered, and lets go of the connection when it is left."""

    def __init__(self, model: OpenAIWireModel, request: ModelRequest) -> None:
        self._model = model
        self._request = request
        self._limits = model._limits
        self._reader: AnswerReader | ResponsesReader
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._give_up)
        self._response: Response | None = None
        self._is_whole = False
        self._start: bytes | None = None
        """The first bytes of the body, read to tell JSON from an event stream."""
        self._reason_deadline: float | None = None
        self._has_received = False

    async def __aenter__(self) -> AsyncIterator[Sequence[ModelDelta]]:
        self._first_deadline = self._loop.time() + self._limits.first_token
        try:
            async with asyncio.timeout_at(self._first_deadline):
                response, wire = await self._model.ask(self._request)
        except TimeoutError:
            raise UpstreamTimeout("timeout_first") from None
        self._response = response
        self._reader = (ResponsesReader if wire == "responses" else AnswerReader)(
            provider=self._model.provider,
            max_answer_bytes=self._limits.answer_bytes,
            max_line_bytes=self._limits.line_bytes,
        )
        encoding = response.headers.get("content-encoding", "identity")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if encoding.lower() != "identity":
            response.release()
            raise UpstreamProtocolError("protocol")
        if kind == "text/html":
            # The page of a gateway whose provider is gone.
            response.release()
            raise UpstreamFailed("status_5xx", is_retryable=True)
        return self

    def __aiter__(self) -> AsyncIterator[Sequence[ModelDelta]]:
        return self

    async def __anext__(self) -> Sequence[ModelDelta]:
        reader = self._reader
        if reader.failure is not None:
            raise reader.failure
        if reader.is_finished:
            raise StopAsyncIteration
        if self._start is None:
            self._start = await self._look_at_start()
            self._is_whole = self._start.lstrip(_BLANK)[:1] in (b"{", b"[")
        if self._is_whole:
            return reader.read_whole(await self._whole())
        while True:
            received, self._start = self._start or await self._more(), b""
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

    async def _look_at_start(self) -> bytes:
        """Return the first bytes that are not blank: gateways label JSON as event stream, and the other way."""
        start = b""
        while not start.lstrip(_BLANK) and len(start) < _LONGEST_BLANK_START:
            received = await self._more()
            start += received
            if not received:
                break
        return start

    async def _whole(self) -> bytes:
        assert self._start is not None
        body = bytearray(self._start)
        while len(body) <= self._limits.answer_bytes and (received := await self._more()):
            body += received
        if len(body) > self._limits.answer_bytes:
            raise UpstreamTooMuch("too_much")
        if not body:
            raise UpstreamFailed("status_5xx", is_retryable=True)
        return bytes(body)

    def _deadline(self) -> float:
        reader = self._reader
        if reader.has_reason:
            # Set once: comments that keep the connection alive do not make it later.
            if self._reason_deadline is None:
                self._reason_deadline = self._loop.time() + min(_AFTER_REASON, self._limits.idle)
            return self._reason_deadline
        self._reason_deadline = None
        if reader.has_said:
            return self._loop.time() + self._limits.idle
        return self._first_deadline

    def _give_up(self) -> None:
        assert self._response is not None
        label = "timeout_idle" if self._reader.has_said else "timeout_first"
        self._response.fail(UpstreamTimeout(label))


def first_wire(definition: OpenAIModel) -> Wire:
    """Return the wire that a model is asked on until its provider says otherwise."""
    if definition.wire != "auto":
        return definition.wire
    url = URL(definition.base_url)
    host = url.host or ""
    is_openai = host == "api.openai.com" or host.endswith(".api.openai.com")
    # Only Azure's v1 API is the same as OpenAI's:
    # https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle
    is_azure = host.endswith(_AZURE_HOSTS) and url.path.rstrip("/").endswith("/openai/v1")
    return "responses" if is_openai or is_azure else "chat"


def _other_wire(wire: Wire, status: int, error: bytes) -> Wire | None:
    """Return the wire to try instead, None if the answer does not ask for another."""
    if wire == "responses":
        is_missing = status == 405 or (status == 404 and error_code(error).lower() not in _NO_MODEL)
        return "chat" if is_missing else None
    return "responses" if status == 400 and "/v1/responses" in error_message(error) else None


def endpoint_of(definition: OpenAIModel, *path: str, method: str = "POST") -> Endpoint:
    """Return where something of a model's provider is asked for; a query behind the base stays.

    Raises:
        ConfigurationError: The URL, the key or a header cannot be used.
    """
    if definition.auth == "entra" and not can_sign_in():
        raise ConfigurationError(f"model {definition.model!r}: auth: entra {NO_SIGN_IN}")
    try:
        base = URL(definition.base_url)
        url = base.joinpath(*path).with_query(base.query)
        return Endpoint.at(url, headers_of(definition), method, needs_sign_in=definition.auth == "entra")
    except ValueError:
        raise ConfigurationError(
            f"model {definition.model!r}: its URL, or the name of a header, cannot be used"
        ) from None


def _accepted(response: Response, error_body: bytes) -> Response:
    if response.status >= 300:
        raise refusal(response.status, error_body, response.headers)
    return response
