"""The description of the API, as programs read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.fakes.upstream import FakeUpstream
from tests.server import Served, serve

LEGACY = {"/agents": {"get"}, "/agents/{agent_name}": {"post"}, "/chat/completions": {"post"}}
"""Legacy paths that are paths of the current API too, without ``/v1``."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


def inside(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from inside(inner)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(open_shop: tuple[Served, FakeUpstream]) -> dict[str, Any]:
    async with httpx2.AsyncClient(base_url=open_shop[0].url) as client:
        answer = await client.get("/openapi.json")
        assert (await client.get("/openapi.json")).json() == answer.json()
    return dict(answer.json())


async def test_every_route_is_described_those_too_that_the_framework_does_not_know(
    open_shop: tuple[Served, FakeUpstream], document: dict[str, Any]
) -> None:
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["summary"] == "Create a completion of a team or of a passthrough model"
    assert list(chat["responses"]["200"]["content"]) == ["application/json", "text/event-stream"]
    assert document["paths"]["/v1/responses/{response_id}"].keys() == {"get", "delete"}
    assert document["paths"]["/v1/turns/{turn_id}/events"]["get"]["parameters"][0]["name"] == "turn_id"

    async with httpx2.AsyncClient(base_url=open_shop[0].url) as client:
        for path, operations in document["paths"].items():
            reported = await client.options(re.sub("{.*?}", "x", path))
            allowed = {*reported.headers["allow"].split(", ")} - {"HEAD", "OPTIONS"}
            described = {*map(str.upper, operations)}
            # A path without /v1 serves also what /v1 serves there, and these two are also valid ids of a response.
            has_more = operations.keys() & LEGACY.get(path, ()) or path in (
                "/v1/responses/compact",
                "/v1/responses/input_tokens",
            )
            assert described <= allowed if has_more else described == allowed


async def test_body_schemas_match_the_decoders(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    requested = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"][
        "application/json"
    ]

    assert requested["schema"] == {"$ref": "#/components/schemas/ChatBody"}
    assert schemas["ChatBody"]["required"] == ["model", "messages"]
    assert {"type": "integer", "minimum": 1, "maximum": 128} in schemas["ChatBody"]["properties"]["n"][
        "anyOf"
    ]
    assert schemas["FunctionBody"]["properties"]["name"]["pattern"] == "^[a-zA-Z0-9_-]+$"
    for one in inside(document):
        if isinstance(one, dict) and isinstance(one.get("$ref"), str):
            assert one["$ref"].removeprefix("#/components/schemas/") in schemas
        if isinstance(one, dict) and isinstance(one.get("pattern"), str):
            assert r"\Z" not in one["pattern"]


async def test_errors_use_the_envelope_and_not_the_format_of_fastapi(
    document: dict[str, Any],
) -> None:
    envelope = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert operation["responses"]["default"]["content"] == envelope
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_where_a_key_is_needed_the_description_needs_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with (
        serve(tmp_path_factory.mktemp("keyed"), api_keys=("secret",)) as served,
        httpx2.AsyncClient(base_url=served.url) as client,
    ):
        refused = await client.get("/openapi.json")
        reported = await client.get("/openapi.json", headers={"Authorization": "Bearer secret"})

    assert (refused.status_code, reported.status_code) == (401, 200)
    assert reported.json()["openapi"].startswith("3.")


async def test_legacy_endpoints_are_described_with_their_bodies(document: dict[str, Any]) -> None:
    legacy = {
        (method, path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation.get("tags") == ["legacy"]
    }
    completions = document["paths"]["/chat/completions"]["post"]["requestBody"]["content"]["application/json"]

    assert legacy == {
        ("post", "/chat/completions"),
        ("post", "/chat"),
        ("post", "/chat/stream"),
        ("post", "/ask-stream"),
        ("get", "/ask-stream/{turn_id}"),
        ("get", "/test-stream"),
        ("get", "/agents"),
        ("post", "/agents/{agent_name}"),
    }
    assert [one["$ref"].rpartition("/")[2] for one in completions["schema"]["anyOf"]] == [
        "NewMessageBody",
        "SourcesBody",
        "ChatBody",
    ]
    assert list(document["paths"]["/ask-stream"]["post"]["responses"]["200"]["content"]) == [
        "text/event-stream"
    ]


async def test_bodies_of_custom_agents_are_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/teams/{name}"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert body == {"$ref": "#/components/schemas/NewTeam"}
    assert {"handoffs", "delegates"} <= schemas["NewAgent"]["properties"].keys()
    assert {"history", "input", "return", "tool"} <= schemas["NewHandoff"]["properties"].keys()
    assert {"context", "seconds", "limits", "tool"} <= schemas["NewDelegate"]["properties"].keys()
