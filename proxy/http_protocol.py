"""HTTP/1.1 connections: uvicorn's protocol with limits, strict heads, and responses that reach their client.

A request that is rejected here reaches no route and no middleware. Its response has the error envelope all the same.

- The size of a head is limited, and so is the time until it is complete.
- Ambiguous heads are rejected (``http_head``), absolute-form targets are converted, and trailers are ignored.
- A response that does not wait for the end of the request's body reaches its client (``http_responses``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools

from proxy.http_exchange import HttpExchange
from proxy.http_head import (
    CHECKED_HEADERS,
    MAX_HEAD_BYTES,
    RawHeaders,
    body_headers,
    head_bytes,
    head_problem,
    head_too_large,
    read_target,
)
from proxy.http_limits import LimitedHttp, bad_request
from proxy.known_head import KnownHead, known_head

_ASGI = {"version": "3.0", "spec_version": "2.3"}
"""The same for all requests; applications only read it."""
_MAX_PIPELINED = 8
"""Requests that wait for a running one. With more, nothing is read, and only a write shows that the client left."""
_MAX_WAITING = 256
"""Requests that wait, however many one read has: it can have ten thousand, and each takes 1.4 KB."""


class HeadRejected(Exception):
    """Makes the parser stop at the end of a head."""


class BoundedHttp(LimitedHttp):
    """One connection of a client."""

    __slots__ = (
        "_announced_bytes",
        "_body_left",
        "_checked_headers",
        "_data_bytes",
        "_framing_bytes",
        "_has_body_data",
        "_heads_in_data",
        "_is_repeating_head",
        "_is_upgrade",
        "_known",
        "_most_head_bytes",
    )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start a connection."""
        super().connection_made(transport)
        self._heads_in_data = 0
        self._has_body_data = False
        self._data_bytes = 0
        self._most_head_bytes = 0
        """An upper bound of the bytes of the head so far."""
        self._checked_headers: RawHeaders = []
        self._framing_bytes = 0
        self._is_repeating_head = False
        self._is_upgrade = False
        self._announced_bytes: int | None = None
        self._known: KnownHead | None = None
        self._body_left = 0
        """The rest of a body whose head was repeated, so that the parser does not know of it."""

    # --- input ---

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and check the limits of heads and trailers."""
        if self.is_lingering:
            self.keep_lingering()
            return
        if self._is_refused:
            return
        if self._body_left:
            data = self._add_rest(data)
        elif (
            self._known is not None and self._is_between_requests and self._begin_repeated(self._known, data)
        ):
            return
        if data:
            self._parse(data)

    def _begin_repeated(self, known: KnownHead, data: bytes) -> bool:
        """Serve a request that repeats a head, if that is all that has arrived; return whether it was."""
        before = self._newest
        if before is not None and not before.response_complete:
            # The parser gives pipelined requests in parts, which pause the reading of large bodies.
            return False
        found = known.read(data)
        if found is None:
            return False
        digits, body = found
        length = int(digits)
        left = length - len(body)
        if left < 0:
            return False
        scope = known.scope_of(digits, self.app_state)
        if left:
            self._body_left, self._is_between_requests = left, False
            exchange = HttpExchange.of(self, scope, announced_bytes=length, keep_alive=True)
            if body:
                exchange.add_body(body)
        else:
            exchange = HttpExchange.of(self, scope, announced_bytes=length, keep_alive=True, body=body)
        self._newest = exchange
        self.cycle = exchange  # type: ignore[assignment]
        self.start(exchange, scope)
        return True

    def _add_rest(self, data: bytes) -> bytes:
        """Add data to the body of a repeated head; return what follows it."""
        exchange, left = self._newest, self._body_left
        assert exchange is not None
        if not exchange.response_complete:
            exchange.add_body(data[:left])
        self._body_left = max(left - len(data), 0)
        if not self._body_left:
            self._end_body()
        return data[left:]

    def _parse(self, data: bytes) -> None:
        began_at_head = self._is_between_requests or not self._most_head_bytes
        started_in_head = self._is_in_head or self._is_between_requests
        is_first = self._newest is None
        self._heads_in_data, self._has_body_data = 0, False
        self._data_bytes = len(data)
        self._most_head_bytes += self._data_bytes
        self._feed(data)
        if self._is_in_head:
            # A head that began behind another request has an unknown part of the data; the next data count.
            if started_in_head and self._heads_in_data <= 1:
                self._head_bytes += len(data)
            self._check_head_progress()
            return
        self._stop_deadline()
        if began_at_head and self._heads_in_data == 1 and not is_first:
            # From the second request on: many connections have only one, which may wait for minutes.
            self._known = self._known_head(data) or self._known
        if self._is_between_requests:
            # Up to 64 KiB, not held during the response and while the connection is idle: the application has them as
            # long as it needs them.
            self.url = b""
            self.headers = self._checked_headers = []
            self.scope = None  # type: ignore[assignment]
        # Chunk extensions and trailers.
        self._framing_bytes = 0 if self._has_body_data else self._framing_bytes + len(data)
        if self._framing_bytes > MAX_HEAD_BYTES and not self._is_between_requests:
            self._refuse(head_too_large())

    def _known_head(self, data: bytes) -> KnownHead | None:
        """Return the head of the newest request, with which ``data`` begin."""
        exchange = self._newest
        if exchange is None or not exchange.keep_alive or self._is_refused or self._is_upgrade:
            return None
        return known_head(data, self.scope)

    def _feed(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and not self._is_refused:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserError:
                self.send_400_response("The request is not valid HTTP.")
            except httptools.HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    self._upgrade()
                    return
                rest = rest[upgrade.args[0] :]
                self._continue_without_upgrade()
            else:
                return

    def _upgrade(self) -> None:
        exchange = self._newest
        if exchange is not None and not exchange.response_complete:
            self._refuse(bad_request("A WebSocket handshake cannot be pipelined."))
            return
        self._unset_keepalive_if_required()
        self.handle_websocket_upgrade()

    def _continue_without_upgrade(self) -> None:
        """Answer a request in HTTP/1.1 although its client offers another protocol (RFC 9110, 7.8).

        java.net.http offers HTTP/2 with every request. The parser stops at the end of such a head, so the body and the
        next request need a new parser. It starts with a head that announces the same body.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        if body := body_headers(self.headers):
            fields = b"".join(b"%b: %b\r\n" % header for header in body)
            self._is_repeating_head = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % fields)
            self._is_repeating_head = False

    def _check_head_progress(self) -> None:
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(head_too_large())
        elif self._deadline is None and not self._is_refused:
            self._deadline = self.loop.call_later(self.head_timeout, self._time_out)

    # --- callbacks of the parser ---

    def on_message_begin(self) -> None:
        """Start a request."""
        if self._is_repeating_head:
            return
        self._is_in_head = True
        self._is_between_requests = False
        self._heads_in_data += 1
        self._head_bytes = self._framing_bytes = 0
        self._most_head_bytes = self._data_bytes
        self.url = b""
        self.headers = []
        self._checked_headers = []
        self.expect_100_continue = False
        self._announced_bytes = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; ignore trailers, which nothing here reads (RFC 9110, 6.5.1).

        Otherwise a client could add headers after a reverse proxy has checked and removed them.
        """
        if not self._is_in_head:
            return
        header = name.lower(), value
        self.headers.append(header)
        if header[0] in CHECKED_HEADERS:
            self._checked_headers.append(header)

    def on_headers_complete(self) -> None:
        """Check a head, and serve its request.

        Raises:
            HeadRejected: The parser then reports an error, which becomes the response.
        """
        if self._is_repeating_head:
            return
        parser = self.parser
        method, version = parser.get_method(), parser.get_http_version()
        target = read_target(self.url, method)
        self._problem = head_problem(version, method, self._checked_headers, target)
        if self._most_head_bytes > MAX_HEAD_BYTES and head_bytes(self.url, self.headers) > MAX_HEAD_BYTES:
            self._problem = head_too_large()
        if len(self.pipeline) >= _MAX_WAITING:
            self._problem = bad_request("Too many pipelined requests. Send the next one after the response.")
        if self._problem is not None or target is None:
            raise HeadRejected
        self._is_in_head = False
        for name, value in self._checked_headers:
            if name == b"content-length":
                # llhttp has parsed it.
                self._announced_bytes = int(value)
            elif name == b"expect":
                self.expect_100_continue = value.lower() == b"100-continue"
        self.url, authority = target
        if authority is not None:
            # It replaces Host (RFC 9112, 3.2.2).
            self.headers = [header for header in self.headers if header[0] != b"host"]
            self.headers.append((b"host", authority))
        parsed = httptools.parse_url(self.url)
        raw_path = parsed.path
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        if root := self.root_path:
            path, raw_path = root + path, root.encode("ascii") + raw_path
        query = parsed.query or b""
        scope: Any = self._scope_of(method.decode("ascii"), version, path, raw_path, query, self.headers)
        self.scope = scope
        self._is_upgrade = parser.should_upgrade() and self._should_upgrade()
        if not self._is_upgrade:
            # HTTP/1.0 has no interim responses: the expectation is ignored (RFC 9110, 10.1.1).
            is_1_0 = version == "1.0"
            exchange = HttpExchange.of(
                self,
                scope,
                announced_bytes=self._announced_bytes,
                keep_alive=not is_1_0 and parser.should_keep_alive(),
                expects_continue=not is_1_0 and self.expect_100_continue,
            )
            self._begin(exchange, scope)

    def _scope_of(
        self, method: str, version: str, path: str, raw_path: bytes, query: bytes, headers: RawHeaders
    ) -> dict[str, Any]:
        # ASGI specification, "HTTP connection scope".
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "root_path": self.root_path,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            "state": self.app_state.copy(),
        }

    def _begin(self, exchange: HttpExchange, scope: dict[str, Any]) -> None:
        before, self._newest = self._newest, exchange
        # For ``HttpToolsProtocol.shutdown``, which uses two attributes.
        self.cycle = exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            self.start(exchange, scope)
        else:
            self.pipeline = self.pipeline or deque()
            self.pipeline.appendleft((exchange, scope))
            if len(self.pipeline) >= _MAX_PIPELINED:
                self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._has_body_data = True
        exchange = self._newest
        if exchange is not None and not (self._is_upgrade or exchange.response_complete):
            exchange.add_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if not self._is_upgrade and self.parser.should_upgrade() and body_headers(self.headers):
            # The parser stops before the body.
            return
        self._end_body()

    def _end_body(self) -> None:
        self._is_between_requests = True
        self._stop_body_deadline()
        exchange = self._newest
        if exchange is not None and not (self._is_upgrade or exchange.response_complete):
            exchange.end_body()


def bounded_http(*, head_timeout: float, stall_timeout: float) -> type[BoundedHttp]:
    """Return the protocol with these limits, in seconds."""
    limits = {"head_timeout": head_timeout, "stall_timeout": stall_timeout}
    return type("BoundedHttp", (BoundedHttp,), limits)
