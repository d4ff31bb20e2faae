"""Paths as clients write them, methods as they try them, and web pages as callers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.behaviour.chat_client import user
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served, serve

ASK = {"model": "shop", "messages": [user("Hello")]}
HERE = "http://localhost:3000"
OTHER_ORIGIN = "https://evil.example"
# What the official SDK sends from a browser.
SDK_HEADERS = (
    "authorization,content-type,x-conversation-id,x-stainless-arch,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,"
    "x-stainless-timeout"
)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as created:
        yield created


async def ask(
    http: aiohttp.ClientSession, method: str, url: str, *, origin: str | None = None, **more: Any
) -> tuple[aiohttp.ClientResponse, bytes]:
    headers = {**({"Origin": origin} if origin else {}), **more.pop("headers", {})}
    response = await http.request(method, url, headers=headers, allow_redirects=False, **more)
    return response, await response.read()


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The error, which has to be in the envelope."""
    assert response.content_type == "application/json"
    body = await response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return dict(body["error"])


# --- paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["/v1", "/v1/", "", "/", "//v1/"])
async def test_the_sdk_works_with_every_base_url(base: str, served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello."), text("Hello."))

    async with AsyncOpenAI(base_url=served.url + base, api_key="k", max_retries=0) as client:
        plain: Any = await client.chat.completions.create(**ASK)  # type: ignore[call-overload]
        stream: Any = await client.chat.completions.create(**ASK, stream=True)  # type: ignore[call-overload]
        chunks = [chunk async for chunk in stream]
        models = [model.id async for model in client.models.list()]
        model = await client.models.retrieve("shop/sales")

    assert plain.choices[0].message.content == "Hello."
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello."
    assert models[0] == "shop"
    assert model.id == "shop/sales"


@pytest.mark.parametrize(
    "path", ["/v1/models/", "/models", "/models/", "/models/shop/", "/v1/models/shop%2Fsales/", "/health/"]
)
async def test_a_slash_at_the_end_changes_nothing(
    path: str, served: Served, http: aiohttp.ClientSession
) -> None:
    response, _ = await ask(http, "GET", served.url + path)

    assert response.status == 200


async def test_a_post_with_a_slash_at_the_end_is_answered(
    served: Served, upstream: FakeUpstream, http: aiohttp.ClientSession
) -> None:
    upstream.reply(text("Hello."))

    response, _ = await ask(http, "POST", f"{served.url}/chat/completions/", json=ASK)

    assert response.status == 200


async def test_a_stream_can_be_resumed_without_the_version(
    served: Served, upstream: FakeUpstream, http: aiohttp.ClientSession
) -> None:
    upstream.reply(text("Hello."))
    response, _ = await ask(http, "POST", f"{served.base_url}/chat/completions", json=ASK)
    turn_id = (await response.json())["id"]

    _, reported = await ask(http, "GET", f"{served.url}/chat/completions/{turn_id}/stream")

    assert reported == (await ask(http, "GET", f"{served.base_url}/chat/completions/{turn_id}/stream/"))[1]
    assert reported.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v0/models"),
        ("GET", "/v1/foo"),
        ("POST", "/v1/foo"),
        ("GET", "/v1"),
        ("GET", "/modelsx"),
        ("POST", "/v1/v1/chat/completions"),
        ("OPTIONS", "/v1/foo"),
    ],
)
async def test_unknown_objects_get_an_error_envelope(
    method: str, path: str, served: Served, http: aiohttp.ClientSession
) -> None:
    response, _ = await ask(http, method, served.url + path)

    assert response.status == 404
    assert (await error_of(response))["message"] == f"Invalid URL ({method} {path})"


# --- methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/models/shop", "/v1/models/nobody", "/health", "/v1/foo"])
async def test_head_is_a_get_without_its_body(path: str, served: Served, http: aiohttp.ClientSession) -> None:
    got, body = await ask(http, "GET", served.url + path)
    head, nothing = await ask(http, "HEAD", served.url + path)

    assert body
    assert nothing == b""
    assert (head.status, head.headers["content-length"], head.content_type) == (
        got.status,
        str(len(body)),
        got.content_type,
    )


