"""Built-in tools, which a team file names without an import path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from proxy.settings import Settings
from proxy.tools.acme import execute_order, execute_refund, look_up_item
from proxy.tools.arguments import Arguments
from proxy.tools.calculator import calculate
from proxy.tools.clock import Clock
from proxy.tools.egress import Egress
from proxy.tools.functions import function_tool
from proxy.tools.port import Tool
from proxy.tools.sales import query_sales
from proxy.tools.search import WebSearch
from proxy.tools.stocks import STOCK_URL, Stocks
from proxy.tools.threads import ToolThreads
from proxy.tools.weather import GEOCODING_URL, WEATHER_URL, Weather


class ServiceUrls(Struct, frozen=True):
    """Base URLs of the services that tools call; the defaults are public services."""

    weather: str = WEATHER_URL
    geocoding: str = GEOCODING_URL
    stocks: str = STOCK_URL
    searxng: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> ServiceUrls:
        """Return the URLs of the settings."""
        return cls(
            weather=settings.weather_url,
            geocoding=settings.geocoding_url,
            stocks=settings.stock_url,
            searxng=settings.searxng_url,
        )


def builtin_names() -> frozenset[str]:
    """Return the names of the built-in tools."""
    threads = ToolThreads()
    try:
        return frozenset(function.__name__ for function in _functions(threads, ServiceUrls(), Egress()))
    finally:
        threads.close()


# By function name. The signatures of built-in tools do not depend on the settings, which each set of teams reads again.
_arguments: dict[str, Arguments] = {}


class _Tools(Mapping[str, Tool]):
    """Create tools on first access: deriving the schemas of all takes 10 ms, and most are not used."""

    def __init__(
        self, functions: Sequence[Callable[..., Any]], threads: ToolThreads, created: Mapping[str, Tool]
    ) -> None:
        self._functions = {function.__name__: function for function in functions}
        self._threads = threads
        self._created = dict(created)

    def __getitem__(self, name: str) -> Tool:
        tool = self._created.get(name)
        if tool is None:
            function = self._functions[name]
            if name not in _arguments:
                _arguments[name] = Arguments(function, name)
            tool = function_tool(function, self._threads, arguments=_arguments[name])
            self._created[name] = tool
        return tool

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions | self._created)

    def __len__(self) -> int:
        return len(self._functions | self._created)


def builtin_tools(
    threads: ToolThreads,
    addresses: ServiceUrls | None = None,
    egress: Egress | None = None,
    *,
    extra: Mapping[str, Tool] = MappingProxyType({}),
) -> Mapping[str, Tool]:
    """Return the built-in tools and ``extra`` by name; ``extra`` has precedence. Blocking tools run in ``threads``."""
    return _Tools(_functions(threads, addresses or ServiceUrls(), egress or Egress()), threads, extra)


def _functions(threads: ToolThreads, addresses: ServiceUrls, egress: Egress) -> Sequence[Callable[..., Any]]:
    return (
        calculate,
        Clock().get_time,
        Weather(egress, geocoding=addresses.geocoding, forecast=addresses.weather).get_weather,
        WebSearch(egress, threads, searxng=addresses.searxng).search_web,
        Stocks(egress, url=addresses.stocks).get_stock_price,
        query_sales,
        execute_order,
        look_up_item,
        execute_refund,
    )
