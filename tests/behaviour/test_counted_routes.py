"""Every route that can start a model call or a tool counts against the limits, and no other does."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from starlette.routing import WebSocketRoute

from tests.behaviour.banking import TEAM, Customer
from tests.behaviour.socketing import connected, start
from tests.fakes.upstream import FakeUpstream, hang
from tests.serving import Served, serve

COUNTED = {
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/connection_checks",
    "/v1/approvals",
    "/v1/approvals/{approval_id}",
    "/chat/completions",
    "/chat",
    "/chat/stream",
    "/ask-stream",
}
NOT_COUNTED = {
    "/agents/{agent_name}",
    "/v1/agents",
    "/v1/agents/{name}",
    "/v1/teams",
    "/v1/teams/{name}",
    "/v1/responses/{response_id}/cancel",
    "/v1/chat/completions/{completion_id}",
    "/v1/chat/completions/{completion_id}/cancel",
    "/v1/turns/{completion_id}/cancel",
    "/v1/conversations",
    "/v1/conversations/{conversation_id}",
    "/v1/conversations/{conversation_id}/items",
}
COUNTED_SOCKETS = {"/v1/ws", "/ws"}


def posts(served: Served) -> set[str]:
    """The paths of all routes that take a POST."""
    assert served.app is not None
    found = {path for path, methods in served.app.openapi()["paths"].items() if "post" in methods}
    for plain in served.app.routes:
        if "POST" in (getattr(plain, "methods", None) or ()):
            found.add(plain.path)  # type: ignore[attr-defined]
    return found


async def statuses(served: Served, path: str) -> list[int]:
    """Of two requests with one key that are not valid."""
    url = served.url + path.replace("{", "").replace("}", "")
    headers = {"Authorization": f"Bearer for-{path}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20) as client:
        return [(await client.post(url, content=b"[]")).status_code for _ in range(2)]


async def test_every_route_that_starts_a_turn_is_counted(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, requests_per_minute=1, agents_over_http=True) as served:
        assert posts(served) == COUNTED | NOT_COUNTED
        assert served.app is not None
        sockets = {route.path for route in served.app.routes if isinstance(route, WebSocketRoute)}
        assert sockets == COUNTED_SOCKETS
        for path in sorted(COUNTED):
            first, second = await statuses(served, path)
            assert first != 429, path
            assert second == 429, path
        for path in sorted(NOT_COUNTED):
            assert 429 not in await statuses(served, path), path


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
        serve(tmp_path, upstream.base_url, max_running_turns=1) as served,
        connected(served, "/v1/ws") as client,
        httpx2.AsyncClient(headers={"Authorization": "Bearer other"}) as http,
    ):
        await client.send(start())
        await upstream.received(1)
        refused = await http.post(served.url + path, json={"decision": "approve"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_overloaded")
