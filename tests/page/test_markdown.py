"""Task lists, math, diagrams and wide content in answers."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, expect

from tests.fakes.upstream import FakeUpstream, text
from tests.page.one_tab import tab_of_module, upstream_of_tab, visitor_of_tab  # noqa: F401
from tests.page.visitor import Visitor, visit
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_task_lists_have_boxes(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("- [x] paid\n- [ ] sent\n- [link](https://example.com)"))

    await visitor.ask("List")

    items = visitor.answer.locator("li")
    await expect(items).to_have_text(["paid", "sent", "link"])
    boxes = visitor.answer.get_by_role("img")
    assert [await box.get_attribute("aria-label") for box in await boxes.all()] == ["Done", "Not done"]


async def test_math_is_rendered_and_prices_stay_text(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(
        text(
            "Area $\\pi r^2$ and \\(a_1 \\ne b\\).\n\n$$\n\\int_0^1 x\\,dx = \\frac{1}{2}\n$$\n\n"
            "\\[E = mc^2\\]\n\nIt costs $5 or $10. Code: `$x$`. Broken: $\\frac{1$ end."
        )
    )

    await visitor.ask("Math")

    await expect(visitor.answer.locator(".math .katex")).to_have_count(4)
    await expect(visitor.answer.locator(".math.display .katex-display")).to_have_count(2)
    await visitor.expect_text("It costs $5 or $10.")
    await expect(visitor.answer.locator("p > code:not(.math)")).to_have_text("$x$")
    await expect(visitor.answer.locator("code.math")).to_have_text("\\frac{1")


HOSTILE_MATH = [
    "$\\href{javascript:document.title='owned'}{x}$",
    "$\\htmlStyle{position:fixed;inset:0}{x}$",
    "$\\includegraphics{https://evil.example/x.png}$",
    "$\\def\\a{\\a\\a}\\a$",
    "$\\rule{1000000em}{1000000em}$",
]


async def test_hostile_formula_does_nothing(visitor: Visitor, upstream: FakeUpstream) -> None:
    for count, formula in enumerate(HOSTILE_MATH, start=1):
        upstream.reply(text(f"{formula} and $y$"))

        await visitor.ask("Math", count)

        await expect(visitor.answer.locator(".katex").last, formula).to_be_attached()
        assert await visitor.page.title() == "handoff-proxy", formula
        await expect(visitor.page.locator(".answer .md a, .answer .md img"), formula).to_have_count(0)
        assert await visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), formula


async def test_diagram_is_drawn_as_an_image(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("```mermaid\nflowchart LR\n  A[Order] --> B{Paid?}\n  B -->|yes| C[Ship]\n```"))

    await visitor.ask("Diagram")

    picture = visitor.answer.locator(".diagram img")
    await expect(picture).to_be_visible()
    size = await picture.evaluate("img => img.decode().then(() => [img.naturalWidth, img.naturalHeight])")
    assert min(size) > 40
    await visitor.answer.locator(".source summary").click()
    await expect(visitor.answer.locator(".source code")).to_contain_text("A[Order] --> B{Paid?}")
    await expect(visitor.page.locator("iframe")).to_have_count(0)


HOSTILE_DIAGRAMS = [
    'flowchart LR\n  A["<img src=x onerror=parent.document.title=`owned`>"] --> B\n'
    '  click A "javascript:parent.document.title=1"',
    '%%{init: {"securityLevel": "loose", "htmlLabels": true}}%%\nflowchart LR\n'
    '  A["<script>parent.document.title=1</script><img src=https://evil.example/x>"]',
    "no diagram at all",
]


async def test_hostile_diagram_does_nothing(browser: Browser, served: Served, upstream: FakeUpstream) -> None:
    # A separate tab, because the browser can log what the policy of the frame rejects after the end of the test.
    async with visit(browser, served.url) as visitor:
        await visitor.open()
        await visitor.page.evaluate(
            """() => new MutationObserver((changes) => {
                const removed = changes.map((change) => change.removedNodes[0]?.localName);
                if (removed.includes("iframe")) document.body.classList.add("drawn");
            }).observe(document.body, { childList: true })"""
        )
        for count, source in enumerate(HOSTILE_DIAGRAMS, start=1):
            upstream.reply(text(f"```mermaid\n{source}\n```"))
            await visitor.page.evaluate("document.body.classList.remove('drawn')")

            await visitor.ask("Diagram", count)

            await expect(visitor.page.locator("body.drawn"), source).to_be_attached(timeout=15_000)
            assert await visitor.page.title() == "handoff-proxy", source
            await expect(visitor.answer.locator(".code code")).to_contain_text(source.splitlines()[0])
        visitor.problems = [one for one in visitor.problems if "Content Security Policy" not in one]


async def test_diagrams_are_drawn_one_after_another_and_only_if_visible(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    diagram = "```mermaid\nflowchart LR\n  A --> B\n```\n\n"
    upstream.reply(text(diagram * 20, chunks=4))
    # Fewer visible diagrams, because each takes a third of a second.
    await visitor.page.set_viewport_size({"width": 1100, "height": 420})
    await visitor.page.evaluate(
        """() => new MutationObserver(() => {
            window.frames_at_once = Math.max(window.frames_at_once ?? 0, document.querySelectorAll("iframe").length);
        }).observe(document.body, { childList: true })"""
    )

    await visitor.ask("Diagrams")
    await expect(visitor.answer.locator(".diagram img").last).to_be_in_viewport(timeout=20_000)

    assert await visitor.page.evaluate("window.frames_at_once") == 1
    assert await visitor.answer.locator(".code").first.locator(".diagram").count() == 0
    await visitor.page.locator("#scroll").evaluate("box => box.scrollTop = 0")
    await expect(visitor.answer.locator(".diagram img").first).to_be_in_viewport(timeout=20_000)
    await expect(visitor.page.locator("iframe")).to_have_count(0, timeout=15_000)


async def test_code_shows_characters_that_reorder_or_hide_text(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text('```python\nif level != "user\u202e \u2066// admin\u2069 \u2066":\u200b\n```'))

    await visitor.ask("Code")

    shown = 'if level != "user\\u{202e} \\u{2066}// admin\\u{2069} \\u{2066}":\\u{200b}\n'
    await expect(visitor.answer.locator(".code code")).to_have_text(shown)


async def test_wide_tables_and_code_show_that_they_scroll(visitor: Visitor, upstream: FakeUpstream) -> None:
    cells = "|".join(f"column number {number}" for number in range(14))
    upstream.reply(text(f"|{cells}|\n|{'---|' * 14}\n|{cells}|\n\n```text\n{'wide ' * 60}\n```"))

    await visitor.ask("Wide")

    table, code = visitor.answer.locator(".table"), visitor.answer.locator(".code pre")
    await expect(table).to_have_class("table more-right")
    await expect(code).to_have_class("more-right")
    await table.evaluate("box => box.scrollLeft = 60")
    await expect(table).to_have_class("table more-right more-left")


LINEAR = {
    "emphasis": "*a **b ",
    "brackets": "[",
    "links": "[a](",
    "quotes": "> ",
    "lists": "- a\n",
    "code": "`",
    "fences": "```\n",
    "formulas": "$a",
    "brackets of formulas": "\\(",
    "tables": "|",
    "rows": "|a|b|\n|-|-|\n",
    "markup": "<a ",
    "entities": "&amp",
    "references": "[a]: b\n",
    "addresses": "http://a.",
}


async def test_rendering_time_grows_linearly(visitor: Visitor) -> None:
    """Eight times the text takes less than 24 times as long; something quadratic takes 64 times as long."""
    ratios = await visitor.page.evaluate(
        """async patterns => {
            const { StreamingMarkdown, markdownReady } = await import("/page/markdown.js");
            await markdownReady;
            const shortest = text => {
                let best = Infinity;
                for (let run = 0; run < 2; run++) {
                    const markdown = new StreamingMarkdown(document.createElement("div"));
                    markdown.text = text;
                    const began = performance.now();
                    markdown.show();
                    best = Math.min(best, performance.now() - began);
                }
                return best;
            };
            const ratios = {};
            for (const [name, pattern] of Object.entries(patterns)) {
                const text = pattern.repeat(8000 / pattern.length);
                // Six attempts: other load can only make a measurement worse.
                for (let attempt = 0; attempt < 6 && !(ratios[name] <= 24); attempt++) {
                    ratios[name] = shortest(text.repeat(8)) / Math.max(shortest(text), 2);
                }
            }
            return ratios;
        }""",
        LINEAR,
    )

    assert ratios.keys() == LINEAR.keys()
    assert {name: ratio for name, ratio in ratios.items() if ratio > 24} == {}
