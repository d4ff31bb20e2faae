"""Every route that can start a model call or a tool counts against the limits, and no other does.

A new route fails here until it is in one of the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.routing import BaseRoute, WebSocketRoute

from proxy.routes.middleware.rate_limit import APPROVALS, COUNTED_PATHS
from tests.behaviour.bank import TEAM, Customer
from tests.behaviour.websocket_client import connected, start
from tests.fakes.upstream import FakeUpstream, hang, text
from tests.server import Served, serve

COUNTED = {
    "POST /v1/chat/completions",
    "POST /v1/responses",
    "POST /v1/responses/compact",
    "POST /v1/connection_checks",
    "POST /v1/approvals",
    "POST /v1/approvals/{approval_id}",
    "POST /chat/completions",
    "POST /chat",
    "POST /chat/stream",
    "POST /ask-stream",
}
HELLO = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"model": "shop", "messages": HELLO},
    "/v1/responses": {"model": "shop", "input": "Hi"},
    "/v1/responses/compact": {"model": "shop", "input": "Hi"},
    "/v1/connection_checks": {"model": "shop"},
    "/chat/completions": {"message": "Hi"},
    "/chat": {"message": "Hi"},
    "/chat/stream": {"message": "Hi"},
    "/ask-stream": {"question": "Hi"},
}
"""A body that causes a model call, by path."""
NOT_COUNTED = {
    "POST /agents/{agent_name}",
    "POST /v1/agents",
    "POST /v1/agents/{name}",
    "POST /v1/teams",
    "POST /v1/teams/{name}",
    "POST /v1/responses/input_tokens",
    "POST /v1/responses/{response_id}/cancel",
    "POST /v1/chat/completions/{completion_id}",
    "POST /v1/chat/completions/{completion_id}/cancel",
    "POST /v1/turns/{completion_id}/cancel",
    "POST /v1/conversations",
    "POST /v1/conversations/{conversation_id}",
    "POST /v1/conversations/{conversation_id}/items",
    "DELETE /v1/agents/{name}",
    "DELETE /v1/chat/completions/{completion_id}",
    "DELETE /v1/conversations/{conversation_id}",
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}",
    "DELETE /v1/responses/{response_id}",
    "DELETE /v1/teams/{name}",
    "GET /",
    "GET /agents",
    "GET /client",
    "GET /docs",
    "GET /health",
    "GET /health/ready",
    "GET /metrics",
    "GET /openapi.json",
    "GET /redoc",
    "GET /test-stream",
    "GET /ask-stream/{turn_id}",
    "GET /v1/agents",
    "GET /v1/agents/{name}",
    "GET /v1/approvals",
    "GET /v1/approvals/{approval_id}",
    "GET /v1/chat/completions",
    "GET /v1/chat/completions/{completion_id}",
    "GET /v1/chat/completions/{completion_id}/messages",
    "GET /v1/chat/completions/{completion_id}/stream",
    "GET /v1/conversations",
    "GET /v1/conversations/{conversation_id}",
    "GET /v1/conversations/{conversation_id}/events",
    "GET /v1/conversations/{conversation_id}/items",
    "GET /v1/conversations/{conversation_id}/items/{item_id}",
    "GET /v1/conversations/{conversation_id}/turns",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/responses/{response_id}",
    "GET /v1/responses/{response_id}/input_items",
    "GET /v1/teams",
    "GET /v1/teams/{name}",
    "GET /v1/turns/{turn_id}",
    "GET /v1/turns/{turn_id}/events",
}
START_MESSAGES: dict[str, Any] = {
    "/v1/ws": start(),
    "/ws": {"type": "chat", "data": {"message": "Hi"}},
}
"""By WebSocket, the message that starts a turn."""


def flat(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """All routes, also those of included routers and without an entry in the description of the API."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from flat(included.routes)


def routes_of(served: Served) -> set[str]:
    assert served.app is not None
    return {
        f"{method} {route.path.replace(':path', '')}"  # type: ignore[attr-defined]
        for route in flat(served.app.routes)
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }


