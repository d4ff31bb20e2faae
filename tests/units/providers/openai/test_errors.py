"""Every way in which a provider may fail, and the failure that the port makes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from proxy.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    UpstreamAuthFailed,
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamIncomplete,
    UpstreamModelNotFound,
    UpstreamProtocolError,
    UpstreamQuotaExceeded,
    UpstreamRateLimited,
    UpstreamResponseTooLarge,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.providers.http.pool import Addresses, HttpSession
from proxy.providers.openai.client import OpenAIWireModel
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import OpenAIModel
from tests.fakes.model_calls import Answer, ask
from tests.fakes.replies import JSON, Stop
from tests.fakes.upstream import FakeUpstream, Reply, bare, calls, chunk, cut, error, events, hang, raw, text

KEY = "sk-secret-key-of-the-operator"
SECRET = "details nobody else should see"
LIMITS = ModelLimits(answer_bytes=20_000, line_bytes=10_000)
HURRIED = {
    "connect_timeout": replace(LIMITS, connect=0.2),
    "timeout_first": replace(LIMITS, first_token=0.3),
    "timeout_idle": replace(LIMITS, idle=0.2),
}
"""Limits that a test waits for, by the failure they end in; a busy machine may take longer for what is to come."""
BROKEN = (UpstreamFailed, "broken", True)
AGAIN = (UpstreamFailed, "status_5xx", True)
BAD_REQUEST = (UpstreamBadRequest, "bad_request", False)
PROTOCOL = (UpstreamProtocolError, "protocol", False)
INCOMPLETE = (UpstreamIncomplete, "incomplete", True)

Expected = tuple[type[UpstreamFailed], str, bool]


def model_at(base_url: str, session: HttpSession, limits: ModelLimits = LIMITS) -> OpenAIWireModel:
    definition = OpenAIModel.model_validate({"model": "m", "base_url": base_url, "api_key": KEY})
    return OpenAIWireModel(definition, session, limits)


async def answer_to(
    session: HttpSession, reply: Reply, limits: ModelLimits = LIMITS
) -> tuple[Answer, FakeUpstream]:
    async with FakeUpstream(reply) as upstream:
        answer = await ask(model_at(upstream.base_url, session, limits))
        if not upstream.requests[0].is_answered:
            await upstream.requests[0].closed()
    return answer, upstream


def failed(answer: Answer) -> Expected:
    assert answer.failure is not None
    assert answer.end is None
    assert SECRET not in str(answer.failure)
    assert KEY not in repr(answer.failure)
    # Nothing of the library's exception, which holds the request's headers, is shown with it.
    assert answer.failure.__cause__ is None
    assert answer.failure.__context__ is None or answer.failure.__suppress_context__
    return type(answer.failure), answer.failure.label, answer.failure.is_retryable


def body(
    code: str | None = None, message: str = SECRET, kind: str = "invalid_request_error"
) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


STATUSES: list[tuple[str, Reply, Expected]] = [
    ("401", error(401), (UpstreamAuthFailed, "auth", False)),
    ("403", error(403), (UpstreamAuthFailed, "auth", False)),
    ("404", error(404, code="model_not_found"), (UpstreamModelNotFound, "not_found", False)),
    ("400", error(400, body()), (UpstreamBadRequest, "bad_request", False)),
    ("422 with FastAPI's body", error(422, {"detail": [SECRET]}), (UpstreamBadRequest, "bad_request", False)),
    ("405", error(405), (UpstreamBadRequest, "bad_request", False)),
    (
        "400 context_length_exceeded",
        error(400, body("context_length_exceeded")),
        (ContextLengthExceeded, "context_length", False),
    ),
    (
        "400 that tells the length in words",
        error(400, body(None, "This model's maximum context length is 4096 tokens.")),
        (ContextLengthExceeded, "context_length", False),
    ),
    (
        "400 content_filter",
        error(400, body("content_filter")),
        (ContentFiltered, "content_filter", False),
    ),
    (
        "400 with Azure's inner error",
        error(400, {"error": {"code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
        (ContentFiltered, "content_filter", False),
    ),
    (
        "400 in Google's array",
        error(400, json.dumps([body("context_length_exceeded")]).encode()),
        (ContextLengthExceeded, "context_length", False),
    ),
    ("402", error(402), (UpstreamQuotaExceeded, "quota", False)),
    ("429", error(429, code="rate_limit_exceeded"), (UpstreamRateLimited, "rate_limited", True)),
    (
        "429 insufficient_quota",
        error(429, code="insufficient_quota"),
        (UpstreamQuotaExceeded, "quota", False),
    ),
    ("408", error(408), AGAIN),
    ("409", error(409), AGAIN),
    ("500", error(500), AGAIN),
    ("502 with a page", error(502, f"<html>{SECRET}</html>"), AGAIN),
    ("503 without a body", error(503, ""), AGAIN),
    ("529", error(529), AGAIN),
    (
        "503 that asks not to retry",
        error(503, headers={"x-should-retry": "false"}),
        (UpstreamFailed, "status_5xx", False),
    ),
    (
        "429 that asks not to retry",
        error(429, headers={"x-should-retry": "false"}),
        (UpstreamRateLimited, "rate_limited", False),
    ),
    (
        "400 that asks to retry",
        error(400, headers={"x-should-retry": "true"}),
        (UpstreamBadRequest, "bad_request", True),
    ),
    (
        "429 with another value of the header",
        error(429, headers={"x-should-retry": "maybe"}),
        (UpstreamRateLimited, "rate_limited", True),
    ),
    ("a redirect", error(307, headers={"location": "http://127.0.0.1:9/v1/chat/completions"}), PROTOCOL),
]

BEFORE_AN_ANSWER: list[tuple[str, Reply, Expected]] = [
    ("resets without an answer", cut(), (UpstreamUnreachable, "broken", True)),
    ("closes without an answer", bare(), (UpstreamUnreachable, "broken", True)),
    ("not HTTP", bare(b"220 mail.example ESMTP\r\n"), (UpstreamUnreachable, "broken", True)),
    (
        "a header of 1 MB",
        bare(b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 1_000_000 + b"\r\n\r\n"),
        (UpstreamUnreachable, "broken", True),
    ),
    ("hangs before the headers", hang(), (UpstreamTimeout, "timeout_first", False)),
    ("hangs after the headers", raw().hang(after=0), (UpstreamTimeout, "timeout_first", False)),
    (
        "hangs after the role",
        text("Hello").hang(after=1),
        (UpstreamTimeout, "timeout_first", False),
    ),
    ("an empty body", raw(), AGAIN),
    ("an empty JSON body", raw(content_type=JSON), AGAIN),
    ("a page with status 200", raw(b"<html>", content_type="text/html"), AGAIN),
    ("an error object", raw(json.dumps(body()).encode(), content_type=JSON), BAD_REQUEST),
    ("a JSON array", raw(b"[]", content_type=JSON), PROTOCOL),
    ("an object without choices", raw(b"{}", content_type=JSON), PROTOCOL),
    ("null choices", raw(b'{"choices": null}', content_type=JSON), PROTOCOL),
    ("empty choices", raw(b'{"choices": []}', content_type=JSON), PROTOCOL),
    ("half an object", raw(b'{"choices": [{"mess', content_type=JSON), PROTOCOL),
    (
        "a compressed stream",
        raw(gzip.compress(b"data: x" * 1000), headers={"content-encoding": "gzip"}),
        PROTOCOL,
    ),
    (
        "a JSON answer over the limit",
        raw(b'{"x": "' + b"x" * 30_000 + b'"}', content_type=JSON),
        (UpstreamResponseTooLarge, "too_much", False),
    ),
]

TRANSCRIPT = chunk({"content": "Hello"})

IN_THE_MIDDLE: list[tuple[str, Reply, Expected]] = [
    (
        "an error event",
        events(TRANSCRIPT, body(None, SECRET, "server_error")),
        (UpstreamFailed, "error_event", True),
    ),
    (
        "an error event with a name",
        raw(b"data: " + json.dumps(TRANSCRIPT).encode() + b'\n\nevent: error\ndata: {"message": "no"}\n\n'),
        (UpstreamFailed, "error_event", True),
    ),
    (
        "an error that is a sentence",
        events(TRANSCRIPT, {"error": SECRET}),
        (UpstreamFailed, "error_event", True),
    ),
    (
        "an error in a chunk, with a status",
        events(TRANSCRIPT, chunk(error={"code": 429, "message": SECRET})),
        (UpstreamRateLimited, "rate_limited", True),
    ),
    (
        "an error event that tells the length",
        events(TRANSCRIPT, body("context_length_exceeded")),
        (ContextLengthExceeded, "context_length", False),
    ),
    ("stalls", text("Hello").hang(after=2), (UpstreamTimeout, "timeout_idle", False)),
    ("ends without finish reason and [DONE]", text("Hello").end(after=2), INCOMPLETE),
    ("is reset", text("Hello").cut(after=2), BROKEN),
    (
        "ends inside of a chunk",
        raw(b"data: " + json.dumps(TRANSCRIPT).encode() + b'\n\ndata: {"choices": [{"del'),
        INCOMPLETE,
    ),
    (
        "less than the content length",
        bare(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 5000\r\n\r\n"
            b"data: " + json.dumps(TRANSCRIPT).encode() + b"\n\n"
        ),
        BROKEN,
    ),
    ("an event that is not JSON", events(TRANSCRIPT, "{nonsense"), PROTOCOL),
    ("an event that is an array", events(TRANSCRIPT, "[]"), PROTOCOL),
    (
        "bytes that are not UTF-8",
        events(TRANSCRIPT, b'{"choices": [{"delta": {"content": "\xff"}}]}'),
        PROTOCOL,
    ),
    ("JSON that is deep", events(TRANSCRIPT, '{"error": ' + "[" * 4000 + "]" * 4000 + "}"), PROTOCOL),
    (
        "a line over the limit",
        events(TRANSCRIPT, chunk({"content": "x" * 10_000})),
        (UpstreamResponseTooLarge, "too_much", False),
    ),
    (
        "more than the limit in many pieces",
        events(TRANSCRIPT, *[chunk({"content": "x" * 5_000})] * 5),
        (UpstreamResponseTooLarge, "too_much", False),
    ),
]

CUT_CALLS: list[tuple[str, Reply, Expected]] = [
    ("the stream ends", calls(("look_up", {"q": "rocket"})).end(after=3), INCOMPLETE),
    ("the connection is cut", calls(("look_up", {"q": "rocket"})).cut(after=3), BROKEN),
    (
        "[DONE] without a reason",
        events(
            chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"q'}}]})
        ),
        INCOMPLETE,
    ),
    (
        "the length limit",
        calls(("look_up", '{"q": "rock'), finish="length"),
        (UpstreamIncomplete, "incomplete", False),
    ),
    (
        "the length limit before any argument",
        calls(("look_up", ""), finish="length"),
        (UpstreamIncomplete, "incomplete", False),
    ),
]


def cases(*tables: list[tuple[str, Reply, Expected]]) -> list[object]:
    return [pytest.param(reply, expected, id=name) for table in tables for name, reply, expected in table]


@pytest.mark.parametrize(("reply", "expected"), cases(STATUSES, BEFORE_AN_ANSWER))
async def test_a_fault_before_any_output(http_session: HttpSession, reply: Reply, expected: Expected) -> None:
    answer, upstream = await answer_to(http_session, reply, HURRIED.get(expected[1], LIMITS))

    assert failed(answer) == expected
    assert answer.deltas == []
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("reply", "expected"), cases(IN_THE_MIDDLE))
async def test_deltas_before_a_failure_are_delivered(
    http_session: HttpSession, reply: Reply, expected: Expected
) -> None:
    answer, _ = await answer_to(http_session, reply, HURRIED.get(expected[1], LIMITS))

    assert failed(answer) == expected
    assert answer.text.startswith("Hel")


async def test_bad_chunk_framing_in_the_middle(http_session: HttpSession) -> None:
    first = b"data: " + json.dumps(TRANSCRIPT).encode() + b"\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    was_read = asyncio.Event()
    reply = bare(head + b"%x\r\n" % len(first) + first + b"\r\n", was_read, b"nonsense\r\n")

    async def continue_stream() -> None:
        was_read.set()

    async with FakeUpstream(reply) as upstream:
        answer = await ask(model_at(upstream.base_url, http_session), after_batch=continue_stream)

    assert failed(answer) == BROKEN
    assert answer.text == "Hello"


async def test_deltas_before_a_disconnect_reach_a_slow_reader(http_session: HttpSession) -> None:
    was_read = asyncio.Event()
    reply = events(TRANSCRIPT, was_read, chunk({"content": ", you"}), Stop.CUT)

    async with FakeUpstream(reply) as upstream:

        async def dawdle() -> None:
            was_read.set()
            await upstream.requests[0].closed()
            for _ in range(20):
                await asyncio.sleep(0)

        answer = await ask(model_at(upstream.base_url, http_session), after_batch=dawdle)

    assert failed(answer) == BROKEN
    assert answer.text == "Hello, you"


@pytest.mark.parametrize(("reply", "expected"), cases(CUT_CALLS))
async def test_a_cut_call_is_never_finished(
    http_session: HttpSession, reply: Reply, expected: Expected
) -> None:
    answer, _ = await answer_to(http_session, reply)

    assert failed(answer) == expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "86400"}, 3600.0),
        ({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}, 3600.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
async def test_retry_after_is_read_and_bounded(
    http_session: HttpSession, headers: dict[str, str], seconds: float | None
) -> None:
    answer, _ = await answer_to(http_session, error(429, headers=headers))

    assert answer.failure is not None
    assert answer.failure.retry_after == seconds


async def test_a_refused_connection_is_unreachable(http_session: HttpSession) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    answer = await ask(model_at(f"http://127.0.0.1:{port}/v1", http_session))

    assert failed(answer) == (UpstreamUnreachable, "refused", True)


class NamelessSession(HttpSession):
    async def look_up(self, host: str, port: int) -> Addresses:
        raise OSError(None, f"no address for {host}")


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    session = NamelessSession()

    answer = await ask(model_at("http://provider.example/v1", session))
    await session.close()

    assert failed(answer) == (UpstreamUnreachable, "dns", True)


async def test_tls_error_is_not_retryable(http_session: HttpSession) -> None:
    async with FakeUpstream() as upstream:
        answer = await ask(model_at(upstream.base_url.replace("http:", "https:"), http_session))

    assert failed(answer) == (UpstreamUnreachable, "tls", False)


@pytest.fixture
def swallowing_port() -> Iterator[int]:
    """A port whose queue of connections is full: further packets are dropped."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_swallowed_packets_end_at_the_connect_limit(
    http_session: HttpSession, swallowing_port: int
) -> None:
    limits = HURRIED["connect_timeout"]
    answer = await ask(model_at(f"http://127.0.0.1:{swallowing_port}/v1", http_session, limits))

    assert failed(answer) == (UpstreamUnreachable, "connect_timeout", True)
