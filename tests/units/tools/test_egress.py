"""The way out for tools: which addresses may be asked, and what becomes of bad answers."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import web

from proxy.errors import ToolError
from proxy.tools.egress import Egress
from proxy.tools.external_service import Service, ServiceFailed
from tests.fakes.services import FakeServices, Handler

REFUSED = "the test is configured with an address that tools must not access"
UNREACHED = "the test could not be reached"
OTHER_ORIGIN = "https://service.example"


@pytest.fixture
async def services() -> AsyncIterator[FakeServices]:
    async with FakeServices() as created:
        yield created


def resolving(*addresses: str) -> Any:
    async def resolve(host: str) -> Sequence[str]:
        return addresses

    return resolve


async def error_message(egress: Egress, base: str) -> str:
    with pytest.raises(ServiceFailed) as raised:
        await egress.get(Service("the test", base), "/thing", {}, dict)
    assert isinstance(raised.value, ToolError)
    return raised.value.message


async def json_thing(request: web.Request) -> web.Response:
    return web.json_response({"host": request.host, "q": request.query.get("q")})


# --- which addresses ---

SPELLINGS_OF_LOOPBACK = [
    "2130706433", "0x7f000001", "0X7F.0.0.1", "0x7f.1", "017700000001", "0177.0.0.1", "127.1", "127.0.1",
    "0", "0x", "127.0.0.1.5", "name.127", "1.2.3.0x4",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS_OF_LOOPBACK)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_numbers_in_the_place_of_a_name_are_refused(scheme: str, host: str) -> None:
    assert await error_message(Egress(resolve=resolving("127.0.0.1")), f"{scheme}://{host}") == REFUSED


NOT_PUBLIC = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254",
    "169.254.1.1", "168.63.129.16", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "2002:7f00:1::",
    "2002:c0a8:101::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "fe80::1", "fe80::1%eth0", "fc00::1",
    "fd00:ec2::254", "ff02::1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_name_that_leads_to_an_address_of_no_public_network_is_refused(address: str) -> None:
    assert await error_message(Egress(resolve=resolving(address)), OTHER_ORIGIN) == REFUSED
    assert await error_message(Egress(resolve=resolving("93.184.215.14", address)), OTHER_ORIGIN) == REFUSED


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "0.0.0.0",
        "100.100.100.200",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_metadata_and_link_local_addresses_are_refused_even_when_they_are_set(
    scheme: str, host: str
) -> None:
    assert await error_message(Egress(), f"{scheme}://{host}") == REFUSED


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
async def test_without_tls_only_own_addresses_are_called(address: str) -> None:
    assert await error_message(Egress(resolve=resolving(address)), "http://service.example") == REFUSED
    literal = f"[{address}]" if ":" in address else address
    assert await error_message(Egress(), f"http://{literal}") == REFUSED


@pytest.mark.parametrize(
    "base",
    [
        "ftp://service.example",
        "file:///etc/passwd",
        "https://user:secret@service.example",
        "https://",
        "https://[",
    ],
)
async def test_an_invalid_url_is_rejected(base: str) -> None:
    assert await error_message(Egress(resolve=resolving("93.184.215.14")), base) == REFUSED


async def test_a_service_of_the_operators_own_network_is_called_by_its_name(services: FakeServices) -> None:
    services.answer("/thing", json_thing)
    requested: list[str] = []

    async def resolve(host: str) -> Sequence[str]:
        requested.append(host)
        return ["127.0.0.1"]

    port = services.url.rpartition(":")[2]
    service = Service("the test", f"http://searxng:{port}/")

    answer = await Egress(resolve=resolve).get(service, "/thing", {"q": "a b&c"}, dict)

    assert answer == {"host": f"searxng:{port}", "q": "a b&c"}
    # Once: a second look could give another address.
    assert requested == ["searxng"]
    assert services.headers[0]["user-agent"].startswith("Mozilla/5.0 (compatible; handoff-proxy/")


async def test_an_unresolvable_name_is_an_error() -> None:
    async def resolve(host: str) -> Sequence[str]:
        raise OSError("no such name")

    assert await error_message(Egress(resolve=resolve), OTHER_ORIGIN) == UNREACHED
    assert await error_message(Egress(resolve=resolving()), OTHER_ORIGIN) == REFUSED


async def test_a_closed_port_is_an_error(services: FakeServices) -> None:
    url = services.url
    await services.__aexit__(None, None, None)
    await services.__aenter__()

    assert await error_message(Egress(), url) == UNREACHED


# --- what comes back ---


def giving(
    body: bytes | str, *, status: int = 200, kind: str = "application/json", **headers: str
) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body.encode() if isinstance(body, str) else body
        return web.Response(body=content, status=status, headers={"Content-Type": kind, **given})

    return answer


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def slow(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b"{")
    await asyncio.Event().wait()
    return response


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


BAD_ANSWERS: dict[str, tuple[Handler, str]] = {
    "redirect-to-private": (
        giving("{}", status=302, Location="http://169.254.169.254/latest/meta-data/"),
        "the test responded with a redirect, which tools do not follow",
    ),
    "redirect-to-itself": (
        giving("{}", status=307, Location="/thing"),
        "the test responded with a redirect, which tools do not follow",
    ),
    "rate-limit": (
        giving("{}", status=429),
        "the test is rate limiting requests; try again in a few minutes",
    ),
    "error": (giving('{"secret": 1}', status=503), "the test responded with an error (status 503)"),
    "no-content": (giving("", status=204), "the test responded with an error (status 204)"),
    "a-page": (giving("<html>", kind="text/html"), "the test did not respond with JSON"),
    "compressed": (
        giving(gzip.compress(b" " * 10_000_000), Content_Encoding="gzip"),
        "the test did not respond with JSON",
    ),
    "half-an-object": (giving('{"a": '), "the test sent a response that could not be decoded"),
    "another-shape": (giving("[1]"), "the test sent a response that could not be decoded"),
    "not-utf-8": (giving(b'{"a": "\xff"}'), "the test sent a response that could not be decoded"),
    "nested-deeply": (giving("[" * 200_000), "the test sent a response that could not be decoded"),
    "huge": (giving(b" " * 300_001), "the test sent more than 300000 bytes"),
    "endless": (endless, "the test sent more than 300000 bytes"),
    "slow": (slow, "the test did not respond within 0.3 seconds"),
    "silent": (silent, "the test did not respond within 0.3 seconds"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_invalid_response_is_described_without_its_content(
    services: FakeServices, name: str
) -> None:
    handler, expected = BAD_ANSWERS[name]
    services.answer("/thing", handler)

    assert await error_message(Egress(time_limit=0.3, max_bytes=300_000), services.url) == expected
    assert len(services.asked) == 1


async def test_a_server_without_http_is_an_error() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert await error_message(Egress(), f"http://127.0.0.1:{port}") == UNREACHED


# --- cached responses ---


async def test_a_response_is_cached_until_it_expires(services: FakeServices) -> None:
    services.answer("/thing", json_thing)
    now = 0.0
    egress = Egress(clock=lambda: now)
    service = Service("the test", services.url)

    async def ask(q: str) -> None:
        assert (await egress.get(service, "/thing", {"q": q}, dict, cache_seconds=60))["q"] == q

    await ask("a")
    await ask("a")
    assert len(services.asked) == 1

    await ask("b")
    assert len(services.asked) == 2

    now = 60.0
    await ask("a")
    assert len(services.asked) == 3


async def test_errors_and_uncached_responses_are_not_stored(services: FakeServices) -> None:
    egress = Egress()
    service = Service("the test", services.url)
    services.answer("/thing", giving("{}", status=500))
    with pytest.raises(ServiceFailed):
        await egress.get(service, "/thing", {}, dict, cache_seconds=60)
    services.answer("/thing", json_thing)

    for number in range(300):
        await egress.get(service, "/thing", {"q": str(number)}, dict, cache_seconds=60)
    await egress.get(service, "/thing", {"q": "299"}, dict, cache_seconds=60)
    await egress.get(service, "/thing", {"q": "0"}, dict, cache_seconds=60)

    assert len(services.asked) == 1 + 300 + 1
