"""One HTTP request and its response, as an application receives and sends them."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from proxy.errors import ShuttingDown
from proxy.http_exchange import HttpExchange, header_lines
from proxy.routes.server_extensions import (
    BODY_WRITER,
    DISCONNECT,
    REQUEST_BODY,
    START_WITH_BODY,
    remove_bypassing,
)


class FakeTransport:
    """Records what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_reading = True

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


class FakeConnection:
    """Counts the ends of responses."""

    def __init__(self) -> None:
        self.fake = FakeTransport()
        self.transport = cast("asyncio.Transport", self.fake)
        self.flow = FlowControl(self.transport)
        self.server_state = ServerState()
        self.server_state.default_headers = [(b"date", b"today")]
        self.completed = 0
        self.closed = 0

    def on_response_complete(self) -> None:
        self.completed += 1

    def close_after(self, exchange: HttpExchange) -> None:
        self.closed += 1


def exchange_of(
    connection: FakeConnection,
    *,
    method: str = "POST",
    version: str = "1.1",
    announced: int | None = None,
    expects_continue: bool = False,
) -> tuple[HttpExchange, dict[str, Any]]:
    scope: dict[str, Any] = {"type": "http", "method": method, "http_version": version}
    exchange = HttpExchange.of(
        connection,
        scope,
        announced_bytes=announced,
        keep_alive=version != "1.0",
        expects_continue=expects_continue,
    )
    return exchange, scope


