"""Conversation list, narrow screens, themes, Markdown and hostile model output."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from playwright.async_api import Browser, expect

from tests.fakes.upstream import FakeUpstream, text
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


async def test_markdown_is_rendered(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(
        text("# Report\n\n1. one\n2. two\n\n```python\nprint('hi')\n```\n\n| a | b |\n|:--|--:|\n| 1 | 2 |")
    )

    await visitor.ask("A report")

    answer = visitor.answer
    await expect(answer.locator("h1")).to_have_text("Report")
    await expect(answer.locator("ol li")).to_have_text(["one", "two"])
    await expect(answer.locator(".code code")).to_have_text("print('hi')\n")
    await expect(answer.locator(".code .hljs-string")).to_have_text("'hi'")
    await expect(answer.locator("td.right")).to_have_text("2")
    await visitor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await answer.locator(".code").get_by_role("button").click()
    await expect(answer.locator(".code").get_by_role("status")).to_have_text("Copied")
    assert await visitor.page.evaluate("navigator.clipboard.readText()") == "print('hi')\n"


HOSTILE = {
    "scripts": "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "links": "[go](javascript:document.title='owned') [data](data:text/html,x) <a href='javascript:1'>x</a>",
    "pictures": "![spy](https://evil.example/pixel.png) ![x](/v1/models) ![y](javascript:alert(1))",
    "forged cards": "<details class='card tool done'><summary>execute_refund ✓</summary></details>\n\n"
    '<div class="approval"><button>Approve</button></div>\n\nhandoff: {"type": "tool.completed"}',
    "styles": "<style>body{display:none}</style><p style='position:fixed;inset:0'>x</p>",
    "an open fence": "```html\n<script>document.title='owned'</script>",
    "nesting": ">" * 1000 + " deep\n\n" + "".join("  " * depth + "- item\n" for depth in range(300)),
    "directions": "\u202egnitset\u202c \u2066x\u2069",
    "a long line": "a" * 200_000,
    "svg and math": "<svg onload=\"document.title='owned'\"></svg><math><mtext><img src=x></mtext></math>",
    "frames": "<iframe src='https://evil.example'></iframe><form action='/v1/agents'><input></form>",
}


@pytest.mark.parametrize("written", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_model_output_does_nothing(
    written: str, visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text(written, chunks=3))

    await visitor.ask("Hi")
    await visitor.page.reload()
    await visitor.wait_for_answer()

    assert await visitor.page.title() == "handoff-proxy"
    rendered = visitor.answer.locator(".md")
    await expect(
        rendered.locator("script, img, iframe, style, form, input, svg:not(.icon), details, button.primary")
    ).to_have_count(0)
    for address in await rendered.locator("a").evaluate_all("all => all.map(one => one.href)"):
        assert address == "" or address.startswith(("https://", "http://", "mailto:"))
    assert await rendered.locator("[style], [onerror], [onload], [onclick]").count() == 0
    assert await visitor.page.locator(".approval, .tool").count() == 0


async def test_user_message_is_plain_text(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("I see"))

    await visitor.ask("<img src=x onerror=alert(1)> **bold** [x](javascript:1)")

    await visitor.expect_messages(["<img src=x onerror=alert(1)> **bold** [x](javascript:1)"])
    assert await visitor.page.locator(".user img, .user strong, .user a").count() == 0


async def test_long_answer_is_rendered_in_blocks(visitor: Visitor, upstream: FakeUpstream) -> None:
    paragraphs = [f"Paragraph {number} with **some** words.\n\n" for number in range(600)]
    upstream.reply(text("", chunks=paragraphs))

    await visitor.ask("Everything")

    await expect(visitor.answer.locator(".md p")).to_have_count(600)


async def test_very_long_answer_ends_in_plain_text(visitor: Visitor, upstream: FakeUpstream) -> None:
    line = "- **item** of a list that no blank line interrupts\n"
    upstream.reply(text("", chunks=[line * 40] * 500))

    await visitor.ask("Everything")

    await expect(visitor.answer.locator("strong").first).to_have_text("item")
    shown = "() => document.querySelector('.answer .md').textContent.match(/item/g).length"
    for _ in range(2):
        assert await visitor.page.evaluate(shown) == 20_000
        assert await visitor.answer.locator("strong").count() < 2500
        await expect(visitor.answer).to_contain_text("The rest of this long text is not formatted.")
        await visitor.page.reload()
        await visitor.wait_for_answer()


async def test_table_with_very_many_cells_is_plain_text(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("|a" * 1000 + "\n" + "|-" * 1000 + "\n" + "|b\n" * 1000))

    await visitor.ask("A table")

    await expect(visitor.answer.locator(".md .plain")).to_contain_text("|a|a")
    await expect(visitor.answer.locator("td")).to_have_count(0)


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
