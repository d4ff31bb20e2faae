"""Compressed answers as clients get them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import aiohttp
import pytest

from tests.behaviour.chat_client import Caller, user
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest.fixture
def upstream(open_shop: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return open_shop[1].forget()


async def ask(
    served: Served, method: str, path: str, *, accepts: str = "gzip", **more: Any
) -> tuple[dict[str, str], bytes]:
    headers = {"Authorization": "Bearer test-key", "Accept-Encoding": accepts}
    async with (
        aiohttp.ClientSession(auto_decompress=False, headers=headers) as http,
        http.request(method, served.url + path, **more) as response,
    ):
        assert response.status == 200, await response.text()
        vary = ", ".join(response.headers.getall("vary"))
        body = await response.read()
        return {**{name.lower(): value for name, value in response.headers.items()}, "vary": vary}, body


async def test_a_long_list_is_compressed_for_get_and_head(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(*[text("word " * 200)] * 3)
    for number in range(3):
        await Caller(served).ask([user(f"Hi {number}")], store=True)
    path = "/v1/chat/completions?limit=100"

    plain, whole = await ask(served, "GET", path, accepts="identity")
    packed, body = await ask(served, "GET", path)
    head, nothing = await ask(served, "HEAD", path)

    assert gzip.decompress(body) == whole
    assert (packed["content-encoding"], packed["content-length"]) == ("gzip", str(len(body)))
    assert (plain.get("content-encoding"), plain["content-length"]) == (None, str(len(whole)))
    assert plain["vary"] == packed["vary"] == "Accept-Encoding, Origin"
    assert nothing == b""
    same = ("content-encoding", "content-length", "content-type", "vary")
    assert [head[name] for name in same] == [packed[name] for name in same]


async def test_answers_to_chats_and_streams_are_sent_as_they_are(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(*[text("word " * 1000)] * 5)
    request = {"model": "shop", "messages": [{"role": "user", "content": "Hi"}]}

    answer, body = await ask(served, "POST", "/v1/chat/completions", json=request)
    turn_id = json.loads(body)["id"]
    streams = [
        ("POST", "/v1/chat/completions", {**request, "stream": True}),
        ("POST", "/chat/completions", {"message": "Hi"}),
        ("POST", "/chat/stream", {"message": "Hi"}),
        ("POST", "/ask-stream", {"question": "Hi?"}),
        ("GET", f"/v1/turns/{turn_id}/events", None),
        ("GET", f"/v1/chat/completions/{turn_id}/stream", None),
    ]
    reported = [(await ask(served, method, path, json=body))[0] for method, path, body in streams]

    assert int(answer["content-length"]) > 5000
    assert [headers.get("content-encoding") for headers in (answer, *reported)] == [None] * 7
