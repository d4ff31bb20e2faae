"""A headless Chromium, a shop on a port, and somebody who visits its page.

Chromium is looked for at ``HANDOFF_TEST_CHROMIUM`` or under its usual names. Without one these tests are skipped, or
fail when ``HANDOFF_TEST_REQUIRE_ALL`` is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from proxy.routes.ui import has_libraries
from tests.fakes.upstream import FakeUpstream, Received, Reply, text
from tests.page.visitor import Visitor, visit
from tests.server import Served, serve

NAMES = ("chromium", "chromium-browser", "google-chrome")

# For each browser context Chromium starts a process with its menu of suggestions (WebUIOmnibox...) and one in reserve,
# which takes as much CPU time as an average test. The last switch of a name counts, so that this list repeats those of
# Playwright's features that concern a page on this machine.
_DISABLED_FEATURES = (
    "WebUIOmniboxPopup",
    "WebUIOmniboxFullPopup",
    "WebUIOmniboxAimPopup",
    "SpareRendererForSitePerProcess",
    "AimEnabled",
    "AvoidUnnecessaryBeforeUnloadCheckSync",
    "DestroyProfileOnBrowserClose",
    "HttpsFirstBalancedModeAutoEnable",
    "HttpsUpgrades",
    "LensOverlay",
    "MediaRouter",
    "NetworkTimeServiceQuerying",
    "OptimizationHints",
    "PaintHolding",
    "PreconnectToSearch",
    "ThirdPartyStoragePartitioning",
)
FLAGS = (
    f"--disable-features={','.join(_DISABLED_FEATURES)}",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def _missing() -> str | None:
    if not has_libraries():
        return "the libraries of the page are not there: run `make install` with a network"
    if found_chromium() is None:
        return "no Chromium for tests: install one, or set HANDOFF_TEST_CHROMIUM"
    return None


def found_chromium() -> str | None:
    """Return the browser to take."""
    found = [os.environ.get("HANDOFF_TEST_CHROMIUM"), *map(shutil.which, NAMES)]
    return next((path for path in found if path), None)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    reason = _missing()
    if reason is not None:
        if os.environ.get("HANDOFF_TEST_REQUIRE_ALL"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found_chromium(), args=FLAGS)
        yield browser
        await browser.close()


class PageUpstream(FakeUpstream):
    """A provider that also writes titles: those of ``titles``, or the first line of the user message."""

    def __init__(self) -> None:
        super().__init__(aside=self._title)
        self.titles: list[str | Reply] = []

    def _title(self, request: Received) -> Reply | None:
        content = request.body["messages"][-1]["content"] if request.body else None
        if not isinstance(content, str) or not content.startswith("Write a title of at most six words"):
            return None
        title = self.titles.pop(0) if self.titles else content.partition("user: ")[2].partition("\n")[0]
        return text(title) if isinstance(title, str) else title


@pytest_asyncio.fixture(loop_scope="session")
async def upstream() -> AsyncIterator[PageUpstream]:
    async with PageUpstream() as created:
        yield created


@pytest_asyncio.fixture(loop_scope="session")
async def served(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Served]:
    async with serve(tmp_path, upstream.base_url) as created:
        yield created


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser, served: Served) -> AsyncIterator[Visitor]:
    async with visit(browser, served.url) as visitor:
        await visitor.open()
        yield visitor
