"""Swagger UI and ReDoc, served from this host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


RECORD_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", event =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""
REDOC_LOGO = "img-src https://cdn.redoc.ly/redoc/logo-mini.svg "
"""ReDoc's link to its makers, which is not loaded from their host."""


@dataclass
class Opened:
    """A documentation page, the URLs of other hosts that it received something from, and its policy."""

    page: Page
    foreign: list[str]
    policy: str


@asynccontextmanager
async def open_page(browser: Browser, url: str) -> AsyncIterator[Opened]:
    page = await browser.new_page()
    await page.add_init_script(RECORD_VIOLATIONS)
    foreign: list[str] = []
    host = url.split("/")[2]
    page.on(
        "response",
        lambda response: foreign.append(response.url) if response.url.split("/")[2] != host else None,
    )
    response = await page.goto(url)
    assert response is not None
    yield Opened(page, foreign, response.headers["content-security-policy"])
    await page.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def documentation(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Opened]]:
    """Both viewers, each loaded once for all tests that only look at them, because that takes two seconds."""
    async with (
        serve(tmp_path_factory.mktemp("documentation")) as served,
        open_page(browser, f"{served.url}/docs") as docs,
        open_page(browser, f"{served.url}/redoc") as redoc,
    ):
        yield {"docs": docs, "redoc": redoc}


@pytest.mark.parametrize("path", ["docs", "redoc"])
async def test_api_documentation_lists_current_and_legacy_endpoints(
    documentation: dict[str, Opened], path: str
) -> None:
    opened = documentation[path]

    for endpoint in ("/v1/chat/completions", "/chat/stream"):
        await expect(opened.page.locator("body")).to_contain_text(endpoint)
    assert opened.foreign == []


@pytest.mark.parametrize(
    ("path", "detail"), [("docs", ".opblock-summary-control"), ("redoc", "[role=menuitem]")]
)
async def test_api_documentation_works_without_inline_styles_and_with_trusted_types(
    documentation: dict[str, Opened], path: str, detail: str
) -> None:
    page = documentation[path].page
    await expect(page.locator("body")).to_contain_text("/v1/chat/completions")
    details = (await page.locator(detail).all())[:3]
    assert details

    for one in details:
        await one.click()
    await expect(page.locator("body")).to_contain_text("/v1/chat/completions")

    assert "unsafe" not in documentation[path].policy
    assert "require-trusted-types-for 'script'" in documentation[path].policy
    violations = await page.evaluate("window.violations")
    assert [one for one in violations if one != REDOC_LOGO] == []


async def test_markup_of_a_viewer_passes_the_sanitiser(browser: Browser, served: Served) -> None:
    # A separate page, because what the sanitiser removes violates the policy.
    async with open_page(browser, f"{served.url}/docs") as opened:
        await expect(opened.page.locator("body")).to_contain_text("/v1/chat/completions")

        written = await opened.page.evaluate(
            """() => {
              const box = document.createElement("div");
              box.innerHTML = "<b>text</b><img src=x onerror=alert(1)><script>alert(2)</scr" + "ipt>";
              return box.innerHTML;
            }"""
        )

    assert written == '<b>text</b><img src="x">'


async def test_api_documentation_asks_for_the_key_and_sends_it(browser: Browser, tmp_path: Path) -> None:
    async with (
        serve(tmp_path, api_keys=("secret",)) as served,
        open_page(browser, f"{served.url}/docs") as opened,
    ):
        page = opened.page
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
