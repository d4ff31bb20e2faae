"""Who may ask, how large and how slow a request may be, and whether one that failed may be sent again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.behaviour.raw_http import HELLO, Socket, Wire, check_refusal
from tests.fakes.upstream import FakeUpstream, calls, error, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest.fixture
def upstream(open_shop: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return open_shop[1].forget()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(open_shop: tuple[Served, FakeUpstream]) -> AsyncIterator[Wire]:
    async with Wire(open_shop[0]) as wire:
        yield wire


# --- callers ---


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic cmlnaHQ6", None),
        ("right", None),
        ("Bearer wrong", "invalid_api_key"),
        ("Bearer right right", "invalid_api_key"),
        ("Bearer rigHt", "invalid_api_key"),
    ],
)
async def test_without_the_right_key_nothing_is_read(
    tmp_path: Path, upstream: FakeUpstream, authorization: str | None, code: str | None
) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys=("right",)) as served, Socket(served) as socket:
        # So long a body never comes: it is not waited for.
        await socket.post(
            b"{", *([] if authorization is None else [f"Authorization: {authorization}"]), length=1000
        )
        reply = await socket.reply()

    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    reported = json.loads(reply.body)["error"]
    assert (reported["type"], reported["code"]) == ("invalid_request_error", code)


# --- size and time ---


async def test_a_body_over_the_limit_is_413_before_it_is_read(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, max_body_bytes=1000) as served, Socket(served) as socket:
        await socket.post(b"{", length=1001)
        announced = await socket.reply()
    async with serve(tmp_path, upstream.base_url, max_body_bytes=1000) as served, Socket(served) as socket:
        await socket.post_chunks(b"x" * 600, b"x" * 600)
        counted = await socket.reply()

    for reply in (announced, counted):
        assert reply.status == 413
        reported = json.loads(reply.body)["error"]
        assert (reported["type"], reported["param"], reported["code"]) == ("server_error", None, None)
        assert reported["message"].startswith("Maximum content size limit (1000) exceeded")
    assert not upstream.requests


async def test_each_request_with_the_same_head_has_its_own_length(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hi"), text("Ho"))
    long = [{"role": "user", "content": "a longer message"}]
    bodies = [json.dumps({"model": "shop", "messages": messages}).encode() for messages in (HELLO, long)]
    async with serve(tmp_path, upstream.base_url, max_body_bytes=1000) as served, Socket(served) as socket:
        for body in bodies:
            await socket.post(body, "X-Handoff-Events: none")
            assert (await socket.reply()).status == 200
        await socket.post(b"{", "X-Handoff-Events: none", length=1001)

        assert (await socket.reply()).status == 413

    assert [request.body["messages"][-1] for request in upstream.requests] == [HELLO[0], long[0]]


async def test_a_body_at_the_limit_passes_in_chunks(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    body = json.dumps({"model": "shop", "messages": HELLO}).encode()
    async with (
        serve(tmp_path, upstream.base_url, max_body_bytes=len(body)) as served,
        Socket(served) as socket,
    ):
        await socket.post_chunks(body[:10], body[10:], end=True)
        reply = await socket.reply()

    assert reply.status == 200


async def test_a_body_that_comes_by_drops_is_408_and_the_connection_ends(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url, body_timeout=0.3) as served, Socket(served) as socket:
        await socket.post(b'{"model": ', length=1000)
        await socket.send(b" ", b" ")
        reply = await socket.reply()
        rest = await socket.reader.read()

    assert (reply.status, reply.headers["connection"], rest) == (408, "close", b"")
    assert json.loads(reply.body)["error"]["code"] == "request_timeout"


async def test_who_leaves_in_the_middle_of_a_body_is_not_answered(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url) as served:
        async with Socket(served) as socket:
            await socket.post(b'{"model": ', length=1000)
        async with Wire(served) as wire:
            upstream.reply(text("Hi"))
            await wire.completion()

    assert len(upstream.requests) == 1


# --- whether to run the turn again ---

ORDER = calls(("execute_order", {"product": "rocket", "price": 1}))


@pytest.mark.parametrize(
    ("replies", "status", "retry"),
    [
        ([error(500)] * 3, 502, None),
        ([calls(("transfer_to_sales", {})), *[error(500)] * 3], 502, None),
        ([calls(("transfer_to_sales", {})), ORDER, *[error(500)] * 3], 502, "false"),
        ([calls(("transfer_to_sales", {})), ORDER, error(429, headers={"retry-after": "60"})], 429, "false"),
        ([error(401)], 502, "false"),
        ([calls(("transfer_to_sales", {})), ORDER, error(400)], 400, None),
    ],
    ids=[
        "nothing done",
        "a handoff",
        "an order",
        "an order, then slow down",
        "our key",
        "an order, then refused",
    ],
)
async def test_a_plain_failure_says_whether_a_repeat_is_harmless(
    upstream: FakeUpstream, wire: Wire, replies: list[Any], status: int, retry: str | None
) -> None:
    upstream.reply(*replies)
    response = await wire.ask()

    reported = check_refusal(response, status)
    assert response.headers.get("x-should-retry") == retry
    assert (reported["type"] == "invalid_request_error") == (status == 400)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_failure_names_the_conversation_that_it_belongs_to(
    upstream: FakeUpstream, wire: Wire, stream: bool
) -> None:
    upstream.reply(error(401), text("Hello"))
    failed = await wire.ask(stream=stream, top_k=4)
    named = failed.headers["x-conversation-id"]
    continued = await wire.ask(headers={"X-Conversation-Id": named})

    check_refusal(failed, 502)
    assert failed.headers["x-conversation-match"] == "entry"
    assert failed.headers["x-ignored-parameters"] == "top_k"
    assert continued.status_code == 200
    assert continued.headers["x-conversation-id"] == named


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        ([text("One moment please", chunks=3).cut(after=2)], "upstream_error"),
        ([calls(("transfer_to_sales", {})), text("One moment", chunks=3).cut(after=2)], "upstream_error"),
        (
            [calls(("transfer_to_sales", {})), ORDER, text("Done", chunks=2).cut(after=2)],
            "invalid_request_error",
        ),
        ([calls(("transfer_to_sales", {})), ORDER, *[error(500)] * 3], "invalid_request_error"),
        ([calls(("transfer_to_repairs", {}), ("x", {}), text="Hm."), *[error(500)] * 3], "upstream_error"),
    ],
    ids=["words", "a handoff", "an order, then words", "an order", "a handoff with words"],
)
async def test_a_failure_in_a_stream_says_by_its_type_whether_a_repeat_is_harmless(
    upstream: FakeUpstream, wire: Wire, replies: list[Any], kind: str
) -> None:
    upstream.reply(*replies)
    frames = await wire.frames()

    *_, failure, done = frames
    assert (failure["error"]["type"], done) == (kind, "[DONE]")
    assert not [f for f in frames[:-2] if f["choices"][0]["finish_reason"]]
