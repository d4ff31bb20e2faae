"""The tool ``search_web``: web search with a configured SearXNG server, or else with the library ``ddgs``.

``ddgs`` queries public search engines over its own connections. Result pages are not opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec
from pydantic import Field

from proxy.errors import ToolError
from proxy.tools.egress import Egress
from proxy.tools.external_service import Service, ServiceFailed
from proxy.tools.functions import tool
from proxy.tools.threads import ToolThreads

_CACHE_SECONDS = 300.0
_ENGINE_TIMEOUT = 8
"""Seconds for one search engine."""
_MAX_TITLE = 200
_MAX_SNIPPET = 400

LibrarySearch = Callable[[str, int], Sequence[Mapping[str, str]]]
"""Takes a query and a maximum number of results; blocks; returns results with ``title``, ``href`` and ``body``."""


class _Hit(msgspec.Struct):
    url: str = ""
    title: str | None = None
    content: str | None = None


class _Found(msgspec.Struct):
    results: list[_Hit]


def ddgs_search(query: str, count: int) -> Sequence[Mapping[str, str]]:
    """Search with ``ddgs``."""
    # Imported on first use: the import takes 0.25 s.
    from ddgs import DDGS

    return DDGS(timeout=_ENGINE_TIMEOUT).text(query, max_results=count)


class WebSearch:
    """The tool ``search_web``. ``searxng`` is the base URL of a SearXNG server."""

    def __init__(
        self,
        egress: Egress,
        threads: ToolThreads,
        *,
        searxng: str | None = None,
        library: LibrarySearch = ddgs_search,
    ) -> None:
        self._egress = egress
        self._threads = threads
        self._searxng = Service("the search server", searxng) if searxng else None
        self._library = library

    @tool(has_effects=False)
    async def search_web(
        self,
        query: Annotated[
            str, Field(description="The query, as in a search engine.", min_length=1, max_length=400)
        ],
        max_results: Annotated[int, Field(ge=1, le=10)] = 5,
    ) -> dict[str, object]:
        """Search the web. Returns titles, URLs and snippets, which are not verified."""
        words = " ".join(query.split())
        if not words:
            raise ToolError("the query is empty")
        hits = await (
            self._search_searxng(words) if self._searxng else self._search_library(words, max_results)
        )
        results = [_result(hit) for hit in hits if hit.url.startswith(("http://", "https://"))][:max_results]
        if not results:
            return {"query": words, "results": [], "note": "No results; try other words."}
        return {"query": words, "results": results}

    async def _search_searxng(self, query: str) -> Sequence[_Hit]:
        assert self._searxng is not None
        parameters = {"q": query, "format": "json", "safesearch": "1"}
        try:
            found = await self._egress.get(
                self._searxng, "/search", parameters, _Found, cache_seconds=_CACHE_SECONDS
            )
        except ServiceFailed as error:
            # SearXNG answers 403 for a format that is not in ``search.formats`` (SearXNG documentation, Search API).
            if error.status == 403:
                raise ToolError(
                    "the search server does not return JSON; add json to search.formats in its settings"
                ) from None
            raise
        return found.results

    async def _search_library(self, query: str, count: int) -> Sequence[_Hit]:
        try:
            found = await self._threads.run(lambda: self._library(query, count))
        # The library raises its own errors and those of several libraries below it.
        except Exception as error:  # noqa: BLE001
            raise ToolError(_reason(error)) from None
        return [_Hit(hit.get("href", ""), hit.get("title"), hit.get("body")) for hit in found]


def _reason(error: Exception) -> str:
    name = type(error).__name__
    if "No results" in str(error):
        return "no results, or the search engines rejected the request; try other words"
    if name == "RatelimitException":
        return "the search engines are rate limiting requests; try again in a few minutes"
    if name == "TimeoutException":
        return "the search engines did not respond in time"
    return "the search engines could not be reached"


def _result(hit: _Hit) -> dict[str, str]:
    return {
        "title": _shorten(hit.title or hit.url, _MAX_TITLE),
        "url": hit.url,
        "snippet": _shorten(hit.content or "", _MAX_SNIPPET),
    }


def _shorten(text: str, max_length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"
