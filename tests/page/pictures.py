"""Take the pictures of the page in the documentation: ``make pictures``.

The demonstration answers, so that anybody gets the same ones.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.async_api import Browser, async_playwright

from tests.page.conftest import FLAGS, found_chromium
from tests.page.visitor import Visitor, visit
from tests.serving import serve

FOLDER = Path(__file__).parent.parent.parent / "docs" / "pictures"
STORY = (
    "My rocket-powered unicycle exploded. I want my money back.",
    "No, that did not help.",
    "Yes, please.",
)
REPORT = "Generate a monthly business report for our sales performance"


async def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        async with serve(Path(folder)) as served, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=found_chromium(), args=FLAGS)
            await _talk(browser, served.url)
            await _report(browser, served.url)
            await _narrow(browser, served.url)
            await browser.close()


async def _talk(browser: Browser, url: str) -> None:
    async with visit(browser, url) as visitor:
        await visitor.page.set_viewport_size({"width": 1280, "height": 800})
        await visitor.open()
        for count, text in enumerate(STORY, 1):
            await visitor.ask(text, count)
        await visitor.page.locator(".node", has_text="IssuesAndRepairs").click()
        await _take(visitor, "talking")


async def _report(browser: Browser, url: str) -> None:
    async with visit(browser, url) as visitor:
        await visitor.page.set_viewport_size({"width": 1280, "height": 800})
        await visitor.open()
        await visitor.page.select_option("#team", "business-insights")
        await visitor.ask(REPORT)
        await visitor.button("Timeline").click()
        await visitor.page.get_by_role("slider", name="Step of the turn").fill("4")
        await visitor.page.locator(".timeline").scroll_into_view_if_needed()
        await _take(visitor, "timeline")


async def _narrow(browser: Browser, url: str) -> None:
    async with visit(browser, url, color_scheme="dark", device_scale_factor=2) as visitor:
        await visitor.page.set_viewport_size({"width": 390, "height": 844})
        await visitor.open()
        await visitor.page.select_option("#team", "business-insights")
        await visitor.ask(REPORT)
        await visitor.page.locator("#scroll").evaluate("box => box.scrollTop = 0")
        await _take(visitor, "narrow")
        await visitor.button("Team panel").click()
        await visitor.page.locator(".node", has_text="DataAgent").click()
        await _take(visitor, "team-narrow")


async def _take(visitor: Visitor, name: str) -> None:
    await visitor.page.mouse.move(0, 0)
    await visitor.page.evaluate("Promise.allSettled(document.getAnimations().map(one => one.finished))")
    file = FOLDER / f"{name}.png"
    await visitor.page.screenshot(path=file)
    with Image.open(file) as picture:
        # Screenshots have few colours: a palette reduces the file to a third.
        picture.convert("RGB").quantize(256).save(file, optimize=True)


if __name__ == "__main__":
    asyncio.run(main())
