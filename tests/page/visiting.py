"""Somebody at the page: what they do and see. Whatever they do, the page asks nobody but its own server, breaks no
policy and raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, expect

expect.set_options(timeout=10_000)


class Visitor:
    """One browser tab."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", self._heard)
        page.on("request", lambda request: self._asked(request.url))

    def _heard(self, message: ConsoleMessage) -> None:
        # Refused requests are told by the browser itself, and some tests are about them.
        is_refusal = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not is_refusal:
            self.problems.append(f"{message.type}: {message.text}")

    def _asked(self, url: str) -> None:
        if not url.startswith((self.url, "data:")):
            self.problems.append(f"asked {url}")

    async def come(self) -> None:
        await self.page.goto(f"{self.url}/")
        await expect(self.page.locator("#welcome h1")).to_be_visible()

    async def say(self, words: str) -> None:
        await self.page.fill("#say", words)
        await self.page.keyboard.press("Enter")

    async def answered(self, count: int = 1) -> None:
        """Wait until so many turns are shown, and the last is whole."""
        await expect(self.turns).to_have_count(count)
        await expect(self.page.locator("#send")).to_be_visible()
        await expect(self.turns.last.get_by_role("button", name="Timeline")).to_be_visible()

    async def asks(self, words: str, count: int = 1) -> None:
        await self.say(words)
        await self.answered(count)

    @property
    def turns(self) -> Locator:
        return self.page.locator("#turns > li")

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.turns.last.locator(".answer")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    async def sees(self, words: str | re.Pattern[str]) -> None:
        await expect(self.page.locator("main")).to_contain_text(words)

    async def questions(self) -> list[str]:
        """What the person said, as far as it is shown."""
        return await self.page.locator(".mine .words").all_inner_texts()

    async def answers(self) -> list[str]:
        return [text.strip() for text in await self.page.locator(".answer .md").all_inner_texts()]


@asynccontextmanager
async def visit(browser: Browser, url: str, **options: Any) -> AsyncIterator[Visitor]:
    """Open a tab with nothing remembered."""
    context = await browser.new_context(viewport={"width": 1100, "height": 800}, **options)
    try:
        visitor = Visitor(await context.new_page(), url)
        yield visitor
        assert visitor.problems == []
    finally:
        await context.close()
