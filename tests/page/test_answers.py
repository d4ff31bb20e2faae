"""Markdown, long answers and hostile model output."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.fakes.upstream import FakeUpstream, text
from tests.page.one_tab import tab_of_module, upstream_of_tab, visitor_of_tab  # noqa: F401
from tests.page.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")


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
    "svg and math": "<svg onload=\"document.title='owned'\"></svg><math><mtext><img src=x></mtext></math>",
    "frames": "<iframe src='https://evil.example'></iframe><form action='/v1/agents'><input></form>",
    "a long line": "a" * 200_000,
}

FORBIDDEN = "script, img, iframe, style, form, input, svg:not(.icon), details, button.primary"


async def test_hostile_model_output_does_nothing(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(*(text(written, chunks=3) for written in HOSTILE.values()))
    for count, name in enumerate(HOSTILE, start=1):
        await visitor.ask(name, count)
        assert await visitor.page.title() == "handoff-proxy", name
    await visitor.page.reload()
    await visitor.wait_for_answer(len(HOSTILE))

    assert await visitor.page.title() == "handoff-proxy"
    for name, answer in zip(HOSTILE, await visitor.page.locator("#turns .answer").all(), strict=True):
        rendered = answer.locator(".md")
        await expect(rendered, name).not_to_be_empty()
        await expect(rendered.locator(FORBIDDEN), name).to_have_count(0)
        for address in await rendered.locator("a").evaluate_all("all => all.map(one => one.href)"):
            assert address == "" or address.startswith(("https://", "http://", "mailto:")), name
        assert await rendered.locator("[style], [onerror], [onload], [onclick]").count() == 0, name
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
    upstream.reply(text("", chunks=[line * 40] * 200))

    await visitor.ask("Everything")

    await expect(visitor.answer.locator("strong").first).to_have_text("item")
    shown = "() => document.querySelector('.answer .md').textContent.match(/item/g).length"
    for _ in range(2):
        assert await visitor.page.evaluate(shown) == 8_000
        assert await visitor.answer.locator("strong").count() < 2500
        await expect(visitor.answer).to_contain_text("The rest of this long text is not formatted.")
        await visitor.page.reload()
        await visitor.wait_for_answer()


async def test_table_with_very_many_cells_is_plain_text(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("|a" * 1000 + "\n" + "|-" * 1000 + "\n" + "|b\n" * 1000))

    await visitor.ask("A table")

    await expect(visitor.answer.locator(".md .plain")).to_contain_text("|a|a")
    await expect(visitor.answer.locator("td")).to_have_count(0)
