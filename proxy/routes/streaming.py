"""Write a turn to a client, as a stream of frames or as one JSON object at the end.

A stream sends its headers with the first output of an agent, so an earlier failure has its own HTTP status. If there is
no output within the keep-alive interval, it sends the headers with a comment, which resets read timeouts of the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Protocol

from msgspec import Struct
from starlette.types import Message, Send

from proxy.events import (
    CLOSING,
    ContextCompacted,
    Entry,
    Failed,
    ModelCalled,
    ParametersIgnored,
    Started,
)
from proxy.routes.client_connection import BODY, ClientConnection, ClientMonitor, StreamTimeouts
from proxy.routes.error_response import answer_of
from proxy.routes.server_extensions import BODY_WRITER, START_WITH_BODY, BodyWriter
from proxy.turns.live import LiveTurn
from proxy.turns.log_reader import OpenTextRelay, Take
from proxy.turns.text_relay import TextRelay
from proxy.wire.chat.response_models import encode
from proxy.wire.chat.stream import ChunkEncoder
from proxy.wire.errors import ErrorResponse, error_response
from proxy.wire.events import sse

Headers = list[tuple[bytes, bytes]]
OnDisconnect = Callable[[], None]
"""Called when the client has not received the whole response, and never will."""

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
JSON_HEADERS: Headers = [(b"content-type", b"application/json")]


class Framing(Struct, frozen=True):
    """The format of a stream: headers, keep-alive frame, and when frames are sent."""

    headers: Headers
    ping: bytes
    """The keep-alive frame; if empty, none is sent."""
    separator: bytes = b""
    """The end of a frame. Each frame is a separate HTTP chunk; without a separator, all available entries are one."""
    starts_immediately: bool = False
    """Send the headers before the first output, so failures are reported in the stream, not as a status."""


_PART_BYTES = 256 * 1024
"""Parts of a JSON response. The connection buffers one of them."""
_BURST_BYTES = 4000
_BURST_PAUSE = 0.002
"""Seconds between frames after ``_BURST_BYTES``, for clients that take each read for whole frames."""
_event_of = attrgetter("event")
IGNORED_HEADER = b"x-ignored-parameters"

SSE = Framing(STREAM_HEADERS, sse.PING)
SSE_WITH_IDS = Framing(STREAM_HEADERS, sse.PING_BETWEEN_IDS)


class Encoder(Protocol):
    """Encodes entries as the frames of a stream."""

    def encode(self, entry: Entry) -> bytes:
        """Return the complete frames of one entry; empty for an entry that this format does not report."""
        ...


class Builder(Protocol):
    """Builds one response from the entries of a turn."""

    def add(self, entry: Entry) -> None:
        """Add the next entry."""
        ...

    def answer(self) -> object:
        """Return the response to encode as JSON, or the ``Failed`` event. Call it after the closing event."""
        ...

    def clear(self) -> None:
        """Drop the content of the entries: the client may take minutes to read the encoded response."""
        ...


async def stream(
    live: LiveTurn,
    encoder: Encoder,
    headers: Headers,
    connection: ClientConnection,
    timeouts: StreamTimeouts,
    *,
    is_resumed: bool = False,
    to_problem: Callable[[Failed], ErrorResponse] = error_response,
    parameters: Mapping[str, str] = {},
    framing: Framing = SSE,
    left: OnDisconnect,
) -> None:
    """Write the turn as a stream until its end; call ``left`` if the client disconnected before.

    If the turn fails before any output, the response is the error of ``to_problem`` with its own status, unless
    ``is_resumed``: an earlier response had the headers. ``parameters`` are names that the API has for parameters of
    chat completions.
    """
    is_complete = False
    try:
        send, extensions = connection.send, connection.scope.get("extensions", {})
        with live.reader() as reader, ClientMonitor(reader.wake, connection, timeouts) as monitor:
            disconnect = monitor.disconnect
            entries = reader.logged()
            # Up to the first output of an agent, or the end of the keep-alive interval.
            while not (entries and framing.starts_immediately) and _are_preface(entries):
                if disconnect.has_happened or monitor.is_quiet():
                    break
                entries = [*entries, *await reader.next()]
            if disconnect.has_happened:
                return
            failure = entries[-1].event if entries else None
            has_status = not (is_resumed or framing.starts_immediately)
            if type(failure) is Failed and has_status and _are_preface(entries[:-1]):
                await answer_of(to_problem(failure), headers)(connection.scope, connection.receive, send)
                is_complete = True
                return
            headers = with_ignored(headers, entries, parameters)
            body = b"".join(map(encoder.encode, entries))
            head: Message = {
                "type": "http.response.start",
                "status": 200,
                "headers": headers + framing.headers,
            }
            start: Message | None = head
            if framing.separator or not body or START_WITH_BODY not in extensions:
                await send(head)
                start = None
            # The stream may take minutes.
            del headers, head
            writer = None if framing.separator else extensions.get(BODY_WRITER)
            take, open_relay = (None, None) if writer is None else _direct_writer(encoder, writer, monitor)
            while True:
                is_last = bool(entries) and type(entries[-1].event) in CLOSING
                if framing.separator:
                    *before, body = _frames(body, framing.separator)
                    await _send_apart(before, monitor, send)
                if body or is_last:
                    await monitor.send(send, body, is_last=is_last, start=start)
                    start = None
                elif monitor.is_quiet() and framing.ping:
                    await monitor.send(send, framing.ping)
                # A disconnect during a send does not wake the reader, so check before waiting.
                if is_last or disconnect.has_happened:
                    is_complete = not disconnect.has_happened
                    return
                # Not held during the wait.
                body, entries = b"", ()
                entries = await reader.next(take, open_relay)
                if monitor.is_disconnected():
                    return
                body = b"".join(map(encoder.encode, entries))
    finally:
        if not is_complete:
            left()


class _DirectWriter:
    """Writes entries and text in the task of the turn.

    An object with two methods and not two functions: these would hold a cell for each variable, 0.6 KB for a stream.
    """

    __slots__ = ("_encode", "_encoder", "_loop", "_monitor", "_writer")

    def __init__(self, encoder: Encoder, writer: BodyWriter, monitor: ClientMonitor) -> None:
        self._encoder = encoder
        of_encoder: Callable[[Sequence[Entry]], bytes] | None = getattr(encoder, "encode_batch", None)
        self._encode = of_encoder or partial(_encoded, encoder)
        self._writer = writer
        self._monitor = monitor
        self._loop = asyncio.get_running_loop()

    def take(self, entries: Sequence[Entry]) -> bool:
        """Write entries, or return False if the client does not read."""
        writer = self._writer
        if not writer.is_ready:
            return False
        if body := self._encode(entries):
            writer.write(body)
            self._monitor.quiet_since = self._loop.time()
        return True

    def open_relay(self, is_reader_gone: Callable[[], bool]) -> TextRelay | None:
        """Return a relay for text, of an encoder of chunks; None if there can be none now."""
        encoder, writer, monitor = self._encoder, self._writer, self._monitor
        assert isinstance(encoder, ChunkEncoder)
        frame = encoder.text_frame
        if frame is None or not writer.is_ready:
            return None

        def record(texts: Sequence[str], times: Sequence[float]) -> None:
            encoder.skip(texts)
            monitor.quiet_since, monitor.relay = times[-1], None

        start, end = frame
        relay = monitor.relay = TextRelay(writer.text_writer(start, end), end + start, is_reader_gone)
        relay.add_record(record)
        return relay


def _direct_writer(
    encoder: Encoder, writer: BodyWriter, monitor: ClientMonitor
) -> tuple[Take, OpenTextRelay | None]:
    """Return the functions for the reader of the log; None for what the format does not support."""
    direct = _DirectWriter(encoder, writer, monitor)
    return direct.take, direct.open_relay if isinstance(encoder, ChunkEncoder) else None


def _encoded(encoder: Encoder, entries: Sequence[Entry]) -> bytes:
    """Return the frames of entries that were logged together."""
    return b"".join(map(encoder.encode, entries))


async def _send_apart(frames: Iterable[bytes], monitor: ClientMonitor, send: Send) -> None:
    """Send the frames one by one, with pauses in long bursts, which one read of the client would cut at any byte."""
    sent = 0
    for frame in frames:
        await monitor.send(send, frame)
        sent += len(frame)
        if sent >= _BURST_BYTES:
            sent = 0
            await asyncio.sleep(_BURST_PAUSE)


def _frames(body: bytes, separator: bytes) -> list[bytes]:
    """Return the frames of ``body``, each with its separator; one empty frame if there is none."""
    return [frame + separator for frame in body.split(separator)[:-1]] or [b""]


async def answer(
    live: LiveTurn,
    builder: Builder,
    headers: Headers,
    connection: ClientConnection,
    timeouts: StreamTimeouts,
    *,
    to_problem: Callable[[Failed], ErrorResponse] = error_response,
    parameters: Mapping[str, str] = {},
    left: OnDisconnect,
) -> None:
    """Write the turn as one JSON object at its end, or as the error of ``to_problem``.

    Calls ``left`` if the client disconnected before the end.
    """
    is_complete = False
    try:
        with live.reader() as reader, connection.disconnect(reader.wake) as disconnect:
            entries: Sequence[Entry] = ()
            while not (entries and type(entries[-1].event) in CLOSING):
                # Before the wait too: the client can have left while the turn was begun.
                if disconnect.has_happened:
                    return
                entries = await reader.next(is_patient=True)
                for entry in entries:
                    builder.add(entry)
                headers = with_ignored(headers, entries, parameters)
        if disconnect.has_happened:
            return
        result = builder.answer()
        if type(result) is Failed:
            await answer_of(to_problem(result), headers)(
                connection.scope, connection.receive, connection.send
            )
            is_complete = True
            return
        body = encode(result)
        length = (b"content-length", b"%d" % len(body))
        start = {"type": "http.response.start", "status": 200, "headers": [*headers, *JSON_HEADERS, length]}
        send = connection.send
        if len(body) > _PART_BYTES:
            del result
            builder.clear()
            await send(start)
            with live.count(len(body)):
                is_complete = await _send_parts(body, connection, timeouts)
            return
        if START_WITH_BODY in connection.scope.get("extensions", ()):
            start["body"] = body
            await send(start)
        else:
            await send(start)
            await send({**BODY, "body": body})
        is_complete = not disconnect.has_happened
    finally:
        if not is_complete:
            left()


async def _send_parts(body: bytes, connection: ClientConnection, timeouts: StreamTimeouts) -> bool:
    """Send a body as the client reads it; return False if the client disconnected before the end."""
    with ClientMonitor(lambda: None, connection, timeouts) as monitor:
        for start in range(0, len(body), _PART_BYTES):
            end = start + _PART_BYTES
            await monitor.send(connection.send, body[start:end], is_last=end >= len(body))
            if monitor.is_disconnected() and end < len(body):
                return False
    return True


_PREFACE = frozenset((Started, ParametersIgnored, ContextCompacted, ModelCalled))


def _are_preface(entries: Iterable[Entry]) -> bool:
    """Whether the entries have no output, so that a failure after them can still have its own HTTP status."""
    return _PREFACE.issuperset(map(type, map(_event_of, entries)))


def with_ignored(headers: Headers, entries: Iterable[Entry], parameters: Mapping[str, str]) -> Headers:
    """Add to the headers the parameters that the provider rejected in this turn.

    For a stream, only those of the calls before its first byte.
    """
    # Most turns have none: one pass over the events finds it out.
    if ParametersIgnored not in map(type, map(_event_of, entries)):
        return headers
    events = [entry.event for entry in entries if isinstance(entry.event, ParametersIgnored)]
    names = [parameters.get(name, name) for event in events for name in event.names]
    if not names:
        return headers
    listed = [value.decode("latin-1") for name, value in headers if name == IGNORED_HEADER]
    named = dict.fromkeys([*", ".join(listed).split(", "), *names] if listed else names)
    value = ", ".join(named).encode("latin-1", "replace")
    return [*(header for header in headers if header[0] != IGNORED_HEADER), (IGNORED_HEADER, value)]