def head(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


# --- the request's body ----------------------------------------------------------------------------------------


async def test_a_body_with_an_announced_length_wakes_the_application_once() -> None:
    exchange, _ = exchange_of(FakeConnection(), announced=6)
    receiving = asyncio.create_task(exchange.receive())
    await asyncio.sleep(0)

    exchange.add_body(b"abc")
    await asyncio.sleep(0)
    exchange.add_body(b"def")
    await asyncio.sleep(0)
    assert not receiving.done()
    exchange.end_body()

    assert await receiving == {"type": "http.request", "body": b"abcdef", "more_body": False}


async def test_each_part_of_a_chunked_body_wakes_the_application_which_limits_its_size() -> None:
    exchange, _ = exchange_of(FakeConnection())

    exchange.add_body(b"abc")

    assert await exchange.receive() == {"type": "http.request", "body": b"abc", "more_body": True}


async def test_a_large_body_is_read_in_parts() -> None:
    connection = FakeConnection()
    exchange, _ = exchange_of(connection, announced=200_000)

    exchange.add_body(b"a" * 70_000)
    was_reading = connection.fake.is_reading
    message = await exchange.receive()

    assert (len(message["body"]), message["more_body"]) == (70_000, True)
    receiving = asyncio.create_task(exchange.receive())
    await asyncio.sleep(0)
    assert (was_reading, connection.fake.is_reading) == (False, True)
    exchange.report_disconnect()
    assert await receiving == {"type": "http.disconnect"}


async def test_a_complete_body_can_be_taken_once() -> None:
    exchange, scope = exchange_of(FakeConnection(), announced=3)
    request_body = scope["extensions"][REQUEST_BODY]
    exchange.add_body(b"abc")
    assert request_body.take_complete() is None

    exchange.end_body()

    assert request_body.take_complete() == b"abc"
    assert request_body.take_complete() is None
    receiving = asyncio.create_task(exchange.receive())
    await asyncio.sleep(0)
    assert not receiving.done()
    exchange.report_disconnect()
    assert await receiving == {"type": "http.disconnect"}


async def test_a_disconnect_is_reported_to_its_listener() -> None:
    exchange, scope = exchange_of(FakeConnection())
    reports: list[bool] = []
    scope["extensions"][DISCONNECT].listener = lambda: reports.append(True)

    exchange.report_disconnect()

    assert reports == [True]
    await exchange.send(head())
    assert not exchange.response_started


# --- the response ----------------------------------------------------------------------------------------------


async def test_a_response_with_a_length_is_written_as_it_is() -> None:
    connection = FakeConnection()
    exchange, _ = exchange_of(connection)
    exchange.end_body()

    await exchange.send(head((b"content-length", b"5"), (b"x-a", b"b")))
    await exchange.send(body(b"hel", more=True))
    await exchange.send(body(b"lo"))

    assert connection.fake.written == (
        b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 5\r\nx-a: b\r\n\r\nhello"
    )
    assert (connection.completed, connection.closed) == (1, 0)


HEAD = b"HTTP/1.1 200 OK\r\ndate: today\r\n"


async def test_the_head_of_a_response_with_a_length_is_written_with_the_body() -> None:
    connection = FakeConnection()
    exchange, _ = exchange_of(connection)
    exchange.end_body()

    await exchange.send(head((b"content-length", b"5")))
    assert connection.fake.writes == []
    await exchange.send(body(b"hello"))

    assert connection.fake.writes == [HEAD + b"content-length: 5\r\n\r\nhello"]


async def test_the_head_of_a_stream_is_written_with_a_first_part_in_the_same_message() -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)
    exchange.end_body()
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n"

    await exchange.send({**head(), "body": b"one", "more_body": True})
    assert scope["extensions"][BODY_WRITER].is_ready
    await exchange.send(body())

    assert connection.fake.writes == [chunked + b"3\r\none\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize("method", ["POST", "HEAD"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("headers", [[(b"content-length", b"5")], []])
@pytest.mark.parametrize("more", [True, False])
async def test_a_start_with_a_body_is_written_like_two_messages(
    method: str, version: str, headers: list[tuple[bytes, bytes]], *, more: bool
) -> None:
    start, first = head(*headers), body(b"hello", more=more)
    written = []
    for messages in ([start, first], [{**first, **start}]):
        connection = FakeConnection()
        exchange, _ = exchange_of(connection, method=method, version=version)
        exchange.end_body()
        for message in messages:
            await exchange.send(message)
        written.append((connection.fake.written, connection.completed, connection.closed))

    assert written[0] == written[1]


async def test_the_head_of_a_stream_is_written_at_once() -> None:
    connection = FakeConnection()
    exchange, _ = exchange_of(connection)

    await exchange.send(head())

    assert connection.fake.written.startswith(HEAD)


async def test_the_head_of_a_response_to_head_is_written_at_once() -> None:
    connection = FakeConnection()
    exchange, _ = exchange_of(connection, method="HEAD")
    exchange.end_body()

    await exchange.send(head((b"content-length", b"5")))
    await exchange.send(body(b"hello"))

    assert connection.fake.writes == [HEAD + b"content-length: 5\r\n\r\n"]
    assert connection.completed == 1


async def test_a_response_without_a_length_is_chunked_and_can_be_written_directly() -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)
    exchange.end_body()
    writer = scope["extensions"][BODY_WRITER]
    assert not writer.is_ready

    await exchange.send(head())
    assert writer.is_ready
    writer.write(b"one")
    await exchange.send(body(b"two"))

    assert connection.fake.written == (
        b"HTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    )
    assert not writer.is_ready


async def test_texts_are_written_between_a_start_and_an_end_while_the_client_reads() -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)
    exchange.end_body()
    await exchange.send(head())
    connection.fake.writes.clear()
    write = scope["extensions"][BODY_WRITER].text_writer(b"<", b">")

    assert write(b"one")
    assert write(b"x" * 3000)
    assert connection.fake.written == b"5\r\n<one>\r\nbba\r\n<" + b"x" * 3000 + b">\r\n"

    connection.flow.write_paused = True
    assert not write(b"two")
    connection.flow.write_paused = False
    await exchange.send(body())
    assert not write(b"two")
    assert connection.fake.written.endswith(b">\r\n0\r\n\r\n")


async def test_no_text_is_written_for_a_client_that_has_left() -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)
    exchange.end_body()
    await exchange.send(head())
    writes = connection.fake.writes.copy()

    exchange.report_disconnect()

    writer = scope["extensions"][BODY_WRITER]
    assert not writer.is_ready
    assert not writer.text_writer(b"<", b">")(b"one")
    assert connection.fake.writes == writes


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)], ids=["HEAD", "204", "304"]
)
async def test_a_response_without_a_body_has_no_framing(method: str, status: int) -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection, method=method)
    exchange.end_body()

    await exchange.send(head(status=status))
    assert not scope["extensions"][BODY_WRITER].is_ready
    await exchange.send(body())

    assert connection.fake.written.endswith(b"date: today\r\n\r\n")
    assert connection.completed == 1


async def test_a_response_to_http_1_0_ends_with_the_connection() -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection, version="1.0")
    exchange.end_body()

    await exchange.send(head())
    assert not scope["extensions"][BODY_WRITER].is_ready
    await exchange.send(body(b"one", more=True))
    await exchange.send(body(b"two"))

    assert connection.fake.written == b"HTTP/1.1 200 OK\r\ndate: today\r\nconnection: close\r\n\r\nonetwo"
    assert connection.closed == 1


