"""Take the pictures of the page in the documentation: ``make pictures``.

The demonstration answers, so that anybody gets the same ones.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from PIL import Image
from playwright.async_api import Browser, ViewportSize, async_playwright, expect

from tests.page.conftest import FLAGS, found_chromium
from tests.page.visitor import Visitor, visit
from tests.server import serve

ColorScheme = Literal["light", "dark"]
FOLDER = Path(__file__).parent.parent.parent / "docs" / "pictures"
STORY = (
    "My rocket-powered unicycle exploded. I want my money back.",
    "No, that did not help.",
    "Yes, please.",
)
REPORT = "Generate a monthly business report for our sales performance"
SCHEMES: tuple[ColorScheme, ...] = ("light", "dark")
SIZES: dict[str, ViewportSize] = {
    "wide": {"width": 1280, "height": 800},
    "narrow": {"width": 390, "height": 844},
}
TOUCH: dict[str, Any] = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}


async def main() -> None:
    """Take all pictures: each item on wide and narrow screens, in light and dark colours."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.png"):
        old.unlink()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found_chromium(), args=FLAGS)
        for size in SIZES:
            for scheme in SCHEMES:
                # A server for each, so that the list of conversations is the same.
                with TemporaryDirectory() as folder:
                    async with serve(Path(folder)) as served:
                        await Photographer(browser, served.url, size, scheme).take_all()
        await browser.close()


class Photographer:
    """Takes the pictures of one screen size and colour scheme."""

    def __init__(self, browser: Browser, url: str, size: str, scheme: ColorScheme) -> None:
        self._browser = browser
        self._url = url
        self._size = size
        self._scheme = scheme

    async def take_all(self) -> None:
        """Take the pictures in the order of the documentation."""
        options = TOUCH if self._size == "narrow" else {}
        async with visit(self._browser, self._url, color_scheme=self._scheme, **options) as visitor:
            await visitor.page.set_viewport_size(SIZES[self._size])
            await visitor.open()
            await self._take(visitor, "start")
            await visitor.button("Use a model").click()
            await self._take(visitor, "setup")
            await visitor.button("Close dialog").click()
            await self._conversation(visitor)
            await self._report(visitor)
            await self._list(visitor)

    async def _conversation(self, visitor: Visitor) -> None:
        for count, text in enumerate(STORY, 1):
            await visitor.ask(text, count)
        if self._size == "narrow":
            await self._take(visitor, "conversation")
            await visitor.button("Team panel").click()
        await visitor.page.locator(".node", has_text="IssuesAndRepairs").click()
        await self._take(visitor, "team")
        if self._size == "narrow":
            await visitor.button("Close the team panel").click()
        await visitor.turns.nth(1).get_by_role("button", name="Regenerate").click()
        await visitor.wait_for_answer(2)
        await visitor.button("Compare versions").click()
        await self._take(visitor, "compare")
        await visitor.button("Close dialog").click()
        await visitor.button("Use this team from your code").click()
        await visitor.page.get_by_role("combobox", name="Client").select_option("Python")
        await self._take(visitor, "connect")
        await visitor.button("Close dialog").click()
        await visitor.button("Conversation settings").click()
        await self._take(visitor, "settings")
        await visitor.button("Close dialog").click()

    async def _report(self, visitor: Visitor) -> None:
        await visitor.page.select_option("#team", "business-insights")
        await expect(visitor.page.locator("#welcome")).to_be_visible()
        await visitor.ask(REPORT)
        await visitor.page.locator("#scroll").evaluate("box => box.scrollTop = 0")
        await self._take(visitor, "tools")
        await visitor.button("Timeline").click()
        await visitor.page.get_by_role("slider", name="Step of the turn").fill("4")
        await visitor.button("Branch from here").click()
        await visitor.page.locator(".timeline").scroll_into_view_if_needed()
        await self._take(visitor, "timeline")

    async def _list(self, visitor: Visitor) -> None:
        if self._size == "narrow":
            await visitor.button("Open the list of conversations").click()
        else:
            await visitor.button("Pin My rocket-powered unicycle exploded").focus()
            await visitor.page.keyboard.press("Enter")
        await expect(visitor.page.locator("#conversations .title")).to_have_count(2)
        await self._take(visitor, "conversations")

    async def _take(self, visitor: Visitor, name: str) -> None:
        await visitor.page.mouse.move(0, 0)
        await visitor.page.evaluate(
            """Promise.allSettled(document.getAnimations()
                .filter(one => one.effect.getTiming().iterations !== Infinity).map(one => one.finished))"""
        )
        await expect(visitor.page.locator(".traveller")).to_be_hidden()
        file = FOLDER / f"{name}-{self._size}-{self._scheme}.png"
        await visitor.page.screenshot(path=file)
        with Image.open(file) as picture:
            # Screenshots have few colours: a palette reduces the file to a third.
            picture.convert("RGB").quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    asyncio.run(main())
