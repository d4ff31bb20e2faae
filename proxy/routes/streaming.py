"""A turn written to a client: as a stream of frames, or as one answer at its end.

Headers go out with the first thing that an agent does, so that a failure before it has its real status; when that
takes long, they go out with a comment, which keeps connections and read time-outs alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Receive, Scope, Send

from proxy.events import Entry, Failed, ModelCalled, ParametersIgnored, Started, is_closing
from proxy.routes.error_handlers import answer_of
from proxy.routes.request_body import ClientDisconnected
from proxy.turns.live import EventLogReader, LiveTurn
from proxy.wire.chat.response_models import encode
from proxy.wire.errors import ErrorResponse, error_response
from proxy.wire.events import sse

Headers = list[tuple[bytes, bytes]]

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
JSON_HEADERS: Headers = [(b"content-type", b"application/json")]


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream stands on the wire."""

    headers: Headers
    ping: bytes
    """What is sent when there is no news; nothing when empty."""
    is_each_apart: bool = False
    """Each entry's frames go out by themselves, as one HTTP chunk, and not with others that are there already."""
    is_prompt: bool = False
    """It begins at once, so that no failure has a status of its own."""


IGNORED_HEADER = b"x-ignored-parameters"

SSE = Framing(STREAM_HEADERS, sse.PING)


@dataclass(frozen=True, slots=True)
class Connection:
    """One request's end of the server."""

    scope: Scope
    receive: Receive
    send: Send


class Encoder(Protocol):
    """Encodes entries as the frames of a stream."""

    def encode(self, entry: Entry) -> bytes:
        """Return the frames of one entry, whole; often none."""
        ...


class Builder(Protocol):
    """Gathers entries into one answer."""

    def take(self, entry: Entry) -> None:
        """Take the next entry."""
        ...

    def answer(self) -> object:
        """Return what is to be sent as JSON, or a ``Failed``; only after the closing event."""
        ...


class ClientMonitor:
    """What can happen to a reader besides news of the turn: the client leaves, or time passes.

    ``wake`` lets whatever the reader waits for return, so that it can see which.
    """

    def __init__(self, wake: Callable[[], None], receive: Receive, patience: StreamTimeouts) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._interval = patience.keep_alive
        self._stall = patience.stall
        self._task = asyncio.current_task()
        self._quiet_since = self._loop.time()
        self._sending_since: float | None = None
        self._timer = self._loop.call_later(self._interval, self._tick)
        self._left = self._loop.create_task(wait_for_disconnect(receive), name="client")
        self._left.add_done_callback(lambda _: wake())
        self.is_stalled = False

    def has_left(self) -> bool:
        """Whether the client is gone."""
        return self._left.done()

    def is_quiet(self) -> bool:
        """Whether nothing was sent for an interval."""
        # A timer may fire a little early.
        return self._loop.time() - self._quiet_since >= self._interval * 0.99

    async def send(self, send: Send, body: bytes, *, is_last: bool = False) -> None:
        """Send, noticing a client that does not take it."""
        self._sending_since = self._quiet_since = self._loop.time()
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})
        self._sending_since = None

    def _tick(self) -> None:
        now = self._loop.time()
        if self._sending_since is not None and now - self._sending_since > self._stall:
            self.is_stalled = True
            if self._task is not None:
                self._task.cancel()
            return
        due = self._quiet_since + self._interval
        if now >= due:
            self._wake()
            due = now + self._interval
        if self._sending_since is not None:
            due = min(due, self._sending_since + self._stall + 0.01)
        self._timer = self._loop.call_later(max(due - now, 0.01), self._tick)

    async def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        self._left.cancel()
        await asyncio.gather(self._left, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, slots=True)
class StreamTimeouts:
    """How long to wait, in seconds: for news before a comment is sent, and for a client to take what it is sent."""

    keep_alive: float = 15.0
    stall: float = 60.0