@pytest.mark.parametrize(
    ("announced", "expects_continue", "closes"),
    [(1000, False, False), (100_000, False, True), (None, False, True), (1000, True, True)],
    ids=["small", "large", "chunked", "100-continue"],
)
async def test_an_early_response_closes_the_connection_unless_the_rest_of_the_body_is_small(
    announced: int | None, expects_continue: bool, closes: bool
) -> None:
    connection = FakeConnection()
    exchange, _ = exchange_of(connection, announced=announced, expects_continue=expects_continue)

    await exchange.send(head((b"content-length", b"0"), status=413))
    await exchange.send(body())

    assert (b"connection: close\r\n" in connection.fake.written) is closes
    assert connection.closed == closes


@pytest.mark.parametrize(("announced", "sent"), [(b"2", b"abc"), (b"4", b"abc")], ids=["longer", "shorter"])
async def test_a_body_of_another_length_is_an_error(announced: bytes, sent: bytes) -> None:
    exchange, _ = exchange_of(FakeConnection())
    await exchange.send(head((b"content-length", announced)))

    with pytest.raises(RuntimeError, match="than Content-Length"):
        await exchange.send(body(sent))


@pytest.mark.parametrize("is_started", [False, True])
async def test_a_message_out_of_order_is_an_error(is_started: bool) -> None:
    exchange, _ = exchange_of(FakeConnection())
    if is_started:
        await exchange.send(head())

    with pytest.raises(RuntimeError, match="Expected ASGI message"):
        await exchange.send(head() if is_started else body())


async def test_a_message_after_the_end_is_an_error() -> None:
    exchange, _ = exchange_of(FakeConnection())
    await exchange.send(head())
    await exchange.send(body())

    with pytest.raises(RuntimeError, match="after the end"):
        await exchange.send(body())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-a", b"b\r\nx-c: d"),
        (b"x-a", b"b\nx-c: d"),
        (b"x-a\r\nx-b", b"c"),
        (b"x-a", b"nul\0"),
        (b"x a", b"b"),
        (b"X-A", b"b"),
        (b"", b"b"),
    ],
)
def test_an_invalid_header_is_an_error(name: bytes, value: bytes) -> None:
    with pytest.raises(RuntimeError, match="Invalid HTTP header"):
        lines_of((b"content-type", b"text/plain"), (name, value))


def test_header_values_can_have_tabs_and_latin_1() -> None:
    assert lines_of((b"x-a", b"b\tc\xe9"), (b"x-b", b"")) == b"x-a: b\tc\xe9\r\nx-b: \r\n"


def test_a_response_without_headers_has_no_lines() -> None:
    assert lines_of() == b""


def lines_of(*headers: tuple[bytes, bytes]) -> bytes:
    return header_lines(headers)[0]


# --- the extensions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wraps_receive", "wraps_send", "left"),
    [
        (False, False, {DISCONNECT, BODY_WRITER, START_WITH_BODY, REQUEST_BODY}),
        (True, False, {DISCONNECT, BODY_WRITER, START_WITH_BODY}),
        (False, True, {DISCONNECT, REQUEST_BODY}),
    ],
)
async def test_extensions_that_would_bypass_middleware_are_removed(
    left: set[str], *, wraps_receive: bool, wraps_send: bool
) -> None:
    exchange, scope = exchange_of(FakeConnection())

    async def receive() -> Any:
        return await exchange.receive()

    async def send(message: Any) -> None:
        await exchange.send(message)

    remove_bypassing(
        scope, receive if wraps_receive else exchange.receive, send if wraps_send else exchange.send
    )

    assert scope["extensions"].keys() == left


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        (START_WITH_BODY, {DISCONNECT, REQUEST_BODY}),
        (BODY_WRITER, {DISCONNECT, REQUEST_BODY}),
        (REQUEST_BODY, {DISCONNECT}),
    ],
)
async def test_middleware_can_remove_extensions_itself(removed: str, left: set[str]) -> None:
    exchange, scope = exchange_of(FakeConnection())

    async def send(message: Any) -> None:
        await exchange.send(message)

    del scope["extensions"][removed]
    remove_bypassing(scope, exchange.receive, send)

    assert scope["extensions"].keys() == left


