"""The page shows what delegates do under their call, and compactions as a line of the answer."""

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
  default: {{model: test-model, base_url: "{upstream}", api_key: k, context_window: 2000}}
teams:
  desk:
    entry: lead
    agents:
      lead: {{instructions: You are lead., delegates: [{{to: researcher}}]}}
      researcher: {{instructions: You are researcher., tools: [calculate]}}
"""


def answer(received: Received) -> Reply:
    messages = received.body["messages"]
    results = [message for message in messages if message["role"] == "tool"]
    system = messages[0]["content"]
    if system.startswith("You are researcher."):
        return text("It is 42.") if results else calls(("calculate", {"expression": "6*7"}))
    if system.startswith("You are lead.") and messages[-1]["content"] == "6*7?":
        return calls(("ask_researcher", {"task": "6*7"}))
    return text("A short answer.")


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser, tmp_path: Path) -> AsyncIterator[Visitor]:
    async with FakeUpstream(answer=answer) as upstream:
        (tmp_path / "team.yaml").write_text(TEAM.format(upstream=upstream.base_url))
        async with (
            serve(tmp_path, teams=tmp_path / "team.yaml") as served,
            visit(browser, served.url) as visitor,
        ):
            await visitor.open()
            yield visitor


async def test_the_call_of_a_delegate_shows_what_it_does(visitor: Visitor) -> None:
    await visitor.ask("6*7?")

    row = visitor.answer.locator("details.tool").first
    await expect(row.locator("summary code")).to_have_text("ask_researcher")
    await row.locator("summary").click()
    await expect(row.locator("p.part")).to_have_text(
        ["Arguments", "researcher calls calculate", "researcher writes", "Result"]
    )
    await expect(row.locator("pre").nth(1)).to_have_text("It is 42.")
    await visitor.expect_answers(["A short answer."])


async def test_a_compaction_is_a_line_of_the_answer(visitor: Visitor) -> None:
    for number in range(4):
        await visitor.ask(f"Message {number}: {'word ' * 350}", number + 1)

    await expect(
        visitor.page.locator(".note", has_text="Older messages were summarised").first
    ).to_be_visible()
