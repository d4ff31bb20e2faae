"""Paths of the OpenAI API that are not served do not match ids of other paths."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from tests.behaviour.raw_http import Socket, check_refusal
from tests.fakes.upstream import FakeUpstream
from tests.server import serve

AGENT = {"name": "helper", "instructions": "Help."}


async def test_the_agents_api_of_openai_is_not_the_one_of_this_server(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with (
        serve(tmp_path, upstream.base_url, agents_over_http=True) as served,
        httpx2.AsyncClient(base_url=served.base_url, headers={"Authorization": "Bearer k"}) as http,
    ):
        beta = {"OpenAI-Beta": "assistants=v2, agents=v1"}
        for method, path in (
            ("GET", "/agents"),
            ("POST", "/agents"),
            ("POST", "/agents/sessions"),
            ("GET", "/agents/sessions/one"),
            ("DELETE", "/agents/helper"),
        ):
            answer = await http.request(method, path, headers=beta, json=AGENT)
            reported = check_refusal(answer, 404)
            assert reported["message"] == f"Invalid URL ({method} /v1{path})"
        assert (await http.get("/agents/helper")).status_code == 404

        # Without the header, or with another beta, it is the resource of this server.
        other = {"OpenAI-Beta": "assistants=v2"}
        assert (await http.post("/agents", json=AGENT, headers=other)).status_code == 200
        assert (await http.get("/agents/helper")).json()["name"] == "helper"


@pytest.mark.parametrize("name", ["sessions", "automations", "environments"])
async def test_names_of_its_resources_are_reserved(tmp_path: Path, upstream: FakeUpstream, name: str) -> None:
    async with (
        serve(tmp_path, upstream.base_url, agents_over_http=True) as served,
        httpx2.AsyncClient(base_url=served.url, headers={"Authorization": "Bearer k"}) as http,
    ):
        for path, body in (
            (f"/v1/agents/{name}", {"instructions": "Help."}),
            ("/v1/agents", {**AGENT, "name": name}),
            (f"/agents/{name}", {"instructions": "Help."}),
        ):
            refused = await http.post(path, json=body)
            assert refused.status_code == 400
            reported = refused.json()["error"]
            assert (reported["param"], reported["code"]) == ("name", "invalid_value")
            assert reported["message"] == f"Invalid 'name': '{name}' is reserved."
        assert (await http.get(f"/v1/agents/{name}")).status_code == 404


@pytest.mark.parametrize(("key", "status", "code"), [("right", 404, None), ("wrong", 401, "invalid_api_key")])
async def test_a_websocket_to_a_path_that_does_not_exist_is_refused_in_the_envelope(
    tmp_path: Path, upstream: FakeUpstream, key: str, status: int, code: str | None
) -> None:
    head = (
        f"GET /v1/none HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    )
    async with serve(tmp_path, upstream.base_url, api_keys=("right",)) as served, Socket(served) as socket:
        await socket.send(head.encode())
        reply = await socket.reply()
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (status, code)