async def test_the_head_of_a_stream_ends(
    served: Served, upstream: FakeUpstream, http: aiohttp.ClientSession
) -> None:
    upstream.reply(text("Hello."))
    response, _ = await ask(http, "POST", f"{served.base_url}/chat/completions", json=ASK)
    turn_id = (await response.json())["id"]

    head, nothing = await ask(http, "HEAD", f"{served.base_url}/chat/completions/{turn_id}/stream")

    assert (head.status, head.content_type, nothing) == (200, "text/event-stream", b"")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/models/shop/sales", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/v1/chat/completions/chatcmpl-1/stream", "GET, HEAD, OPTIONS"),
        ("/v1/chat/completions/chatcmpl-1/cancel", "POST, OPTIONS"),
    ],
)
async def test_every_path_reports_its_methods(
    path: str, allowed: str, served: Served, http: aiohttp.ClientSession
) -> None:
    requested, nothing = await ask(http, "OPTIONS", served.url + path)
    refused, _ = await ask(http, "PATCH", served.url + path)

    assert (requested.status, requested.headers["allow"], nothing) == (204, allowed, b"")
    assert (refused.status, refused.headers["allow"]) == (405, allowed)
    assert (await error_of(refused))["code"] == "method_not_supported"


async def test_methods_of_several_routes_are_combined(served: Served, http: aiohttp.ClientSession) -> None:
    assert served.app is not None
    for method in ("POST", "GET", "DELETE"):
        served.app.router.routes.append(Route("/v1/shelf", _broken, methods=[method]))

    refused, _ = await ask(http, "PUT", f"{served.url}/v1/shelf")

    assert refused.headers["allow"] == "GET, HEAD, POST, DELETE, OPTIONS"


# --- pages of this machine -----------------------------------------------------------------------------------


async def _broken(request: Request) -> Response:
    raise RuntimeError("a fault of ours")


def break_something(app: FastAPI | None) -> None:
    assert app is not None
    app.router.routes.append(Route("/v1/broken", _broken))


def assert_readable(response: aiohttp.ClientResponse, origin: str = HERE) -> None:
    """A page of the origin gets to see the answer, and no page ever with credentials."""
    assert response.headers.getall("access-control-allow-origin") == [origin]
    assert "access-control-allow-credentials" not in response.headers
    assert "Origin" in response.headers.getall("vary")


def assert_unreadable(response: aiohttp.ClientResponse) -> None:
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


