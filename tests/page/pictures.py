"""Takes the pictures of the page that the documents show: ``make pictures``.

The demonstration answers, so that anybody gets the same ones.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.async_api import Browser, async_playwright

from tests.page.conftest import FLAGS, found_chromium
from tests.page.visiting import Visitor, visit
from tests.serving import serve

FOLDER = Path(__file__).parent.parent.parent / "docs" / "pictures"
STORY = (
    "My rocket-powered unicycle exploded. I want my money back.",
    "No, that did not help.",
    "Yes, please.",
)
REPORT = "Generate a monthly business report for our sales performance"


async def main() -> None:
    """Take them all."""
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        async with serve(Path(folder)) as served, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=found_chromium(), args=FLAGS)
            await _talk(browser, served.url)
            await _report(browser, served.url)
            await browser.close()


async def _talk(browser: Browser, url: str) -> None:
    async with visit(browser, url) as visitor:
        await visitor.come()
        for count, words in enumerate(STORY, 1):
            await visitor.asks(words, count)
        await visitor.answer.locator(".tool summary").last.click()
        await _take(visitor, "talking")


async def _report(browser: Browser, url: str) -> None:
    async with visit(browser, url, color_scheme="dark", device_scale_factor=2) as visitor:
        await visitor.page.set_viewport_size({"width": 390, "height": 760})
        await visitor.come()
        await visitor.page.select_option("#team", "business-insights")
        await visitor.asks(REPORT)
        await visitor.button("Timeline").click()
        await visitor.page.locator(".timeline").scroll_into_view_if_needed()
        await visitor.page.mouse.move(200, 300)
        await _take(visitor, "narrow")


async def _take(visitor: Visitor, name: str) -> None:
    file = FOLDER / f"{name}.png"
    await visitor.page.screenshot(path=file)
    with Image.open(file) as picture:
        # A page has few colours: so it takes a third of the room.
        picture.convert("RGB").quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    asyncio.run(main())
