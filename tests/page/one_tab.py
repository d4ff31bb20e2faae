"""Fixtures for tests that share a tab and a server, because these take more CPU time than most tests of the page.

A test module imports ``tab_of_module``, ``upstream_of_tab`` and one of two visitors, which replace those of the folder:
``visitor_of_tab`` has a new conversation, ``user_of_tab`` is a new user without conversations, agents and settings.
"""

from __future__ import annotations

import secrets
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
    await _reset(visitor)
    await visitor.page.evaluate("document.querySelector('dialog[open]')?.close()")
    await visitor.button("New conversation").click()
    await expect(visitor.page.locator("#welcome h1")).to_be_visible()
    yield visitor
    _check(visitor)


@pytest_asyncio.fixture(loop_scope="session", name="visitor")
async def user_of_tab(tab: tuple[Visitor, PageUpstream]) -> AsyncIterator[Visitor]:
    """The tab, loaded again with a new API key and without stored settings."""
    visitor = tab[0]
    await _reset(visitor)
    await visitor.page.evaluate(
        """key => {
            localStorage.clear();
            sessionStorage.clear();
            sessionStorage.setItem("handoff.key", key);
        }""",
        secrets.token_hex(8),
    )
    await visitor.open()
    yield visitor
    _check(visitor)


async def _reset(visitor: Visitor) -> None:
    await visitor.page.unroute_all()
    await visitor.page.context.set_offline(False)
    await visitor.page.set_viewport_size(VIEWPORT)


def _check(visitor: Visitor) -> None:
    problems, visitor.problems = visitor.problems, []
    assert not problems, problems
