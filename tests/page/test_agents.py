"""Custom agents on the page."""

from __future__ import annotations

import pytest
from playwright.async_api import Route, expect

from tests.behaviour.chat_client import agent_of
from tests.fakes.upstream import FakeUpstream, text
from tests.page.one_tab import tab_of_module, upstream_of_tab, user_of_tab  # noqa: F401
from tests.page.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def _reject_name(route: Route) -> None:
    await route.fulfill(
        status=400, json={"error": {"message": "This name was just taken.", "code": "name_taken"}}
    )


async def test_agent_can_be_created_edited_and_deleted(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("At your service"))

    await visitor.button("Agents").click()
    form = visitor.page.get_by_role("dialog")
    await form.get_by_role("textbox", name="Name").fill("shop")
    await form.get_by_role("textbox", name="Instructions").fill("You are clerk. Reckon.")
    await form.get_by_role("checkbox", name="calculate").check()
    name = form.get_by_role("textbox", name="Name")
    await form.get_by_role("button", name="Create").click()
    await expect(name).to_have_js_property("validationMessage", "This name is taken.")
    await expect(name).to_be_focused()
    await name.fill("no spaces")
    await form.get_by_role("button", name="Create").click()
    assert await name.evaluate("input => input.validity.patternMismatch")
    # Another client may have taken a name since the page loaded.
    await visitor.page.route("**/v1/agents", _reject_name)
    await name.fill("clerk")
    await form.get_by_role("button", name="Create").click()
    await expect(form.get_by_role("alert")).to_have_text("This name was just taken.")
    await visitor.page.unroute("**/v1/agents")
    await form.get_by_role("button", name="Create").click()

    await expect(visitor.page.locator("#welcome h1")).to_have_text("clerk")
    await visitor.ask("Hello")
    assert agent_of(upstream) == "clerk"
    assert [tool["function"]["name"] for tool in upstream.requests[0].body["tools"]] == ["calculate"]

    await visitor.button("Agents").click()
    await visitor.button("Edit clerk").click()
    await expect(form.get_by_role("textbox", name="Name")).to_be_disabled()
    await form.get_by_role("textbox", name="Description").fill("Does sums")
    seconds = form.get_by_role("spinbutton", name="Timeout (seconds)")
    await expect(seconds).to_have_attribute("max", "600")
    await seconds.fill("20")
    await form.get_by_role("button", name="Save").click()
    await expect(visitor.page.locator("#welcome .lead")).to_have_text("Does sums")
    assert (await visitor.api("/v1/agents/clerk"))["tool_call_timeout"] == 20

    await visitor.button("Agents").click()
    await visitor.button("Delete clerk").click()
    await form.get_by_role("button", name="Delete").click()
    await expect(visitor.page.locator("#team option", has_text="clerk")).to_have_count(0)


async def test_an_edit_keeps_what_the_dialog_does_not_show(visitor: Visitor) -> None:
    create = """async bodies => {
        const key = sessionStorage.getItem("handoff.key");
        for (const body of bodies) {
            const headers = { "Content-Type": "application/json", Authorization: `Bearer ${key}` };
            await fetch("/v1/agents", { method: "POST", headers, body: JSON.stringify(body) });
        }
    }"""
    hidden = {
        "display_name": "The clerk",
        "handoffs": [{"to": "teller", "when": "it is about money", "history": "none", "return": True}],
        "delegates": [{"to": "teller", "when": "", "seconds": 60.0}],
    }
    teller = {"name": "teller", "instructions": "You are teller. Pay."}
    await visitor.page.evaluate(
        create, [teller, {"name": "clerk", "instructions": "You are clerk.", **hidden}]
    )
    await visitor.page.reload()
    await visitor.button("Agents").click()
    await visitor.button("Edit clerk").click()
    form = visitor.page.get_by_role("dialog")
    await form.get_by_role("textbox", name="Instructions").fill("You are another.")
    await form.get_by_role("button", name="Save").click()
    await expect(form).to_have_count(0)

    agent = await visitor.api("/v1/agents/clerk")
    assert agent["instructions"] == "You are another."
    assert {name: agent[name] for name in hidden} == hidden
