"""Swagger UI and ReDoc, served from this host."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.fakes.upstream import FakeUpstream
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


RECORD_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", event =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""
REDOC_LOGO = "img-src https://cdn.redoc.ly/redoc/logo-mini.svg "
"""ReDoc's link to its makers, which is not loaded from their host."""


async def open_page(browser: Browser, url: str) -> tuple[Page, list[str]]:
    """Return the page and the list of URLs of other hosts that it received something from."""
    page = await browser.new_page()
    await page.add_init_script(RECORD_VIOLATIONS)
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


@pytest.mark.parametrize(
    ("path", "detail"), [("docs", ".opblock-summary-control"), ("redoc", "[role=menuitem]")]
)
async def test_api_documentation_works_without_inline_styles_and_with_trusted_types(
    browser: Browser, served: Served, path: str, detail: str
) -> None:
    page, _ = await open_page(browser, f"{served.url}/{path}")
    response = await page.reload()
    assert response is not None
    policy = response.headers["content-security-policy"]

    for one in (await page.locator(detail).all())[:3]:
        await one.click()
    await expect(page.locator("body")).to_contain_text("/v1/chat/completions")

    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    violations = await page.evaluate("window.violations")
    assert [one for one in violations if one != REDOC_LOGO] == []
    await page.close()


async def test_markup_of_a_viewer_passes_the_sanitiser(browser: Browser, served: Served) -> None:
    page, _ = await open_page(browser, f"{served.url}/docs")
    await expect(page.locator("body")).to_contain_text("/v1/chat/completions")

    written = await page.evaluate(
        """() => {
          const box = document.createElement("div");
          box.innerHTML = "<b>text</b><img src=x onerror=alert(1)><script>alert(2)</scr" + "ipt>";
          return box.innerHTML;
        }"""
    )

    assert written == '<b>text</b><img src="x">'
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
