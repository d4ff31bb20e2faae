"""Fixtures for tests that look at answers: each has a new conversation in the same tab, on the same server.

A server, a browser context and the first load of the page take more CPU time than such a test. A test module imports
the fixtures, which replace those of the folder.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.page.conftest import PageUpstream
from tests.page.visitor import VIEWPORT, Visitor, visit
from tests.server import serve


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="tab")
async def tab_of_module(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Visitor, PageUpstream]]:
    async with (
        PageUpstream() as upstream,
        serve(tmp_path_factory.mktemp("tab"), upstream.base_url) as served,
        visit(browser, served.url) as visitor,
    ):
        await visitor.open()
        yield visitor, upstream


@pytest.fixture(name="upstream")
def upstream_of_tab(tab: tuple[Visitor, PageUpstream]) -> PageUpstream:
    """The provider of the server, without the requests and replies of earlier tests."""
    upstream = tab[1]
    upstream.forget()
    upstream.titles.clear()
    return upstream


@pytest_asyncio.fixture(loop_scope="session", name="visitor")
async def visitor_of_tab(tab: tuple[Visitor, PageUpstream]) -> AsyncIterator[Visitor]:
    """The tab, with a new conversation."""
    visitor = tab[0]
    await visitor.page.unroute_all()
    await visitor.page.context.set_offline(False)
    await visitor.page.set_viewport_size(VIEWPORT)
    await visitor.page.evaluate("document.querySelector('dialog[open]')?.close()")
    await visitor.button("New conversation").click()
    await expect(visitor.page.locator("#welcome h1")).to_be_visible()
    yield visitor
    problems, visitor.problems = visitor.problems, []
    assert not problems, problems
