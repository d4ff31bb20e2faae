"""The client of a streamed or delayed response: its connection, disconnects, keep-alive intervals and stalls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from msgspec import Struct
from starlette.types import Message, Receive, Scope, Send

from proxy.routes.request_body import ClientDisconnected
from proxy.routes.server_extensions import DISCONNECT, Disconnect
from proxy.turns.text_relay import TextRelay

BODY: Message = {"type": "http.response.body"}
"""The message of a part of the body, without its contents."""


class ClientConnection(Struct, frozen=True):
    """The ASGI arguments of one request."""

    scope: Scope
    receive: Receive
    send: Send

    def disconnect(self, listener: Callable[[], None]) -> Disconnect:
        """Return the disconnect of the client for a ``with`` block, in which it calls the listener."""
        disconnect: Disconnect | None = self.scope.get("extensions", {}).get(DISCONNECT)
        if disconnect is None:
            disconnect = ReceivedDisconnect()
            disconnect.wait(self.receive)
        disconnect.listener = listener
        return disconnect


class ReceivedDisconnect(Disconnect, eq=False, kw_only=True):
    """The disconnect that a task waits for, for a server without the extension."""

    _task: asyncio.Task[None] | None = None

    def wait(self, receive: Receive) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._wait(receive), name="client")

    async def _wait(self, receive: Receive) -> None:
        await wait_for_disconnect(receive)
        self.happen()

    def __exit__(self, *_: object) -> None:
        self.listener = None
        if self._task is not None:
            # Its end is not awaited: the coroutine would cost more than the rest, and it holds nothing.
            self._task.cancel()


class StreamTimeouts(Struct, frozen=True):
    """Seconds without output until a keep-alive frame, and seconds that a client may block a send."""

    keep_alive: float = 15.0
    stall: float = 60.0


class ClientMonitor:
    """Detects client disconnects, keep-alive intervals without output, and clients that do not read, for a block.

    ``wake`` ends the wait of the log reader, so that it can check ``disconnect`` and ``is_quiet``.
    """

    relay: TextRelay | None = None
    """Has output that is later than ``quiet_since``."""
    is_stalled = False
    _sending_since: float | None = None
    _task: asyncio.Task[Any] | None = None
    """The task to cancel if the client does not read. This server aborts the connection instead."""

    def __init__(
        self, wake: Callable[[], None], connection: ClientConnection, timeouts: StreamTimeouts
    ) -> None:
        disconnect = connection.disconnect(wake)
        if type(disconnect) is ReceivedDisconnect:
            self._task = asyncio.current_task()
        self.disconnect = disconnect
        self._wake = wake
        self._loop = loop = asyncio.get_running_loop()
        self._interval = timeouts.keep_alive
        self._stall = timeouts.stall
        self.quiet_since = loop.time()
        """When the keep-alive interval began: at the last output."""
        self._timer = loop.call_later(timeouts.keep_alive, self._tick)

    def is_disconnected(self) -> bool:
        """Whether the client has disconnected."""
        return self.disconnect.has_happened

    def is_quiet(self) -> bool:
        """Whether nothing was sent for an interval."""
        # A timer may fire a little early.
        return self._loop.time() - self.quiet_since >= self._interval * 0.99

    def send(
        self, send: Send, body: bytes, *, is_last: bool = False, start: Message | None = None
    ) -> Awaitable[None]:
        """Send a part of the body. The timer cancels the task if the client does not read it in time.

        ``start`` is the message that starts the response, for servers that support it with a body, which is added.
        """
        self.quiet_since = self._loop.time()
        message: Message = {"type": "http.response.body"} if start is None else start
        message["body"], message["more_body"] = body, not is_last
        sending = send(message)
        # This server aborts a connection whose client reads nothing. For a task, one that reads slowly looks the same.
        return sending if self._task is None else self._send_in_time(sending)

    async def _send_in_time(self, sending: Awaitable[None]) -> None:
        self._sending_since = self.quiet_since
        await sending
        self._sending_since = None

    def _tick(self) -> None:
        now = self._loop.time()
        if self._sending_since is not None and now - self._sending_since > self._stall:
            self.is_stalled = True
            if self._task is not None:
                self._task.cancel()
            return
        if self.relay is not None and self.relay.times:
            self.quiet_since = self.relay.times[-1]
        due = self.quiet_since + self._interval
        if now >= due:
            self._wake()
            due = now + self._interval
        if self._sending_since is not None:
            due = min(due, self._sending_since + self._stall + 0.01)
        self._timer = self._loop.call_later(max(due - now, 0.01), self._tick)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the timer and the disconnect task.

        Raises:
            ClientDisconnected: The client read nothing for the stall timeout.
        """
        self._timer.cancel()
        self.disconnect.__exit__(kind, error, trace)
        if self.is_stalled and isinstance(error, asyncio.CancelledError) and self._task is not None:
            self._task.uncancel()
            raise ClientDisconnected from None


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def client_left(receive: Receive) -> None:
    """Wait until the client disconnects.

    Raises:
        ClientDisconnected: In any case.
    """
    await wait_for_disconnect(receive)
    raise ClientDisconnected