async def stream(
    live: LiveTurn,
    encoder: Encoder,
    headers: Headers,
    connection: Connection,
    patience: StreamTimeouts,
    *,
    is_resumed: bool = False,
    told: Callable[[Failed], ErrorResponse] = error_response,
    parameters: Mapping[str, str] | None = None,
    framing: Framing = SSE,
) -> bool:
    """Write the turn as a stream until its end; False when the client left before.

    A turn that fails before its agents did anything is answered with the error's own status, as ``told`` words it,
    unless the reader ``is_resumed`` and had its headers already. ``parameters`` are names that this API has for
    parameters of chat completions.
    """
    send = connection.send
    async with _watched(live, connection, patience) as (follower, watch):
        entries = await (follower.next() if framing.is_prompt else _opening(follower, watch))
        if watch.has_left():
            return False
        failure = entries[-1].event if entries else None
        has_status = not (is_resumed or framing.is_prompt)
        if isinstance(failure, Failed) and has_status and all(map(_is_preface, entries[:-1])):
            await answer_of(told(failure), headers)(connection.scope, connection.receive, send)
            return True
        headers = with_ignored(headers, entries, parameters or {})
        await send({"type": "http.response.start", "status": 200, "headers": headers + framing.headers})
        while True:
            is_last = bool(entries) and is_closing(entries[-1].event)
            if framing.is_each_apart:
                *before, body = [frames for frames in map(encoder.encode, entries) if frames] or [b""]
                for frames in before:
                    await watch.send(send, frames)
            else:
                body = b"".join(map(encoder.encode, entries))
            if body or is_last:
                await watch.send(send, body, is_last=is_last)
            elif watch.is_quiet() and framing.ping:
                await watch.send(send, framing.ping)
            if is_last:
                return True
            # Nothing wakes a reader for a departure that was noticed while it sent.
            entries = () if watch.has_left() else await follower.next()
            if watch.has_left():
                return False


async def answer(
    live: LiveTurn,
    builder: Builder,
    headers: Headers,
    connection: Connection,
    patience: StreamTimeouts,
    *,
    told: Callable[[Failed], ErrorResponse] = error_response,
    parameters: Mapping[str, str] | None = None,
) -> bool:
    """Write the turn as one JSON object at its end, or as the error that ``told`` makes of it.

    Returns False when the client left before.
    """
    async with _watched(live, connection, patience) as (follower, watch):
        while not live.is_finished or follower.position < live.length:
            for entry in await follower.next():
                builder.take(entry)
                if type(entry.event) is ParametersIgnored:
                    headers = with_ignored(headers, (entry,), parameters or {})
            if watch.has_left():
                return False
    result = builder.answer()
    if isinstance(result, Failed):
        await answer_of(told(result), headers)(connection.scope, connection.receive, connection.send)
        return True
    body = encode(result)
    length = (b"content-length", b"%d" % len(body))
    await connection.send(
        {"type": "http.response.start", "status": 200, "headers": [*headers, *JSON_HEADERS, length]}
    )
    await connection.send({"type": "http.response.body", "body": body})
    return True


@asynccontextmanager
async def _watched(
    live: LiveTurn, connection: Connection, patience: StreamTimeouts
) -> AsyncIterator[tuple[EventLogReader, ClientMonitor]]:
    """Follow a turn, and the client with it."""
    with live.reader() as follower:
        async with monitor_client(follower.wake, connection, patience) as watch:
            yield follower, watch


@asynccontextmanager
async def monitor_client(
    wake: Callable[[], None], connection: Connection, patience: StreamTimeouts
) -> AsyncIterator[ClientMonitor]:
    """Monitor the client; raise ``ClientDisconnected`` if it reads nothing for the stall timeout."""
    watch = ClientMonitor(wake, connection.receive, patience)
    try:
        yield watch
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not watch.is_stalled or task is None:
            raise
        task.uncancel()
        raise ClientDisconnected from None
    finally:
        await watch.close()


async def _opening(follower: EventLogReader, watch: ClientMonitor) -> Sequence[Entry]:
    """Return the first entries: as soon as an agent did something, or when that takes too long."""
    entries: list[Entry] = []
    while all(map(_is_preface, entries)) and not watch.is_quiet() and not watch.has_left():
        entries.extend(await follower.next())
    return entries


def _is_preface(entry: Entry) -> bool:
    """Whether a client has nothing from this yet, so that the turn may still fail with a status of its own."""
    return isinstance(entry.event, Started | ParametersIgnored | ModelCalled)


def with_ignored(headers: Headers, entries: Iterable[Entry], parameters: Mapping[str, str]) -> Headers:
    """Return the headers with the parameters that the provider was found to reject in this turn.

    A stream has those of the calls before its first byte.
    """
    events = [entry.event for entry in entries if isinstance(entry.event, ParametersIgnored)]
    names = [parameters.get(name, name) for event in events for name in event.names]
    if not names:
        return headers
    listed = [value.decode("latin-1") for name, value in headers if name == IGNORED_HEADER]
    named = dict.fromkeys([*", ".join(listed).split(", "), *names] if listed else names)
    value = ", ".join(named).encode("latin-1", "replace")
    return [*(header for header in headers if header[0] != IGNORED_HEADER), (IGNORED_HEADER, value)]
