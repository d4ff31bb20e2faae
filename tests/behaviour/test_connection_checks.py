"""Checks whether the models of a team answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2

from tests.fakes.upstream import FakeUpstream, error, hang, text
from tests.server import Served, serve

TEAMS = """\
models:
  good: {{model: good-model, base_url: "{upstream}", api_key: upstream-key, price: {{prompt: 1, completion: 1}}}}
  bad: {{model: bad-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  shop:
    entry: triage
    agents:
      triage:
        model: good
        instructions: You are triage.
        parameters: {{temperature: 0.2, max_tokens: 900}}
        handoffs: [{{to: sales, when: they buy}}, {{to: repairs, when: it broke}}]
      sales: {{model: good, instructions: You are sales.}}
      repairs: {{model: bad, instructions: You are repairs.{fallbacks}}}
"""


async def check(served: Served, model: Any, *, key: str = "test-key") -> httpx2.Response:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=20) as http:
        return await http.post(f"{served.base_url}/connection_checks", json={"model": model})


def team_file(folder: Path, upstream: FakeUpstream, fallbacks: str = "") -> Path:
    file = folder / "checked.yaml"
    file.write_text(TEAMS.format(upstream=upstream.base_url, fallbacks=fallbacks))
    return file


async def test_each_model_of_a_team_is_called_once(tmp_path: Path, upstream: FakeUpstream) -> None:
    by_model = {"good-model": text("OK"), "bad-model": error(401, message="Incorrect API key: upstream-key")}
    async with (
        FakeUpstream(answer=lambda request: by_model[request.body["model"]]) as provider,
        serve(tmp_path, upstream.base_url, teams=team_file(tmp_path, provider)) as served,
    ):
        response = await check(served, "shop")

        assert response.status_code == 200
        body = response.json()
        seconds = [one.pop("seconds") for one in body["data"]]
        assert all(0 <= one < 20 for one in seconds)
        assert body == {
            "object": "connection_check",
            "model": "shop",
            "demo": False,
            "status": "failed",
            "data": [
                {"model": "good-model", "agents": ["triage", "sales"], "status": "ok"},
                {
                    "model": "bad-model",
                    "agents": ["repairs"],
                    "status": "failed",
                    "error": {
                        "message": "The provider of the model behind this team rejected the proxy's credentials.",
                        "type": "upstream_error",
                        "param": None,
                        "code": "upstream_auth_failed",
                    },
                },
            ],
        }
        assert "upstream-key" not in response.text
        sent = {request.body["model"]: request.body for request in provider.requests}
        assert sent["good-model"]["messages"] == [{"role": "user", "content": "Reply with OK."}]
        assert sent["good-model"]["temperature"] == 0.2
        assert sent["good-model"].get("max_completion_tokens", sent["good-model"].get("max_tokens")) == 16
        assert "tools" not in sent["good-model"]


async def test_one_agent_is_checked_alone_and_a_fallback_is_named(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    by_model = {"good-model": text("OK"), "bad-model": error(401)}
    async with (
        FakeUpstream(answer=lambda request: by_model[request.body["model"]]) as provider,
        serve(
            tmp_path, upstream.base_url, teams=team_file(tmp_path, provider, ", fallbacks: [good]")
        ) as served,
    ):
        body = (await check(served, "shop/repairs")).json()

    (one,) = body["data"]
    assert (body["status"], one["model"], one["agents"]) == ("ok", "bad-model", ["repairs"])
    assert (one["status"], one["answered_by"]) == ("ok", "good-model")


async def test_check_counts_requests_and_tokens(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("OK"))
    async with serve(tmp_path, upstream.base_url, requests_per_minute=1) as served:
        first, second = await check(served, "shop"), await check(served, "shop")
        other = await check(served, "shop/none", key="other-key")
    assert (first.status_code, second.status_code, other.status_code) == (200, 429, 404)
    assert first.headers["x-ratelimit-remaining-requests"] == "0"

    upstream.reply(text("OK"))
    async with serve(tmp_path, upstream.base_url, tokens_per_minute=1) as served:
        assert (await check(served, "shop")).status_code == 200
        assert (await check(served, "shop")).status_code == 429


async def test_check_needs_a_key_and_a_known_model(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served:
        assert (await check(served, "shop")).status_code == 401
        for model, status in (("shop/side", 404), ("nothing", 404), ("", 400), (3, 400)):
            response = await check(served, model, key="secret")
            assert (response.status_code, set(response.json()["error"])) == (
                status,
                {"message", "type", "param", "code"},
            ), model
    assert upstream.requests == []


async def test_demonstration_reports_itself(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        body = (await check(served, "acme-support")).json()

    assert (body["demo"], body["status"]) == (True, "ok")
    assert [one["model"] for one in body["data"]] == ["demo"]


async def test_model_that_does_not_answer_is_reported_after_the_time_limit(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())
    async with serve(tmp_path, upstream.base_url) as served:
        served.services.connection_checks.time_limit = 0.05
        body = (await check(served, "shop")).json()

        assert [one["error"]["code"] for one in body["data"]] == ["upstream_timeout"]
        await upstream.requests[0].closed()


async def test_custom_agent_can_be_checked_by_its_owner(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("OK"))
    async with serve(tmp_path, upstream.base_url, agents_over_http=True) as served:
        async with httpx2.AsyncClient(headers={"Authorization": "Bearer test-key"}) as http:
            agent = {"name": "clerk", "instructions": "Help.", "model": "default"}
            assert (await http.post(f"{served.base_url}/agents", json=agent)).status_code == 200
        own, others = await check(served, "clerk"), await check(served, "clerk", key="other-key")

    assert own.json()["data"][0]["agents"] == ["clerk"]
    assert others.status_code == 404
