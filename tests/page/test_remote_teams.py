"""The page shows what happens in a team of another handoff-proxy as part of the answer of that agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.fakes.upstream import FakeUpstream, Received, Reply, calls, text
from tests.page.visitor import Visitor, visit
from tests.server import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k}}
teams:
  desk:
    remote: {{base_url: "{far}", model: shop, api_key: test-key}}
"""


def answer(received: Received) -> Reply:
    messages = received.body["messages"]
    if messages[0]["content"].startswith("You are triage."):
        return calls(("transfer_to_repairs", {"reason": "broken"}))
    results = [message for message in messages if message["role"] == "tool"]
    return text("Found it.") if len(results) > 1 else calls(("look_up_item", {"search_query": "rocket"}))


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser, tmp_path: Path) -> AsyncIterator[Visitor]:
    for name in ("far", "near"):
        (tmp_path / name).mkdir()
    async with FakeUpstream(answer=answer) as upstream, serve(tmp_path / "far", upstream.base_url) as far:
        file = tmp_path / "near" / "team.yaml"
        file.write_text(TEAM.format(upstream=upstream.base_url, far=far.base_url))
        async with serve(tmp_path / "near", teams=file) as served, visit(browser, served.url) as visitor:
            await visitor.open()
            yield visitor


async def test_handoffs_and_calls_of_the_team_are_part_of_the_answer(visitor: Visitor) -> None:
    await visitor.ask("My rocket is broken.")

    await visitor.expect_answers(["Found it."])
    await expect(visitor.answer.locator(".note")).to_have_text("triage hands off to repairs")
    row = visitor.answer.locator("details.tool").first
    await expect(row.locator("summary code")).to_have_text("repairs: look_up_item")
    await expect(row).to_have_class("tool done")
    await expect(visitor.answer.locator(".agent-name")).to_have_text("desk")
