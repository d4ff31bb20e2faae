"""Conversation list, narrow screens and themes."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from playwright.async_api import Browser, expect

from tests.fakes.upstream import FakeUpstream, text
from tests.page.one_tab import tab_of_module, upstream_of_tab, user_of_tab  # noqa: F401
from tests.page.visitor import Visitor, visit
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_conversations_can_be_searched_renamed_and_deleted(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Gladly"), text("Which?"))
    await visitor.ask("I want to catch a roadrunner")
    await visitor.button("New conversation").click()
    await expect(visitor.page.locator("#welcome")).to_be_visible()
    await visitor.ask("Skates, please")
    listed = visitor.page.locator("#conversations li .title")
    await expect(listed).to_have_text(["Skates, please", "I want to catch a roadrunner"])

    await visitor.page.get_by_label("Search conversations").fill("ROADrunner")
    await expect(listed).to_have_text(["I want to catch a roadrunner"])
    await expect(visitor.page.locator("#conversations mark")).to_have_text(["roadrunner"])
    await visitor.page.get_by_label("Search conversations").fill("glad")
    await expect(visitor.page.locator("#conversations .excerpt")).to_have_text(["Gladly"])
    await visitor.page.get_by_label("Search conversations").fill("ROADrunner")
    await expect(visitor.page.locator("#conversations mark")).to_have_text(["roadrunner"])
    await visitor.page.locator("#conversations a").click()
    await expect(visitor.turns).to_have_count(1)
    await visitor.expect_answers(["Gladly"])
    await visitor.page.get_by_label("Search conversations").fill("")

    await visitor.button("Rename I want to catch a roadrunner").focus()
    await visitor.page.keyboard.press("Enter")
    await visitor.page.get_by_role("textbox", name="Title").fill("Birds")
    await visitor.page.keyboard.press("Enter")
    await expect(listed).to_have_text(["Skates, please", "Birds"])

    await visitor.button("Delete Birds").focus()
    await visitor.page.keyboard.press("Enter")
    await visitor.button("Cancel").click()
    await expect(listed).to_have_text(["Skates, please", "Birds"])
    await visitor.button("Delete Birds").focus()
    await visitor.page.keyboard.press("Enter")
    await visitor.button("Delete").click()
    await expect(listed).to_have_text(["Skates, please"])
    await expect(visitor.page.locator("#welcome")).to_be_visible()


async def test_dialog_reopened_in_the_same_task_is_not_closed_by_the_previous_one(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Gladly"))
    await visitor.ask("Skates, please")
    listed = visitor.page.locator("#conversations li .title")
    await expect(listed).to_have_text(["Skates, please"])
    delete = visitor.button("Delete Skates, please")
    await delete.focus()
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.button("Cancel")).to_be_visible()

    # The browser fires "close" in a later task, that is, behind both clicks.
    await delete.evaluate(
        """(button) => {
            [...document.querySelectorAll("#dialog button")].find((one) => one.textContent === "Cancel").click();
            button.click();
        }"""
    )
    await visitor.button("Delete").click()

    await expect(visitor.page.locator("#conversations li.empty")).to_be_visible()


async def test_back_opens_the_previous_conversation(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"), text("Two"))
    await visitor.ask("First")
    await visitor.button("New conversation").click()
    await visitor.ask("Second")

    await visitor.page.go_back()
    await visitor.page.go_back()

    await expect(visitor.turns).to_have_count(1)
    await visitor.expect_text("First")


async def test_unknown_conversation_shows_an_error(visitor: Visitor) -> None:
    await visitor.page.goto(f"{visitor.url}/#conv_none")

    await visitor.expect_text("Conversation not found")


async def test_narrow_screen_has_a_drawer_and_no_horizontal_scroll(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("| a | b |\n|---|--:|\n| " + "long " * 30 + "| 1 |\n\n" + "x" * 400))

    options: dict[str, Any] = {"color_scheme": "dark"}
    async with visit(browser, served.url, **options) as visitor:
        await visitor.page.set_viewport_size({"width": 360, "height": 640})
        await visitor.open()
        await visitor.ask("A table")

        width = await visitor.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360
        await expect(visitor.page.locator("#sidebar")).to_be_hidden()
        await visitor.button("Open the list of conversations").click()
        await expect(visitor.button("Close the list of conversations")).to_be_focused()
        await expect(visitor.page.locator("#conversations .title")).to_have_text(["A table"])
        await visitor.page.keyboard.press("Escape")
        await expect(visitor.page.locator("#sidebar")).to_be_hidden()
        await expect(visitor.button("Open the list of conversations")).to_be_focused()
        await visitor.button("Open the list of conversations").click()
        await visitor.page.locator("#scrim").click(position={"x": 350, "y": 400})
        await expect(visitor.page.locator("#sidebar")).to_be_hidden()
        await visitor.page.keyboard.press("Control+k")
        await expect(visitor.page.get_by_label("Search conversations")).to_be_focused()
        assert (
            await visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
            == "rgb(21, 23, 28)"
        )


async def test_narrow_screen_has_the_actions_of_a_conversation_in_a_dialog(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    async with visit(browser, served.url) as visitor:
        await visitor.page.set_viewport_size({"width": 390, "height": 844})
        await visitor.open()
        await visitor.ask("Hi")
        groups = visitor.page.locator("#conversations .group")

        await visitor.button("Open the list of conversations").click()
        await visitor.button("Actions for Hi").click()
        await visitor.button("Pin").click()
        await expect(groups).to_have_text(["Pinned"])
        await visitor.button("Actions for Hi").click()
        await visitor.button("Rename").click()
        await visitor.page.get_by_role("textbox", name="Title").fill("Greeting")
        await visitor.page.keyboard.press("Enter")
        await expect(visitor.page.locator("#conversations .title")).to_have_text(["Greeting"])
        await visitor.button("Actions for Greeting").click()
        await visitor.button("Delete").click()
        await visitor.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(visitor.page.locator("#conversations .empty")).to_have_text("No conversations yet.")


async def test_theme_is_stored(visitor: Visitor) -> None:
    theme = visitor.page.locator("#theme")

    await theme.click()
    await theme.click()
    await expect(theme).to_have_text("Theme: dark")
    await expect(visitor.page.locator("body")).to_have_css("background-color", "rgb(21, 23, 28)")
    await visitor.page.reload()

    await expect(theme).to_have_text("Theme: dark")
    await expect(visitor.page.locator("body")).to_have_css("background-color", "rgb(21, 23, 28)")


async def test_page_is_served_with_a_strict_policy_and_etag(served: Served) -> None:
    async with httpx2.AsyncClient(base_url=served.url) as http:
        index, client = await http.get("/"), await http.get("/client")
        script = await http.get("/page/app.js")
        again = await http.get("/page/app.js", headers={"If-None-Match": script.headers["etag"]})
        missing = await http.get("/page/../settings.py")
        posted = await http.post("/page/app.js")

    assert index.text == client.text
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert index.headers["x-content-type-options"] == "nosniff"
    assert index.headers["referrer-policy"] == "no-referrer"
    assert script.headers["content-type"].startswith("text/javascript")
    assert (again.status_code, missing.status_code, posted.status_code) == (304, 404, 405)
    assert set(missing.json()["error"]) == {"message", "type", "param", "code"}
