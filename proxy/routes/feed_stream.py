"""The event feed over HTTP: turns told one after the other, in one stream of server-sent events.

Its readers look on: no turn waits for them or lives for them. A stream that ends is whole up to there, and whoever
wants more comes again with the id of the last frame.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from proxy.events import Entry, is_closing
from proxy.routes.dependencies import Services
from proxy.routes.request_body import ClientLeft
from proxy.routes.streaming import STREAM_HEADERS, Connection, Headers, Patience, Watch, watched
from proxy.service.remote_turns import Listener
from proxy.service.turns import Opened
from proxy.turns.live import Follower
from proxy.wire.events import sse
from proxy.wire.events.feed import Feed, FeedEncoder

ENTRIES_AT_ONCE = 200
"""Of a turn that was kept, so many are written at a time."""


class FeedStream:
    """One reader's stream; made by ``feed_stream``. Everything raises ``ClientLeft`` as soon as the reader has."""

    def __init__(self, services: Services, connection: Connection, types: Collection[str]) -> None:
        self._exchange = services.turns
        self._hides_details = not services.settings.handoff_details
        self._send = connection.send
        self._types = types
        self._waiting: Follower | Listener | None = None
        self._watch: Watch

    async def begin(self, watch: Watch, headers: Headers) -> None:
        """Send the head of the answer: whatever comes, it is no error of this request."""
        self._watch = watch
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [*headers, *STREAM_HEADERS]}
        )

    async def end(self) -> None:
        """Send the end of the answer."""
        await self._watch.send(self._send, b"", is_last=True)

    async def tell(self, opened: Opened, *, after: sse.Position = sse.START, prefix: str = "") -> None:
        """Tell what comes behind ``after`` of a turn, until its end or until nothing more is known of it here."""
        feed = Feed(opened.turn_id, hides_details=self._hides_details)
        encoder = FeedEncoder(feed, types=self._types, after=after, prefix=prefix)
        with opened.live.follower(is_observer=True) as follower:
            self._waiting = follower
            while True:
                self._stay()
                entries = await follower.next()
                await self._write(entries, encoder)
                if is_closing(entries[-1].event) if entries else opened.live.is_over:
                    return

    async def wait(self, listener: Listener) -> None:
        """Wait for news of a conversation, or until there may be some."""
        self._waiting = listener
        self._stay()
        await listener.wait()
        await self._keep_alive()

    def wake(self) -> None:
        """Let whatever waits look around."""
        if self._waiting is not None:
            self._waiting.wake()

    async def _write(self, entries: Sequence[Entry], encoder: FeedEncoder) -> None:
        for start in range(0, len(entries), ENTRIES_AT_ONCE):
            self._stay()
            body = b"".join(map(encoder.encode, entries[start : start + ENTRIES_AT_ONCE]))
            if body:
                await self._watch.send(self._send, body)
        await self._keep_alive()

    async def _keep_alive(self) -> None:
        self._stay()
        if self._watch.is_quiet():
            await self._watch.send(self._send, sse.PING)

    def _stay(self) -> None:
        # Nothing wakes who waits for a departure that was noticed before.
        if self._watch.has_left():
            raise ClientLeft


@asynccontextmanager
async def feed_stream(
    services: Services, connection: Connection, headers: Headers, types: Collection[str]
) -> AsyncIterator[FeedStream]:
    """Answer with a stream that ends properly with the block; a reader that leaves ends the block, and is noted."""
    settings = services.settings
    patience = Patience(settings.keep_alive_interval, settings.stalled_client_timeout)
    stream = FeedStream(services, connection, types)
    try:
        async with watched(stream.wake, connection, patience) as watch:
            await stream.begin(watch, headers)
            yield stream
            await stream.end()
    except ClientLeft:
        connection.scope["state"]["facts"].update(outcome="client_disconnect")
