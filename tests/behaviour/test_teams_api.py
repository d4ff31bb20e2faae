"""Teams of team files over HTTP: ``GET /v1/teams/{name}`` and the examples of ``/v1/models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fakes.upstream import FakeUpstream
from tests.server import TEAM_FILE, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def _get(url: str, path: str, **headers: str) -> tuple[int, Any]:
    async with httpx2.AsyncClient(base_url=url) as http:
        response = await http.get(path, headers=headers)
        return response.status_code, response.json()


async def test_team_of_a_file_has_its_agents_and_handoffs(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url) as served:
        status, team = await _get(served.url, "/v1/teams/shop")

    assert (status, team["entry"], team["is_editable"]) == (200, "triage", False)
    assert list(team["agents"]) == ["triage", "sales", "repairs"]
    assert team["agents"]["sales"] == {
        "description": "",
        "tools": ["execute_order"],
        "handoffs": [{"to": "triage", "when": "anything else"}],
        "instructions": "You are sales.",
        "model": "default",
    }


async def test_instructions_are_hidden_without_handoff_details(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url, handoff_details=False) as served:
        _, team = await _get(served.url, "/v1/teams/shop")

    assert set(team["agents"]["sales"]) == {"description", "tools", "handoffs"}


async def test_team_of_a_file_needs_a_key_where_keys_are_required(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served:
        refused, _ = await _get(served.url, "/v1/teams/shop")
        allowed, _ = await _get(served.url, "/v1/teams/shop", Authorization="Bearer secret")

    assert (refused, allowed) == (401, 200)


async def test_examples_of_a_team_are_listed_with_its_model(tmp_path: Path, upstream: FakeUpstream) -> None:
    file = tmp_path / "teams-with-examples.yaml"
    teams = TEAM_FILE.format(upstream=upstream.base_url)
    file.write_text(
        teams.replace("    entry: triage\n", '    entry: triage\n    examples: ["A rocket, please"]\n')
    )
    async with serve(tmp_path, upstream.base_url, teams=file) as served:
        _, models = await _get(served.url, "/v1/models")

    by_id = {model["id"]: model["handoff"] for model in models["data"]}
    assert by_id["shop"]["examples"] == ["A rocket, please"]
    assert "examples" not in by_id["shop/sales"]
    assert "demo" not in by_id["shop"]


async def test_demonstration_is_marked_in_the_model_list(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        _, models = await _get(served.url, "/v1/models")

    assert models["data"][0]["handoff"]["demo"] is True
