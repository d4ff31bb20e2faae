"""Accessibility, size of the first load, and long conversations."""

from __future__ import annotations

import gzip
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, CDPSession, Page, ViewportSize, expect

from proxy.auth import ANYONE
from proxy.messages import AssistantMessage, Item, UserMessage
from tests.fakes.turn_records import new_turn, the_end
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.page.visitor import Visitor, visit
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = Path(__file__).parent / "vendor" / "axe.js"
MAX_FIRST_LOAD = 250_000
SIZES: dict[str, ViewportSize] = {
    "wide": {"width": 1280, "height": 800},
    "narrow": {"width": 390, "height": 844},
}

MARKDOWN = """\
# Done

- [x] *ordered*

`code`

```python
print('hi')  # note
```

| a | b |
|---|--:|
| 1 | 2 |
"""


async def _violations(page: Page) -> list[Any]:
    # Over the DevTools protocol, to which the policy of the page does not apply.
    await page.evaluate(AXE.read_text())
    await page.evaluate("Promise.allSettled(document.getAnimations().map(one => one.finished))")
    found = await page.evaluate("axe.run()")
    return [
        (one["id"], [(node["target"], node["failureSummary"]) for node in one["nodes"]])
        for one in found["violations"]
    ]


# Each size and each scheme once here, and the other pairs in the test of the dialogs, which begins with the same page:
# one test takes three to five seconds.
@pytest.mark.parametrize(
    ("scheme", "size"), [*zip(("dark", "light"), SIZES.values(), strict=True)], ids=SIZES.keys()
)
async def test_axe_finds_no_violations(
    size: ViewportSize, scheme: Any, browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "wants a rocket"})),
        calls(("execute_order", {"product": "Rocket", "price": 10}), ("execute_order", {})),
        text(MARKDOWN),
        text("Again"),
    )
    async with visit(browser, served.url, color_scheme=scheme, reduced_motion="reduce") as visitor:
        await visitor.page.set_viewport_size(size)
        await visitor.open()
        assert await _violations(visitor.page) == []
        await visitor.ask("A rocket")
        await visitor.button("Timeline").click()
        if size["width"] < 1120:
            await visitor.button("Team panel").click()
        await visitor.page.locator(".node", has_text="sales").click()
        assert await _violations(visitor.page) == []
        if size["width"] < 1120:
            await visitor.button("Close the team panel").click()
        await visitor.button("Use this team from your code").click()
        assert await _violations(visitor.page) == []


@pytest.mark.parametrize(
    ("scheme", "size"), [*zip(("light", "dark"), SIZES.values(), strict=True)], ids=SIZES.keys()
)
async def test_axe_finds_no_violations_in_dialogs_and_messages(
    size: ViewportSize, scheme: Any, browser: Browser, tmp_path: Path
) -> None:
    async with (
        serve(tmp_path) as served,
        visit(browser, served.url, color_scheme=scheme, reduced_motion="reduce") as visitor,
    ):
        await visitor.page.set_viewport_size(size)
        await visitor.open()
        await visitor.ask("My rocket-powered unicycle exploded. I want my money back.")
        assert await _violations(visitor.page) == []
        await visitor.button("Regenerate").click()
        await expect(visitor.page.locator(".branches")).to_contain_text("2/2")
        await visitor.button("Timeline").click()
        await visitor.button("Branch from here").click()
        for name in ("Use a model", "Conversation settings", "Export conversation", "Compare versions"):
            await visitor.button(name).click()
            assert await _violations(visitor.page) == [], name
            await visitor.button("Close dialog").click()
        if size["width"] < 760:
            await visitor.button("Open the list of conversations").click()
        for name in ("Agents", "API key"):
            await visitor.button(name).click()
            assert await _violations(visitor.page) == [], name
            await visitor.button("Close dialog").click()
        if size["width"] < 760:
            await visitor.button("Actions for My rocket-powered unicycle exploded").click()
            assert await _violations(visitor.page) == []
            await visitor.button("Close dialog").click()
            await visitor.button("Close the list of conversations").click()
        await visitor.page.route("**/v1/chat/completions", lambda route: route.abort())
        await visitor.send("This one is lost")
        await expect(visitor.answer.locator(".problem")).to_be_visible()
        assert await _violations(visitor.page) == []


