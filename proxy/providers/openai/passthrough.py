"""A request that is forwarded to a provider unchanged, and its response, forwarded as it arrives.

Of the body only the model name is read, and of the response only the usage. The proxy replaces errors that are wrong
for the caller (about the proxy's API key), and those without an OpenAI error envelope.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from proxy.errors import (
    UpstreamFailed,
    UpstreamIncomplete,
    UpstreamProtocolError,
    UpstreamResponseTooLarge,
    UpstreamTimeout,
)
from proxy.messages import Usage
from proxy.providers.http.body_start import first_bytes, is_event_stream, is_json
from proxy.providers.http.connection import Response
from proxy.providers.http.pool import TRANSPORT_ERRORS, HttpSession, error_body
from proxy.providers.openai.chat_usage import clean_usage
from proxy.providers.openai.error_report import report
from proxy.providers.openai.errors import refusal
from proxy.providers.openai.request import secrets_of
from proxy.providers.openai.wires import endpoint_of
from proxy.providers.timeouts import Alarm, ModelLimits
from proxy.teamfiles.definitions import OpenAIModel

logger = logging.getLogger(__name__)

_FOR_REUSE = 0.05
"""Seconds that a read answer waits for the end of its body, so that the connection can be used again."""
_LARGEST_ENVELOPE = 2000
_TAIL_BYTES = 16 * 1024
_REPLACED = (401, 403, 407)
"""Statuses about the proxy's API key, which the error may quote; the caller's key is valid."""
_SAFE_HEADERS = ("content-type", "content-encoding", "retry-after", "retry-after-ms", "x-should-retry")
_IS_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"|^data:\s*\[DONE\]', re.MULTILINE)


class _Usage(Struct):
    usage: Any = None


class _ErrorBody(Struct):
    message: str


class _Envelope(Struct):
    error: _ErrorBody


_decode_body = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode


class PassthroughClient:
    """A model at its provider, for requests that are forwarded unchanged."""

    def __init__(
        self, definition: OpenAIModel, session: HttpSession, limits: ModelLimits, *, time_limit: float
    ) -> None:
        """``time_limit`` is for answers that come whole, in seconds; streams have those of ``limits``.

        Raises:
            ConfigurationError: The key or a header has characters that cannot be sent.
        """
        self.name = definition.model
        """The model's name at its provider."""
        self._session = session
        self._limits = limits
        self._time_limit = time_limit
        self._endpoint = endpoint_of(definition, "chat", "completions")
        self.host = self._endpoint.host
        self.secrets = secrets_of(definition)

    def ask(self, body: bytes, *, is_stream: bool) -> AbstractAsyncContextManager[PassthroughAnswer]:
        """Forward a body, a JSON object; inside the block its response can be read.

        Raises:
            UpstreamFailed: On entering the block or while reading.
        """
        return PassthroughAnswer(self, body, is_stream=is_stream)

    def body_of(self, body: bytes) -> bytes:
        """Return the body with the provider's name for the model; of keys that came twice, the last one stays."""
        keys = _decode_body(body)
        keys["model"] = msgspec.Raw(msgspec.json.encode(self.name))
        return msgspec.json.encode(keys)


