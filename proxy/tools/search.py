"""Search of the web: by a SearXNG server where one is set, else by the library ``ddgs``, which asks public engines.

The library makes its own connections, to the engines it knows and to nothing else. No page that was found is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec
from pydantic import Field

from proxy.errors import ToolError
from proxy.tools.egress import Egress, Service, ServiceFailed
from proxy.tools.functions import without_effects
from proxy.tools.threads import ToolThreads

_KEEP = 300.0
"""Seconds."""
_ENGINE_TIME = 8
"""Seconds for one engine."""
_MAX_TITLE = 200
_MAX_SNIPPET = 400

LibrarySearch = Callable[[str, int], Sequence[Mapping[str, str]]]
"""Blocks until it has at most so many results, each with ``title``, ``href`` and ``body``; raises anything."""


class _Hit(msgspec.Struct):
    url: str = ""
    title: str | None = None
    content: str | None = None


class _Found(msgspec.Struct):
    results: list[_Hit]


def ddgs_search(query: str, count: int) -> Sequence[Mapping[str, str]]:
    """Search with the library."""
    # It takes a quarter of a second to import; only who searches waits for it.
    from ddgs import DDGS

    return DDGS(timeout=_ENGINE_TIME).text(query, max_results=count)


class WebSearch:
    """The tool ``search_web``. ``searxng`` is the address of a SearXNG server."""

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

    @without_effects
    async def search_web(
        self,
        query: Annotated[
            str, Field(description="What to look for, as in a search engine.", min_length=1, max_length=400)
        ],
        max_results: Annotated[int, Field(ge=1, le=10)] = 5,
    ) -> dict[str, object]:
        """Search the web. Returns titles, addresses and snippets; what they say is not verified."""
        words = " ".join(query.split())
        if not words:
            raise ToolError("there is nothing to look for")
        hits = await (self._asked(words) if self._searxng else self._looked_up(words, max_results))
        results = [_result(hit) for hit in hits if hit.url.startswith(("http://", "https://"))][:max_results]
        if not results:
            return {"query": words, "results": [], "note": "Nothing was found; try other words."}
        return {"query": words, "results": results}

    async def _asked(self, query: str) -> Sequence[_Hit]:
        assert self._searxng is not None
        asked = {"q": query, "format": "json", "safesearch": "1"}
        try:
            found = await self._egress.get(self._searxng, "/search", asked, _Found, keep_seconds=_KEEP)
        except ServiceFailed as error:
            if error.status == 403:
                raise ToolError(
                    "the search server refuses to answer in JSON; its settings have to list json in search.formats"
                ) from None
            raise
        return found.results

    async def _looked_up(self, query: str, count: int) -> Sequence[_Hit]:
        try:
            found = await self._threads.run(lambda: self._library(query, count))
        # The library raises its own errors, and those of the several libraries below it.
        except Exception as error:  # noqa: BLE001
            raise ToolError(_reason(error)) from None
        return [_Hit(hit.get("href", ""), hit.get("title"), hit.get("body")) for hit in found]


def _reason(error: Exception) -> str:
    name = type(error).__name__
    if "No results" in str(error):
        return "nothing was found, or the search engines refused to answer; try other words"
    if name == "RatelimitException":
        return "the search engines ask for a pause; try again in a few minutes"
    if name == "TimeoutException":
        return "the search engines did not answer in time"
    return "the search engines could not be reached"


def _result(hit: _Hit) -> dict[str, str]:
    return {
        "title": _cut(hit.title or hit.url, _MAX_TITLE),
        "url": hit.url,
        "snippet": _cut(hit.content or "", _MAX_SNIPPET),
    }


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
