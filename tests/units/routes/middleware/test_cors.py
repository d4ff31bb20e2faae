"""Which pages may read answers, which may ask at all, and by which names the server is called."""

from __future__ import annotations

import pytest
from starlette.types import Message, Receive, Scope, Send

from proxy.routes.middleware.cors import CorsMiddleware, OriginPolicy
from proxy.routes.middleware.path_normalization import served_path
from proxy.routes.request_body import RequestHeaders

OPEN = OriginPolicy(hosts=["127.0.0.1"])
"""A server as it is without any setting."""
HERE = "127.0.0.1:8000"


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://localhost:8443",
        "HTTP://LocalHost:3000",
        "http://127.0.0.1:5173",
        "http://127.7.3.1",
        "http://[::1]:3000",
        "http://tauri.localhost",
        "http://app.localhost:1234",
    ],
)
def test_pages_of_this_machine_are_welcome(origin: str) -> None:
    assert OPEN.is_allowed_origin(origin, HERE)
    assert OPEN.may_call(origin, HERE)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "file://",
        "https://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://evil.example#localhost",
        "http://localhost@evil.example",
        "http://evil.example:80@localhost",
        "http://evillocalhost",
        "http://128.0.0.1",
        "http://0.0.0.0:3000",
        "http://10.0.0.1:3000",
        "http://[::2]:3000",
        "http://127.0.0.1:3000/",
        "http://127.0.0.1:3000 http://evil.example",
        "ftp://localhost",
        "chrome-extension://abcdefgh",
        "localhost",
        "http://",
    ],
)
def test_other_pages_are_not(origin: str) -> None:
    assert not OPEN.is_allowed_origin(origin, HERE)
    assert not OPEN.may_call(origin, HERE)


def test_pages_that_the_server_serves_itself_are_welcome() -> None:
    assert OPEN.is_allowed_origin("http://192.168.1.5:8000", "192.168.1.5:8000")
    assert OPEN.is_allowed_origin("https://Chat.example.com", "chat.example.COM")
    assert not OPEN.is_allowed_origin("http://192.168.1.5:8001", "192.168.1.5:8000")
    assert not OPEN.is_allowed_origin("http://192.168.1.5", "192.168.1.5:8000")


def test_configured_pages_are_welcome() -> None:
    policy = OriginPolicy(origins=["https://Chat.example.com", "tauri://localhost", "null"])

    for origin in ("https://chat.example.com", "tauri://localhost", "null", "http://localhost:1"):
        assert policy.is_allowed_origin(origin, HERE)
    for origin in ("http://chat.example.com", "https://chat.example.com:444", "https://a.chat.example.com"):
        assert not policy.is_allowed_origin(origin, HERE)


def test_a_star_lets_everybody_in() -> None:
    policy = OriginPolicy(origins=["*"])

    assert policy.is_allowed_origin("https://evil.example", HERE)
    assert policy.is_allowed_origin("null", HERE)


def test_where_keys_are_needed_every_page_may_ask_but_only_welcome_ones_may_read() -> None:
    policy = OriginPolicy(needs_keys=True)

    assert policy.may_call("https://evil.example", HERE)
    assert not policy.is_allowed_origin("https://evil.example", HERE)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "localhost:8000",
        "LOCALHOST:8000",
        "127.0.0.1:8000",
        "127.0.0.1",
        "[::1]:8000",
        "192.168.1.5:8000",
        "10.0.2.2:8000",
        "host.docker.internal:8000",
        "host.containers.internal",
        "proxy.localhost:8000",
    ],
)
def test_reserved_addresses_and_names_are_known(host: str) -> None:
    assert OPEN.is_allowed_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "internal.example",
        "x",
    ],
)
def test_names_that_may_be_anybodys_are_not(host: str) -> None:
    assert not OPEN.is_allowed_host(host)


def test_names_are_known_when_configured_when_keys_are_needed_and_on_other_addresses() -> None:
    assert OriginPolicy(hosts=["Chat.example.com"]).is_allowed_host("chat.example.com:8000")
    assert OriginPolicy(hosts=["*"]).is_allowed_host("evil.example")
    assert OriginPolicy(needs_keys=True).is_allowed_host("evil.example")
    assert OriginPolicy(is_local=False).is_allowed_host("evil.example")


@pytest.mark.parametrize("are_shared", [False, True])
async def test_requests_that_share_headers_are_checked_by_each_policy(are_shared: bool) -> None:
    kind = OriginPolicy(hosts=["chat.example.com"])
    shared = RequestHeaders({"host": "chat.example.com"})
    shared.are_shared = are_shared

    assert [await status_of(policy, shared) for policy in (kind, kind, OPEN, kind)] == [200, 200, 403, 200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": HERE, "origin": "https://evil.example"}, 403),
        ({"host": HERE, "origin": f"http://{HERE}"}, 200),
    ],
    ids=["another name", "another page", "its own page"],
)
async def test_headers_that_requests_share_are_checked_for_each_of_them(
    headers: dict[str, str], status: int
) -> None:
    shared = RequestHeaders(headers)
    shared.are_shared = True

    assert [await status_of(OPEN, shared) for _ in range(2)] == [status, status]
    assert shared.accepted_by is None


async def status_of(policy: OriginPolicy, headers: RequestHeaders) -> int:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [],
        "state": {"headers": headers},
    }
    await CorsMiddleware(served, policy)(scope, receive, send)
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1/chat/completions//", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/chat/completions/chatcmpl-1/stream", "/v1/chat/completions/chatcmpl-1/stream"),
        ("/models", "/v1/models"),
        ("/models/acme-support/SalesAgent/", "/v1/models/acme-support/SalesAgent"),
        ("/modelsx", "/modelsx"),
        ("/chat", "/chat"),
        ("/health/", "/health"),
        ("/", "/"),
        ("", "/"),
        ("///", "/"),
    ],
)
def test_a_path_is_served_however_it_is_written(path: str, served: str) -> None:
    assert served_path(path) == served


def test_older_bodies_have_the_path_without_the_version_to_themselves() -> None:
    assert served_path("/chat/completions/", "POST") == "/chat/completions"
    assert served_path("/chat/completions", "GET") == "/v1/chat/completions"
    assert served_path("/v1/chat/completions", "POST") == "/v1/chat/completions"