async def test_first_load_is_small_and_lazy(browser: Browser, served: Served) -> None:
    async with visit(browser, served.url) as visitor:
        sizes: dict[str, int] = {}

        async def record(response: Any) -> None:
            if "/page/" in response.url or response.url.endswith("/"):
                body = await response.body()
                is_font = response.url.endswith(".woff2")
                sizes[response.url] = len(body if is_font else gzip.compress(body, 5))

        visitor.page.on("response", record)
        await visitor.open()
        await visitor.page.wait_for_load_state("networkidle")

        assert sum(sizes.values()) < MAX_FIRST_LOAD, sizes
        assert not [url for url in sizes if "katex" in url or "mermaid" in url or "highlight" in url]
        compressed = await visitor.page.evaluate(
            "performance.getEntriesByName(new URL('/page/style.css', location).href)[0].transferSize"
        )
        assert compressed < 12_000


async def test_page_needs_little_processor_time_to_start(browser: Browser, served: Served) -> None:
    async with visit(browser, served.url) as visitor:
        devtools = await visitor.page.context.new_cdp_session(visitor.page)
        # Thread time, because the tests share the machine: a machine that is four times as slow needs a second.
        await devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        await visitor.page.goto(f"{served.url}/")
        # Not wait_for_function: it polls with eval(), which the page's Content Security Policy forbids.
        await visitor.page.evaluate(
            """() => new Promise(resolve => new PerformanceObserver(list => {
                if (list.getEntriesByName("usable").length) resolve();
            }).observe({ type: "measure", buffered: true }))"""
        )
        seconds = await _task_seconds(devtools)
    assert seconds < 0.25, seconds


async def test_conversation_of_300_turns_scrolls_smoothly(visitor: Visitor, served: Served) -> None:
    count = 300
    await _store_turns(served, "long", count)
    await visitor.page.goto(f"{visitor.url}/#long")
    await visitor.page.reload()
    await expect(visitor.turns).to_have_count(count)
    devtools = await visitor.page.context.new_cdp_session(visitor.page)
    # Thread time, because the tests share the machine.
    await devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    await visitor.page.evaluate("document.querySelector('#scroll').scrollTop = 1e9")

    times = [await _task_seconds(devtools)]
    for _ in range(60):
        await visitor.page.evaluate(
            """() => {
                document.querySelector("#scroll").scrollTop -= 400;
                // The second callback comes after the first frame is drawn.
                return new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)));
            }"""
        )
        times.append(await _task_seconds(devtools))

    frames = sorted(after - before for before, after in itertools.pairwise(times))
    assert frames[30] < 0.03, frames
    assert frames[56] < 0.06, frames


async def _store_turns(served: Served, conversation: str, count: int) -> None:
    """Store turns of the caller without a key; as requests they take ten times as long."""
    history = served.services.history
    turn: int | None = None
    for number in range(count):
        question, answer = f"Question {number}", f"Answer {number}: **bold** and `code`.\n\n- one\n- two"
        begun = await history.begin(
            new_turn(
                conversation,
                caller=ANYONE,
                team="shop",
                model="shop",
                parent=turn,
                input=[Item(UserMessage(question))],
                is_listed=True,
                lease_until=time.time() + 60,
            )
        )
        turn = begun.turn
        assert await history.finish(the_end(turn, items=[Item(AssistantMessage(answer), "triage")]))


async def _task_seconds(devtools: CDPSession) -> float:
    """Return the processor time of the page's main thread."""
    metrics = (await devtools.send("Performance.getMetrics"))["metrics"]
    seconds: float = next(one["value"] for one in metrics if one["name"] == "TaskDuration")
    return seconds


async def test_touch_targets_have_44_pixels(browser: Browser, served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("Which one?"))
    async with visit(browser, served.url, has_touch=True, is_mobile=True) as visitor:
        await visitor.page.set_viewport_size(SIZES["narrow"])
        await visitor.open()
        await visitor.ask("A rocket")
        await visitor.button("Timeline").click()
        small = """() => [...document.querySelectorAll("button, select, input, textarea, a[href], summary")]
            .filter(one => one.checkVisibility({ visibilityProperty: true }) && !one.matches(".skip"))
            .map(one => [one.getAttribute("aria-label") ?? one.textContent.trim(), one.getBoundingClientRect()])
            .filter(([, box]) => box.width < 44 || box.height < 44)
            .map(([name, box]) => `${name}: ${box.width}x${box.height}`)"""

        assert await visitor.page.evaluate(small) == []
        await visitor.button("Open the list of conversations").click()
        await expect(visitor.page.locator("#sidebar")).to_be_in_viewport()
        assert await visitor.page.evaluate(small) == []
        assert await visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
