"""Request bodies with a content coding."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import httpx2
import pytest

from proxy.errors import BodyTooLarge, InvalidRequest
from proxy.routes.request_body import decode_gzip
from tests.behaviour.raw_http import HELLO, Wire, check_refusal
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served, serve

CHAT: dict[str, Any] = {"model": "shop", "messages": HELLO}
RESPONSE: dict[str, Any] = {"model": "shop", "input": "Hello"}
CONVERSATION: dict[str, Any] = {"items": []}


async def post(served: Served, path: str, body: bytes, encoding: str) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=20, verify=False) as http:
        return await http.post(served.url + path, content=body, headers={"Content-Encoding": encoding})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/responses", RESPONSE),
        ("/v1/conversations", CONVERSATION),
        ("/chat/completions", CHAT),
        ("/chat", {"message": "Hello"}),
        ("/ask-stream", {"question": "Hello"}),
    ],
)
@pytest.mark.parametrize("encoding", ["gzip", "X-GZIP"])
async def test_a_body_can_be_compressed_with_gzip(
    served: Served, upstream: FakeUpstream, path: str, body: dict[str, Any], encoding: str
) -> None:
    upstream.reply(text("Hi"))
    response = await post(served, path, gzip.compress(json.dumps(body).encode()), encoding)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
async def test_requests_of_one_connection_can_be_compressed(
    served: Served, upstream: FakeUpstream, path: str
) -> None:
    upstream.reply(text("Hi"), text("Hi"), text("Hi"))
    headers = {"Content-Encoding": "gzip"}
    async with httpx2.AsyncClient(timeout=20, verify=False) as http:
        for said in ("a", "another message", "a"):
            body = gzip.compress(
                json.dumps({**CHAT, "messages": [{"role": "user", "content": said}]}).encode()
            )
            response = await http.post(served.url + path, content=body, headers=headers)
            assert response.status_code == 200, response.text

    assert [one.body["messages"][-1]["content"] for one in upstream.requests] == ["a", "another message", "a"]


async def test_the_encoding_identity_is_accepted(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    response = await post(served, "/v1/chat/completions", json.dumps(CHAT).encode(), "identity")
    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "x" * 5000])
async def test_another_encoding_gets_415_with_the_supported_one(served: Served, encoding: str) -> None:
    response = await post(served, "/v1/chat/completions", b"data", encoding)
    assert check_refusal(response, 415)["code"] == "unsupported_content_encoding"
    assert response.headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{}", id="not gzip"),
        pytest.param(gzip.compress(json.dumps(CHAT).encode())[:-5], id="truncated"),
        pytest.param(gzip.compress(b"{") + gzip.compress(b"}"), id="two members"),
        pytest.param(zlib.compress(json.dumps(CHAT).encode()), id="zlib format"),
    ],
)
async def test_an_invalid_gzip_body_gets_400(served: Served, body: bytes) -> None:
    assert "gzip" in check_refusal(await post(served, "/v1/chat/completions", body, "gzip"))["message"]


async def test_the_limit_counts_decoded_bytes(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    fits = json.dumps(CHAT).encode().ljust(10_000)
    async with serve(tmp_path, upstream.base_url, max_body_bytes=10_000) as served:
        accepted = await post(served, "/v1/chat/completions", gzip.compress(fits), "gzip")
        refused = await post(served, "/v1/chat/completions", gzip.compress(fits + b" "), "gzip")
        bomb = await post(served, "/v1/chat/completions", gzip.compress(bytes(5_000_000)), "gzip")
    assert accepted.status_code == 200
    assert "10000" in check_refusal(refused, 413)["message"]
    check_refusal(bomb, 413)


async def test_a_wrong_key_is_reported_before_the_encoding(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served, Wire(served, "x") as wire:
        error = check_refusal(await wire.raw(b"data", **{"Content-Encoding": "br"}), 401)
    assert error["code"] == "invalid_api_key"


def test_no_more_than_the_limit_is_decoded() -> None:
    bomb = gzip.compress(bytes(1000))
    assert decode_gzip(bomb, limit_bytes=1000) == bytes(1000)
    with pytest.raises(BodyTooLarge):
        decode_gzip(bomb, limit_bytes=999)
    with pytest.raises(InvalidRequest):
        decode_gzip(bomb[:10], limit_bytes=999)
