"""Swagger UI and ReDoc, served from this host."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.fakes.upstream import FakeUpstream
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def open_page(browser: Browser, url: str) -> tuple[Page, list[str]]:
    """Return the page and the list of URLs of other hosts that it received something from."""
    page = await browser.new_page()
    foreign: list[str] = []
    host = url.split("/")[2]
    page.on(
        "response",
        lambda response: foreign.append(response.url) if response.url.split("/")[2] != host else None,
    )
    await page.goto(url)
    return page, foreign


@pytest.mark.parametrize("path", ["docs", "redoc"])
async def test_api_documentation_lists_current_and_legacy_endpoints(
    browser: Browser, served: Served, path: str
) -> None:
    page, foreign = await open_page(browser, f"{served.url}/{path}")

    for endpoint in ("/v1/chat/completions", "/chat/stream"):
        await expect(page.locator("body")).to_contain_text(endpoint)
    assert foreign == []
    await page.close()


async def test_api_documentation_asks_for_the_key_and_sends_it(
    browser: Browser, tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served:
        page, _ = await open_page(browser, f"{served.url}/docs")
        await page.get_by_label("API key").fill("wrong")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("status")).to_contain_text("The API key is not valid.")

        await page.get_by_label("API key").fill("secret")
        await page.get_by_role("button", name="Show").click()
        operation = page.locator(".opblock", has=page.locator("[data-path='/v1/models']"))
        await operation.locator("button").first.click()
        await operation.get_by_role("button", name="Try it out").click()
        await operation.get_by_role("button", name="Execute").click()

        await expect(
            operation.locator(".live-responses-table td.response-col_status:not(.col_header)")
        ).to_contain_text("200")
        await page.close()
