"""The event feed over HTTP: a stream of server-sent events with one turn after another.

Its readers are observers: they cause no backpressure, and a disconnect cancels nothing. A stream that ends is complete
up to its last frame; a client continues with the id of that frame. An API key that is revoked or expires ends the
stream with an ``error`` event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from proxy.errors import Unauthorized
from proxy.events import Entry, is_closing
from proxy.routes.client_connection import ClientConnection, ClientMonitor
from proxy.routes.dependencies import Services, access_of
from proxy.routes.request_body import ClientDisconnected, authorization_of
from proxy.routes.streaming import STREAM_HEADERS, Headers
from proxy.service.remote_turns import Listener
from proxy.service.turns import TurnHandle
from proxy.turns.log_reader import EventLogReader, without_handover
from proxy.wire.events import sse
from proxy.wire.events.feed import Feed, FeedEncoder, error_frame

ENTRIES_PER_WRITE = 200
"""Entries of a stored turn that are encoded and sent together."""


class FeedStream:
    """The stream of one reader, created by ``feed_stream``.

    All methods raise ``ClientDisconnected`` after the reader has disconnected, and ``Unauthorized`` after its API key
    has become invalid.
    """

    def __init__(self, services: Services, connection: ClientConnection, types: Collection[str]) -> None:
        self._hides_details = not services.settings.handoff_details
        self._send = connection.send
        self._types = types
        self._waiting: EventLogReader | Listener | None = None
        self._watch: ClientMonitor
        self._unauthorized: Unauthorized | None = None

    async def start(self, watch: ClientMonitor, headers: Headers) -> None:
        """Send the head of the response. Later errors cannot change its status."""
        self._watch = watch
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [*headers, *STREAM_HEADERS]}
        )

    async def end(self, error: Unauthorized | None = None) -> None:
        """Send the end of the response, after an ``error`` event if there is an error."""
        body = b"" if error is None else error_frame(error)
        await self._watch.send(self._send, body, is_last=True)

    async def write_turn(
        self, opened: TurnHandle, *, after: sse.Position = sse.START, prefix: str = ""
    ) -> None:
        """Send the frames after ``after``, until the turn ends or this process has no more events of it."""
        feed = Feed(opened.turn_id, hides_details=self._hides_details)
        encoder = FeedEncoder(feed, types=self._types, after=after, prefix=prefix)
        with opened.live.reader(is_observer=True) as follower:
            self._waiting = follower
            while True:
                self._check()
                entries = without_handover(await follower.next())
                await self._write(entries, encoder)
                if is_closing(entries[-1].event) if entries else opened.live.is_over:
                    return

    async def wait(self, listener: Listener) -> None:
        """Wait until the conversation may have a new turn, or the keep-alive interval ends."""
        self._waiting = listener
        self._check()
        await listener.wait()
        await self._keep_alive()

    def wake(self) -> None:
        """Let a waiting method return, or raise."""
        if self._waiting is not None:
            self._waiting.wake()

    def invalidate(self, error: Unauthorized) -> None:
        """End the stream with this error."""
        self._unauthorized = error
        self.wake()

    async def _write(self, entries: Sequence[Entry], encoder: FeedEncoder) -> None:
        for start in range(0, len(entries), ENTRIES_PER_WRITE):
            self._check()
            body = b"".join(map(encoder.encode, entries[start : start + ENTRIES_PER_WRITE]))
            if body:
                await self._watch.send(self._send, body)
        await self._keep_alive()

    async def _keep_alive(self) -> None:
        self._check()
        if self._watch.is_quiet():
            await self._watch.send(self._send, sse.PING_BETWEEN_IDS)

    def _check(self) -> None:
        # Before each wait: a disconnect that was noticed earlier wakes no later wait.
        if self._watch.is_disconnected():
            raise ClientDisconnected
        if self._unauthorized is not None:
            raise self._unauthorized


@asynccontextmanager
async def feed_stream(
    services: Services, connection: ClientConnection, headers: Headers, types: Collection[str]
) -> AsyncIterator[FeedStream]:
    """Respond with a stream that ends regularly with the block.

    A disconnect ends the block and is recorded for the request log. An invalid API key ends the block too, and the
    stream with an ``error`` event.
    """
    facts = connection.scope["state"]["facts"]
    authorization = authorization_of(connection.scope)
    caller = access_of(connection.scope, services).caller
    stream = FeedStream(services, connection, types)
    try:
        with ClientMonitor(stream.wake, connection, services.timeouts) as watch:
            await stream.start(watch, headers)
            try:
                with services.key_monitor.watch(authorization, caller, stream.invalidate):
                    yield stream
            except Unauthorized as error:
                facts.update(outcome="invalid_api_key")
                await stream.end(error)
            else:
                await stream.end()
    except ClientDisconnected:
        facts.update(outcome="client_disconnect")
