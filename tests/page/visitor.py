"""A browser tab on the page, which contacts only its own server, violates no policy and raises no error."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, ViewportSize, expect

expect.set_options(timeout=10_000)

VIEWPORT: ViewportSize = {"width": 1100, "height": 800}


class Visitor:
    """One browser tab."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", self._on_console)
        page.on("request", lambda request: self._on_request(request.url))
        page.on("requestfailed", self._on_failure)

    def _on_console(self, message: ConsoleMessage) -> None:
        # The browser itself logs error statuses, which some tests expect.
        is_status = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not is_status:
            self.problems.append(f"{message.type}: {message.text}")

    def _on_request(self, url: str) -> None:
        if not url.startswith((self.url, "data:", f"blob:{self.url}")):
            self.problems.append(f"requested {url}")

    def _on_failure(self, request: Request) -> None:
        # Chromium reports requests that the policy blocks before they are sent.
        if request.failure == "csp":
            self.problems.remove(f"requested {request.url}")

    async def open(self) -> None:
        await self.page.goto(f"{self.url}/")
        await expect(self.page.locator("#welcome h1")).to_be_visible()

    async def send(self, text: str) -> None:
        await self.page.fill("#message", text)
        await self.page.keyboard.press("Enter")

    async def wait_for_answer(self, count: int = 1) -> None:
        """Wait until ``count`` turns are shown and the last one has ended."""
        await expect(self.turns).to_have_count(count)
        await expect(self.page.locator("#send")).to_be_visible()
        await expect(self.turns.last.get_by_role("button", name="Timeline")).to_be_attached()

    async def ask(self, text: str, count: int = 1) -> None:
        await self.send(text)
        await self.wait_for_answer(count)

    @property
    def turns(self) -> Locator:
        return self.page.locator("#turns > li")

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.turns.last.locator(".answer")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    async def expect_text(self, text: str | re.Pattern[str]) -> None:
        await expect(self.page.locator("main")).to_contain_text(text)

    async def expect_messages(self, texts: list[str]) -> None:
        """Wait until the page shows exactly these user messages."""
        await _expect_exact(self.page.locator("#turns .user .text"), texts)

    async def expect_answers(self, texts: list[str]) -> None:
        """Wait until the page shows exactly these answers."""
        await _expect_exact(self.page.locator("#turns .answer .md"), texts)

    async def api(self, path: str) -> Any:
        """Return the JSON of a GET request with the API key of the tab."""
        return await self.page.evaluate(
            """path => {
                const key = sessionStorage.getItem("handoff.key");
                const headers = key ? { Authorization: `Bearer ${key}` } : {};
                return fetch(path, { headers }).then(response => response.json());
            }""",
            path,
        )


async def _expect_exact(locator: Locator, texts: list[str]) -> None:
    # to_have_text waits, but ignores differences of white space.
    await expect(locator).to_have_text(texts)
    assert [text.strip() for text in await locator.all_text_contents()] == [text.strip() for text in texts]


@asynccontextmanager
async def visit(browser: Browser, url: str, **options: Any) -> AsyncIterator[Visitor]:
    """Open a tab in a new browser context."""
    context = await browser.new_context(viewport=VIEWPORT, **options)
    try:
        visitor = Visitor(await context.new_page(), url)
        yield visitor
        assert not visitor.problems, visitor.problems
    finally:
        await context.close()
