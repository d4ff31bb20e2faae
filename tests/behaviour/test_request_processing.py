"""Work that a request causes once: authentication, and decoding of its headers."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from proxy.auth import Access, Keys
from proxy.routes.request_body import headers_of
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served


class CountingKeys(Keys):
    """Counts the authentications, each of which hashes the key."""

    def __init__(self) -> None:
        super().__init__(["test-key"])
        self.count = 0

    def access(self, authorization: str | None) -> Access:
        self.count += 1
        return super().access(authorization)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/chat/completions", {"model": "shop", "messages": [{"role": "user", "content": "Hi"}]}),
        ("POST", "/v1/responses", {"model": "shop", "input": "Hi"}),
        ("POST", "/chat", {"message": "Hi", "agent": "shop"}),
        ("POST", "/chat/completions", {"message": "Hi", "agent": "shop"}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/conversations", None),
    ],
)
async def test_request_is_authenticated_once(
    served: Served, upstream: FakeUpstream, method: str, path: str, body: Any
) -> None:
    upstream.reply(text("Hello"))
    keys = CountingKeys()
    assert served.app is not None
    served.app.state.services = replace(served.services, keys=keys)

    async with httpx2.AsyncClient(base_url=served.url, timeout=20, verify=False) as http:
        response = await http.request(method, path, json=body, headers={"Authorization": "Bearer test-key"})

    assert (response.status_code, keys.count) == (200, 1)


def test_headers_are_decoded_once() -> None:
    scope: Any = {"type": "http", "headers": [(b"x-a", b"first"), (b"x-a", b"second")]}

    headers = headers_of(scope)

    assert headers == {"x-a": "first"}
    assert headers_of(scope) is headers