async def statuses(served: Served, route: str) -> list[int]:
    """Of two requests with one key that are not valid."""
    method, path = route.split(" ")
    url = served.url + path.replace("{", "").replace("}", "")
    headers = {"Authorization": f"Bearer for-{route.replace(' ', '-')}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20, verify=False) as client:
        return [(await client.request(method, url, content=b"[]")).status_code for _ in range(2)]


async def test_every_route_that_starts_a_turn_is_counted(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(
        tmp_path, upstream.base_url, requests_per_minute=1, agents_over_http=True, metrics=True
    ) as served:
        assert served.app is not None
        assert routes_of(served) == COUNTED | NOT_COUNTED
        others = [route for route in flat(served.app.routes) if not getattr(route, "methods", None)]
        sockets = {route.path for route in others if isinstance(route, WebSocketRoute)}
        assert sockets == set(START_MESSAGES)
        static = {route.path for route in others if not isinstance(route, WebSocketRoute)}  # type: ignore[attr-defined]
        assert static == {"/page"}
        for route in sorted(COUNTED):
            first, second = await statuses(served, route)
            assert first != 429, route
            assert second == 429, route
        for route in sorted(NOT_COUNTED):
            assert 429 not in await statuses(served, route), route


def test_the_paths_of_the_limiter_are_the_counted_routes() -> None:
    paths = {*COUNTED_PATHS, APPROVALS, f"{APPROVALS}/{{approval_id}}"}
    assert {f"POST {path}" for path in paths} == COUNTED


@pytest.mark.parametrize("path", sorted(COUNTED_PATHS))
async def test_the_request_over_the_limit_makes_no_model_call(
    tmp_path: Path, upstream: FakeUpstream, path: str
) -> None:
    upstream.reply(text("Hello"))
    async with (
        serve(tmp_path, upstream.base_url, requests_per_minute=1) as served,
        httpx2.AsyncClient(headers={"Authorization": "Bearer k"}, timeout=20) as client,
    ):
        admitted = await client.post(served.url + path, json=BODIES[path])
        refused = await client.post(served.url + path, json=BODIES[path])

    assert (admitted.status_code, refused.status_code) == (200, 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("path", START_MESSAGES)
async def test_every_message_that_starts_a_turn_is_counted(
    tmp_path: Path, upstream: FakeUpstream, path: str
) -> None:
    upstream.reply(text("Hello"))
    async with (
        serve(tmp_path, upstream.base_url, requests_per_minute=1) as served,
        connected(served, path) as client,
    ):
        await client.send(START_MESSAGES[path])
        await client.until("turn.completed", "chat_complete")
        await client.send(START_MESSAGES[path])
        (refused,) = await client.until("error")
    error = refused.get("error") or refused["data"]
    assert error["code"] == "rate_limit_exceeded"
    assert len(upstream.requests) == 1


async def test_a_decision_over_the_limit_is_not_taken(tmp_path: Path, upstream: FakeUpstream) -> None:
    teams = tmp_path / "bank.yaml"
    teams.write_text(TEAM.format(upstream=upstream.base_url))
    async with serve(tmp_path, teams=teams, requests_per_minute=1) as served:
        customer = Customer(served, upstream)
        await customer.asks_to_pay(7)
        (approval,) = await customer.approvals("pending")

        for path, body in (
            (f"/approvals/{approval['id']}", {"decision": "approve"}),
            ("/approvals", {"approval_id": approval["id"], "decision": "approve"}),
        ):
            refused = await customer.http("POST", path, json=body)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"

        assert await customer.approvals("pending") == [approval]
        assert customer.paid() == []


@pytest.mark.parametrize("path", ["/v1/approvals", "/v1/approvals/appr_1"])
async def test_a_decision_is_refused_when_as_many_turns_run_as_may(
    tmp_path: Path, upstream: FakeUpstream, path: str
) -> None:
    upstream.reply(hang())
    async with (
        serve(tmp_path, upstream.base_url, max_running_turns=1, shutdown_grace=0) as served,
        connected(served, "/v1/ws") as client,
        httpx2.AsyncClient(headers={"Authorization": "Bearer other"}) as http,
    ):
        await client.send(start())
        await upstream.received(1)
        refused = await http.post(served.url + path, json={"decision": "approve"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_overloaded")