class PassthroughAnswer:
    """An answer on its way. A stream is read in pieces that end where an event ends, any other answer whole."""

    def __init__(self, model: PassthroughClient, body: bytes, *, is_stream: bool) -> None:
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = []
        """Those that concern the caller."""
        self.is_stream = False
        self.upstream_request_id = ""
        self._model = model
        self._body = body
        self._limits = model._limits
        # A response that is not streamed begins when the whole answer is generated.
        self._first = self._limits.first_token if is_stream else model._time_limit
        self._idle = self._limits.idle if is_stream else model._time_limit
        self._response: Response | None = None
        self._alarm = Alarm(model._session.alarm_clock, self._give_up)
        self._whole: bytes | None = None
        self._start = b""
        """The first bytes of the body, which were read to distinguish JSON from an event stream."""
        self._tail = b""
        self._is_read = False

    @property
    def usage(self) -> Usage | None:
        """What the answer says that it used; only when it was read."""
        if self._whole is not None:
            return _usage_in(self._whole)
        lines = [line for line in self._tail.split(b"\n") if line.startswith(b"data:") and b'"usage"' in line]
        usages = (_usage_in(line[5:]) for line in reversed(lines))
        return next((usage for usage in usages if usage is not None), None)

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except UpstreamFailed as failure:
            self._log(failure.label, failure.facts)
            raise
        return self

    async def _open(self) -> None:
        model = self._model
        try:
            async with asyncio.timeout(self._first):
                response = await model._session.ask(
                    model._endpoint, model.body_of(self._body), connect=self._limits.connect
                )
        except TimeoutError:
            raise UpstreamTimeout("timeout_first") from None
        self._response = response
        self.status = response.status
        headers = response.headers
        self.upstream_request_id = headers.get("x-request-id", "")[:100]
        self.headers = [
            (name.encode(), value.encode("latin-1")) for name in _SAFE_HEADERS if (value := headers.get(name))
        ]
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status >= 300:
            self._whole = await self._refusal(response)
            return
        try:
            self._start = await first_bytes(partial(self._more, self._first))
            self.is_stream = self._is_event_stream(kind)
            if not self.is_stream:
                await self._read_whole()
        except BaseException:
            await self._leave(is_good=False)
            raise
        expected = "text/event-stream" if self.is_stream else "application/json"
        if kind != expected:
            others = [header for header in self.headers if header[0] != b"content-type"]
            self.headers = [*others, (b"content-type", expected.encode())]

    def _is_event_stream(self, kind: str) -> bool:
        """Whether the body is an event stream: its start decides, because gateways label JSON and streams wrongly.

        Raises:
            UpstreamProtocolError: It is neither.
        """
        is_encoded = any(name == b"content-encoding" and value != b"identity" for name, value in self.headers)
        if not is_encoded and kind != "text/html":
            if is_json(self._start):
                return False
            if is_event_stream(self._start):
                return True
        if kind == "text/event-stream":
            return True
        if kind == "application/json":
            return False
        raise UpstreamProtocolError("protocol")

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(is_good=kind is None and self._is_read)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body, byte for byte.

        Raises:
            UpstreamFailed: It broke off, or came to its end without an end of the answer.
        """
        if self._whole is not None:
            self._is_read = True
            yield self._whole
            return
        rest, received = b"", self._start
        while received or (received := await self._more()):
            rest += received
            received = b""
            cut = _end_of_last_event(rest)
            if cut == 0 and len(rest) <= self._limits.line_bytes:
                continue
            piece, rest = rest[: cut or None], rest[cut:] if cut else b""
            self._tail = (self._tail + piece)[-_TAIL_BYTES:]
            yield piece
        self._tail += rest
        if not _IS_FINISHED.search(self._tail):
            raise UpstreamIncomplete("incomplete")
        self._is_read = True
        if rest:
            yield rest

    async def _refusal(self, response: Response) -> bytes:
        """Return the provider's error if the caller may receive it; raise the proxy's own otherwise."""
        body = await error_body(response)
        facts = report(response.status, body, sent=self._body, secrets=self._model.secrets)
        if response.status >= 400 and response.status not in _REPLACED and _is_envelope(body):
            self._log("refused", facts)
            return body
        failure = refusal(response.status, body, response.headers)
        failure.facts = facts
        raise failure

    def _log(self, outcome: str, facts: Mapping[str, object]) -> None:
        about = {"host": self._model.host, "model": self._model.name, "outcome": outcome, **facts}
        logger.warning("model call failed", extra=about)

    async def _read_whole(self) -> None:
        body = bytearray(self._start)
        while len(body) <= self._limits.answer_bytes and (received := await self._more()):
            body += received
        if len(body) > self._limits.answer_bytes:
            raise UpstreamResponseTooLarge("too_much")
        self._whole = bytes(body)

    async def _leave(self, *, is_good: bool) -> None:
        self._alarm.stop()
        response = self._response
        assert response is not None
        try:
            if is_good and not response.is_complete:
                async with asyncio.timeout(_FOR_REUSE):
                    await response.end()
        except (TimeoutError, *TRANSPORT_ERRORS):
            pass
        finally:
            response.release()

    async def _more(self, seconds: float | None = None) -> bytes:
        assert self._response is not None
        self._alarm.set(asyncio.get_running_loop().time() + (self._idle if seconds is None else seconds))
        try:
            return await self._response.read()
        except TRANSPORT_ERRORS:
            raise UpstreamFailed("broken") from None
        finally:
            self._alarm.pause()

    def _give_up(self) -> None:
        assert self._response is not None
        self._response.fail(UpstreamTimeout("timeout_idle"))


def _end_of_last_event(data: bytes) -> int:
    """Return where the last whole event of a stream ends, 0 when none does."""
    plain, carriage = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, carriage + 4 if carriage >= 0 else 0)


def _usage_in(data: bytes) -> Usage | None:
    try:
        return clean_usage(_decode_usage(data).usage)
    except (ValueError, RecursionError):
        return None


def _is_envelope(data: bytes) -> bool:
    if len(data) > _LARGEST_ENVELOPE:
        return False
    try:
        return bool(_decode_envelope(data).error.message)
    except (ValueError, RecursionError):
        return False
