"""Every path that is served, with every method, odd ids, queries and bodies: answered, or refused in the envelope."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.behaviour.raw_http import Wire, check_refusal
from tests.fakes.upstream import FakeUpstream
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
LONG = "y" * 3000
IDS = ("nobody", "chatcmpl-" + "0" * 32, "%00", "%ff%2F..", "a%20b%E2%80%A8", LONG)
QUERIES = (
    "limit=0",
    "limit=" + "9" * 500,
    "order=%ff",
    "after=%00",
    "after=" + LONG,
    "include[]=x",
    "metadata[%00]=x",
    "stream=maybe",
    "stream=true&starting_after=-1",
    "starting_after=1e9",
    "types=poem",
    "&&=&%",
)
BODIES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"metadata": {"a": 1}}',
    b'{"items": [{"\\u0000": 1}]}',
    b"[" * 9000,
)
INTERNALS = re.compile(
    r"Traceback|site-packages|msgspec|sqlalchemy|starlette|fastapi|pydantic|\.py\b", re.IGNORECASE
)


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(open_shop: tuple[Served, FakeUpstream]) -> AsyncIterator[Wire]:
    async with Wire(open_shop[0]) as wire:
        yield wire


def paths(served: Served) -> Iterator[str]:
    """Those of the API, with their parameters in braces: of the framework's routes, and of the plain ones."""
    assert served.app is not None
    found = {*served.app.openapi()["paths"], *(str(getattr(one, "path", "")) for one in served.app.routes)}
    return (re.sub(r":path(?=})", "", path) for path in sorted(found) if path.startswith("/v1/"))


def filled(path: str, word: str) -> str:
    return re.sub(r"{[^}]*}", lambda _: word, path)


async def status_of(wire: Wire, method: str, path: str, body: bytes = b"") -> int:
    """Send the request, check the form of the response, and return its status."""
    answer = await wire.http.request(method, path, content=body)

    about = (method, path[:100], body[:50], answer.status_code, answer.text[:300])
    assert answer.status_code in (200, 204, 400, 404, 405), about
    assert answer.headers["x-request-id"].startswith("req_"), about
    if method == "HEAD":
        assert answer.content == b"", about
    elif answer.status_code >= 400:
        check_refusal(answer, answer.status_code)
        assert not INTERNALS.search(answer.text), about
        assert LONG not in answer.text, about
    if answer.status_code == 405:
        assert method not in answer.headers["allow"].split(", "), about
    return answer.status_code


async def test_every_method_of_every_path_has_a_response(served: Served, wire: Wire) -> None:
    found = {
        (path, method): await status_of(wire, method, served.url + filled(path, IDS[number % len(IDS)]))
        for path in paths(served)
        for number, method in enumerate(METHODS)
    }

    assert found["/v1/models", "GET"] == 200
    assert found["/v1/conversations", "POST"] == 200
    assert found["/v1/conversations/{conversation_id}/items/{item_id}", "GET"] == 404
    assert {status for (_, method), status in found.items() if method == "BREW"} == {400}


async def test_unknown_ids_are_404_on_every_path(served: Served, wire: Wire) -> None:
    found = {
        path: {await status_of(wire, "GET", served.url + filled(path, word)) for word in IDS}
        for path in paths(served)
        if "{" in path
    }

    only_post = {path for path, statuses in found.items() if statuses != {404}}
    assert all(path.endswith("/cancel") and found[path] == {404, 405} for path in only_post)
    assert found["/v1/responses/{response_id}"] == {404}


# Each path is tried with a third of them, so that every one meets paths of every kind.


async def test_every_path_accepts_or_rejects_odd_queries(served: Served, wire: Wire) -> None:
    found = {
        (path, query): await status_of(wire, "GET", f"{served.url}{filled(path, 'nobody')}?{query}")
        for number, path in enumerate(paths(served))
        for query in QUERIES[number % 3 :: 3]
    }

    assert {query for _, query in found} == set(QUERIES)
    assert {status for (path, _), status in found.items() if path == "/v1/chat/completions"} == {200, 400}


async def test_every_path_accepts_or_rejects_odd_bodies(served: Served, wire: Wire) -> None:
    found = {
        (path, body): await status_of(wire, "POST", served.url + filled(path, "nobody"), body)
        for number, path in enumerate(paths(served))
        for body in BODIES[number % 3 :: 3]
    }

    assert {body for _, body in found} == set(BODIES)
    assert {status for (path, _), status in found.items() if path == "/v1/chat/completions"} == {400}
