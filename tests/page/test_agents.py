"""Making agents on the page."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.behaviour.asking import agent_of
from tests.fakes.upstream import FakeUpstream, text
from tests.page.visiting import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_agent_is_made_and_talked_to(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("At your service"))

    await visitor.button("New agent").click()
    form = visitor.page.get_by_role("dialog")
    await form.get_by_role("textbox", name="Name").fill("shop")
    await form.get_by_role("textbox", name="Instructions").fill("You are clerk. Reckon.")
    await form.get_by_role("checkbox", name="calculate").check()
    await form.get_by_role("button", name="Create").click()
    await expect(form.get_by_role("alert")).to_contain_text("'shop' is the name of something else here")
    await form.get_by_role("textbox", name="Name").fill("clerk")
    await form.get_by_role("button", name="Create").click()

    await expect(visitor.page.locator("#welcome h1")).to_have_text("clerk")
    await visitor.asks("Hello")
    assert agent_of(upstream) == "clerk"
    assert [tool["function"]["name"] for tool in upstream.requests[0].body["tools"]] == ["calculate"]