# --- the application -------------------------------------------------------------------------------------------


BEGINNINGS: dict[str, list[dict[str, Any]]] = {
    "not begun": [],
    "head held back": [head((b"content-length", b"5"))],
}
"""What an application sends without anything being written."""
nothing_written = pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)


@nothing_written
@pytest.mark.parametrize(
    "error",
    # ``SystemExit`` would stop the event loop. Nobody has cancelled the task of the ``CancelledError``.
    [None, ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError],
    ids=lambda error: error.__name__ if error else "returns",
)
async def test_a_failure_before_anything_is_written_is_answered_with_500(
    beginning: list[dict[str, Any]], error: type[BaseException] | None, caplog: pytest.LogCaptureFixture
) -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)
    scope["state"] = {"request_id": "req_1"}

    async def app(_scope: object, _receive: object, send: Any) -> None:
        for message in beginning:
            await send(message)
        if error is not None:
            raise error

    await exchange.run(app, scope)

    (written,) = connection.fake.writes
    lines = written.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 500 Internal Server Error"
    assert {b"x-request-id: req_1", b"connection: close", b"content-type: application/json"} < set(lines)
    assert json.loads(lines[-1])["error"]["code"] == "internal_error"
    assert (connection.completed, connection.closed) == (1, 1)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize(("announced", "sent"), [(b"2", b"abc"), (b"4", b"abc")], ids=["longer", "shorter"])
async def test_a_body_of_another_length_is_answered_with_500(announced: bytes, sent: bytes) -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)

    async def app(_scope: object, _receive: object, send: Any) -> None:
        await send(head((b"content-length", announced)))
        await send(body(sent))

    await exchange.run(app, scope)

    assert connection.fake.written.startswith(b"HTTP/1.1 500 ")


async def test_the_error_of_a_response_to_head_has_no_body() -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection, method="HEAD")

    async def app(*_: object) -> None:
        raise ValueError

    await exchange.run(app, scope)

    assert connection.fake.written.startswith(b"HTTP/1.1 500 ")
    assert connection.fake.written.endswith(b"\r\n\r\n")


async def cancelled(exchange: HttpExchange, scope: dict[str, Any], *messages: dict[str, Any]) -> None:
    """Run an application that sends the messages, and cancel it when it waits."""
    waits = asyncio.Event()

    async def app(_scope: object, _receive: object, send: Any) -> None:
        for message in messages:
            await send(message)
        waits.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(exchange.run(app, scope))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@nothing_written
async def test_a_cancelled_request_is_answered_with_503_and_not_logged(
    beginning: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)

    await cancelled(exchange, scope, *beginning)

    (written,) = connection.fake.writes
    lines = written.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 503 Service Unavailable"
    assert {b"connection: close", b"retry-after: 2"} < set(lines)
    assert json.loads(lines[-1])["error"]["code"] == "shutting_down"
    assert (connection.completed, connection.closed) == (1, 1)
    assert caplog.records == []


@pytest.mark.parametrize("reads", [True, False], ids=["begun", "client does not read"])
async def test_a_cancelled_request_that_cannot_be_answered_closes_the_connection(reads: bool) -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)
    before = [head()] if reads else []
    connection.flow.write_paused = not reads

    await cancelled(exchange, scope, *before)

    assert b"503" not in connection.fake.written
    assert (connection.completed, connection.closed) == (0, 1)


async def test_an_incomplete_body_is_not_waited_for_when_the_server_stops() -> None:
    exchange, _ = exchange_of(FakeConnection(), announced=6)
    exchange.add_body(b"abc")
    receiving = asyncio.create_task(exchange.receive())
    await asyncio.sleep(0)

    exchange.stop_waiting_for_body()

    with pytest.raises(ShuttingDown):
        await receiving
    with pytest.raises(ShuttingDown):
        await exchange.receive()
    exchange.end_body()
    assert await exchange.receive() == {"type": "http.request", "body": b"abc", "more_body": False}


@pytest.mark.parametrize("fails", [True, False], ids=["raises", "returns"])
async def test_a_response_that_stops_early_closes_the_connection(fails: bool) -> None:
    connection = FakeConnection()
    exchange, scope = exchange_of(connection)

    async def app(_scope: object, _receive: object, send: Any) -> None:
        await send(head())
        if fails:
            raise ValueError

    await exchange.run(app, scope)

    assert (connection.completed, connection.closed) == (0, 1)
