"""ASGI extensions of this server, in ``scope["extensions"]``. Other servers do not have them.

They replace messages whose coroutines and tasks cost more than what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

from msgspec import Struct
from starlette.types import Receive, Scope, Send

DISCONNECT = "handoff_proxy.disconnect"
"""The ``Disconnect`` of the request, which is also reported if the client reads nothing for a time."""
BODY_WRITER = "handoff_proxy.body_writer"
"""The ``BodyWriter`` of the response. Middleware that changes bodies removes it."""
REQUEST_BODY = "handoff_proxy.request_body"
"""The ``RequestBody`` of the request. Middleware that changes bodies removes it."""

START_WITH_BODY = "handoff_proxy.start_with_body"
"""The message that starts a response can have ``body`` and ``more_body`` of the next one, which it replaces.
Middleware that changes bodies removes it."""


def remove_bypassing(scope: Scope, receive: Receive, send: Send) -> None:
    """Remove the extensions that would bypass middleware between the server and this application.

    Such middleware replaces ``receive`` or ``send``, which are otherwise methods of the object of the extensions.
    """
    extensions = scope.get("extensions", {})
    # Middleware can have removed some of them itself.
    writer, reader = extensions.get(BODY_WRITER), extensions.get(REQUEST_BODY)
    if writer is None or getattr(send, "__self__", None) is not writer:
        extensions.pop(BODY_WRITER, None)
        extensions.pop(START_WITH_BODY, None)
    if reader is None or getattr(receive, "__self__", None) is not reader:
        extensions.pop(REQUEST_BODY, None)


class Disconnect(Struct, eq=False, kw_only=True):
    """Whether the client of one request has disconnected. At the end of its block, it forgets the listener."""

    has_happened: bool = False
    listener: Callable[[], None] | None = None
    """Called when it happens."""

    def happen(self) -> None:
        """Report the disconnect."""
        self.has_happened = True
        if self.listener is not None:
            self.listener()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener = None


class BodyWriter(Protocol):
    """Writes parts of a response that has started, without an ASGI message and its coroutines."""

    @property
    def is_ready(self) -> bool:
        """Whether a part can be written now: the client is connected and reads fast enough."""
        ...

    def write(self, body: bytes) -> None:
        """Write a part, which is not empty; only if ``is_ready``."""
        ...

    def text_writer(self, start: bytes, end: bytes) -> Callable[[bytes], bool]:
        """Return a function that writes a text between ``start`` and ``end`` as a part.

        It returns False without an effect if the response is not ready.
        """
        ...


class RequestBody(Protocol):
    """The body of a request."""

    announced_bytes: int | None
    """The value of ``Content-Length``; None if there is none."""

    def take_complete(self) -> bytes | None:
        """Return the body if it has arrived completely, once; otherwise None, and it has to be received."""
        ...