async def test_pages_of_this_machine_read_answers_and_their_headers(
    served: Served, upstream: FakeUpstream, http: aiohttp.ClientSession
) -> None:
    upstream.reply(text("Hello."), text("Hello."))
    url = f"{served.base_url}/chat/completions"

    plain, _ = await ask(http, "POST", url, origin=HERE, json=ASK)
    streamed, reported = await ask(http, "POST", url, origin=HERE, json={**ASK, "stream": True})

    for response in (plain, streamed):
        assert response.status == 200
        assert_readable(response)
        exposed = response.headers["access-control-expose-headers"].split(", ")
        sent = {name.lower() for name in response.headers if name.lower().startswith(("x-", "openai-"))}
        assert sent - {"x-accel-buffering"} <= set(exposed)
        assert {"retry-after", "retry-after-ms", "x-should-retry", "idempotency-replayed"} <= set(exposed)
    assert reported.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("method", "path", "more", "status"),
    [
        ("POST", "/v1/chat/completions", {"data": b"{"}, 400),
        ("POST", "/v1/chat/completions", {"json": ASK, "headers": {"Authorization": ""}}, 401),
        ("GET", "/v1/models/nobody", {}, 404),
        ("GET", "/v1/foo", {}, 404),
        ("PATCH", "/v1/models", {}, 405),
        ("POST", "/v1/chat/completions", {"data": b"x" * 3000}, 413),
        ("GET", "/v1/broken", {}, 500),
    ],
)
async def test_pages_read_errors_too(
    method: str, path: str, more: dict[str, Any], status: int, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    headers = {"Authorization": "Bearer secret", **more.get("headers", {})}

    async with serve(tmp_path, api_keys="secret", max_body_bytes=2000) as served:
        break_something(served.app)
        response, _ = await ask(http, method, served.url + path, origin=HERE, **{**more, "headers": headers})

    assert response.status == status
    assert_readable(response)
    assert response.headers["x-request-id"].startswith("req_")
    await error_of(response)


async def test_pages_read_the_errors_of_a_model(
    served: Served, upstream: FakeUpstream, http: aiohttp.ClientSession
) -> None:
    upstream.reply(text("Hel", chunks=1).cut(after=2))

    response, reported = await ask(
        http, "POST", f"{served.url}/chat/completions", origin=HERE, json={**ASK, "stream": True}
    )

    assert response.status == 200
    assert_readable(response)
    assert b'"error"' in reported


async def test_a_preflight_needs_no_key(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    pending = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": f"{SDK_HEADERS},x-handoff-events,idempotency-key,x-my-own, bad name",
    }

    async with serve(tmp_path, api_keys="secret") as served:
        url = f"{served.base_url}/chat/completions"
        response, nothing = await ask(http, "OPTIONS", url, origin=HERE, headers=pending)

    assert (response.status, nothing) == (204, b"")
    assert_readable(response)
    allowed = response.headers["access-control-allow-headers"].split(", ")
    assert set(SDK_HEADERS.split(",")) | {"x-handoff-events", "idempotency-key", "x-my-own"} <= set(allowed)
    assert "bad name" not in allowed
    assert {"POST", "GET", "DELETE"} <= set(response.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-private-network" not in response.headers


async def test_a_page_may_ask_to_reach_this_machine(served: Served, http: aiohttp.ClientSession) -> None:
    pending = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Private-Network": "true"}

    response, _ = await ask(http, "OPTIONS", f"{served.base_url}/models", origin=HERE, headers=pending)

    assert response.headers["access-control-allow-private-network"] == "true"


async def test_an_answer_without_an_origin_varies_too(served: Served, http: aiohttp.ClientSession) -> None:
    response, _ = await ask(http, "GET", f"{served.base_url}/models")

    assert_unreadable(response)
    assert "Origin" in response.headers.getall("vary")


# --- pages of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [OTHER_ORIGIN, "null"])
async def test_without_keys_a_foreign_page_is_turned_away_before_it_costs_anything(
    origin: str, served: Served, upstream: FakeUpstream, http: aiohttp.ClientSession
) -> None:
    # A page may send this without asking before: plain text needs no preflight.
    response, _ = await ask(
        http,
        "POST",
        f"{served.base_url}/chat/completions",
        origin=origin,
        json=ASK,
        headers={"Content-Type": "text/plain"},
    )

    assert response.status == 403
    assert_unreadable(response)
    assert (await error_of(response))["code"] == "origin_not_allowed"
    assert upstream.requests == []


async def test_with_keys_a_foreign_page_is_answered_and_reads_nothing(
    tmp_path: Path, upstream: FakeUpstream, http: aiohttp.ClientSession
) -> None:
    upstream.reply(text("Hello."))
    key = {"Authorization": "Bearer secret"}

    async with serve(tmp_path, upstream.base_url, api_keys="secret") as served:
        url = f"{served.base_url}/chat/completions"
        answered, _ = await ask(http, "POST", url, origin=OTHER_ORIGIN, json=ASK, headers=key)
        stranger, _ = await ask(http, "POST", url, origin=OTHER_ORIGIN, json=ASK)
        preflight, _ = await ask(
            http, "OPTIONS", url, origin=OTHER_ORIGIN, headers={"Access-Control-Request-Method": "POST"}
        )

    assert (answered.status, stranger.status, preflight.status) == (200, 401, 403)
    for response in (answered, stranger, preflight):
        assert_unreadable(response)


@pytest.mark.parametrize("origins", ["https://chat.example.com,null", "*"])
async def test_configured_pages_are_as_welcome_as_those_of_this_machine(
    origins: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    async with serve(tmp_path, cors_origins=origins) as served:
        for origin in ("https://chat.example.com", "null", HERE):
            response, _ = await ask(http, "GET", f"{served.base_url}/models", origin=origin)

            assert response.status == 200
            assert_readable(response, origin)


# --- names of the server -------------------------------------------------------------------------------------


async def test_a_name_that_was_bound_to_this_machine_from_outside_is_not_answered(
    served: Served, upstream: FakeUpstream, http: aiohttp.ClientSession
) -> None:
    # The page's own origin and the name it calls are the same, so only the name gives it away.
    response, _ = await ask(
        http,
        "POST",
        f"{served.base_url}/chat/completions",
        origin="http://rebound.example:8000",
        json=ASK,
        headers={"Host": "rebound.example:8000"},
    )

    assert response.status == 403
    assert_unreadable(response)
    assert (await error_of(response))["code"] == "host_not_allowed"
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "host.docker.internal:8000"),
        ({}, "localhost"),
        ({"allowed_hosts": "chat.example.com"}, "chat.example.com"),
        ({"allowed_hosts": "*"}, "chat.example.com"),
        ({"api_keys": "secret"}, "chat.example.com"),
    ],
    ids=str,
)
async def test_names_that_are_its_own_are_answered(
    settings: dict[str, str], host: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    async with serve(tmp_path, **settings) as served:
        response, _ = await ask(
            http,
            "GET",
            f"{served.base_url}/models",
            headers={"Host": host, "Authorization": "Bearer secret"},
        )

    assert response.status == 200
