"""The tools that ask services on the network, over servers on loopback that answer in the services' real forms."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proxy.settings import load_settings
from proxy.tools.builtin import ServiceUrls, builtin_tools
from proxy.tools.egress import Egress
from proxy.tools.execution import call_tool
from proxy.tools.functions import function_tool
from proxy.tools.port import Tool, ToolContext
from proxy.tools.search import WebSearch
from proxy.tools.threads import ToolThreads
from tests.fakes.services import FakeServices, Handler

CONTEXT = ToolContext("t:1:0", "t", "c", "ann", "Assistant", Path())

Call = Callable[..., Any]


@pytest.fixture
def threads() -> Iterator[ToolThreads]:
    created = ToolThreads()
    yield created
    created.close()


@pytest.fixture
async def services() -> AsyncIterator[FakeServices]:
    async with FakeServices() as created:
        yield created


async def run(tool: Tool, arguments: Mapping[str, object]) -> Any:
    """The result, or the text of the error."""
    result = await call_tool(tool, json.dumps(arguments), CONTEXT, time_limit=20, max_result_bytes=64 * 1024)
    return result.text if result.is_error else json.loads(result.text)


@pytest.fixture
def call(services: FakeServices, threads: ToolThreads) -> Call:
    settings = load_settings(
        env_file=None,
        weather_url=services.url,
        geocoding_url=f"{services.url}/",
        stock_url=services.url,
        searxng_url=services.url,
    )
    tools = builtin_tools(threads, ServiceUrls.of(settings), Egress())

    async def call(name: str, **arguments: object) -> Any:
        assert not tools[name].has_effects
        return await run(tools[name], arguments)

    return call


def answering(body: object, status: int = 200) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    return answer


async def test_tools_with_other_settings_share_schemas_and_call_their_service(threads: ToolThreads) -> None:
    async with FakeServices() as one, FakeServices() as other:
        found = []
        for services in (one, other):
            tool = builtin_tools(threads, ServiceUrls(searxng=services.url), Egress())["search_web"]
            await run(tool, {"query": "tea"})
            found.append(tool.spec.parameters)

        assert found[0] is found[1]
        assert [len(services.asked) for services in (one, other)] == [1, 1]


# --- get_weather ---


async def test_the_weather_has_a_forecast(services: FakeServices, call: Call) -> None:
    assert await call("get_weather", city=" Tokyo ", days=2) == {
        "place": "Tokyo, Japan",
        "local_time": "2026-11-24T03:45",
        "timezone": "Asia/Tokyo",
        "units": "°C and km/h",
        "now": {
            "temperature": 12.4,
            "feels_like": 10.9,
            "sky": "overcast",
            "humidity_percent": 71,
            "wind": 8.3,
            "precipitation_mm": 0,
        },
        "forecast": [
            {"date": "2026-11-24", "sky": "light rain", "high": 15.2, "low": 9.8, "rain_percent": 80},
            {"date": "2026-11-25", "sky": "light rain", "high": 15.2, "low": 9.8, "rain_percent": None},
        ],
        "source": "Open-Meteo.com",
    }
    place, forecast = services.asked
    assert dict(place.query) == {"name": "Tokyo", "count": "1", "language": "en", "format": "json"}
    assert forecast.path == "/v1/forecast"
    assert (forecast.query["latitude"], forecast.query["longitude"]) == ("35.6895", "139.6917")


async def test_a_region_distinguishes_places_and_units_can_be_selected(
    services: FakeServices, call: Call
) -> None:
    weather = await call("get_weather", city="Springfield, IL", unit="fahrenheit")

    assert weather["place"] == "Springfield, Illinois, United States"
    assert weather["units"] == "°F and mph"
    assert services.asked[1].query["temperature_unit"] == "fahrenheit"
    assert services.asked[1].query["wind_speed_unit"] == "mph"


async def test_responses_are_cached(services: FakeServices, call: Call) -> None:
    assert await call("get_weather", city="Tokyo") == await call("get_weather", city="Tokyo")

    assert len(services.asked) == 2


async def test_an_unknown_weather_code_is_unknown(services: FakeServices, call: Call) -> None:
    services.sky = 42

    assert (await call("get_weather", city="Tokyo"))["now"]["sky"] == "unknown"


async def test_an_unknown_place_is_an_error(call: Call) -> None:
    assert await call("get_weather", city="Atlantis") == (
        "error: no place named 'Atlantis' was found; check the spelling or use a larger city nearby"
    )
    assert "at least 2 characters" in await call("get_weather", city="A")


@pytest.mark.parametrize(
    ("path", "handler", "message"),
    [
        (
            "/v1/search",
            answering({}, 500),
            "error: the geocoding service responded with an error (status 500)",
        ),
        (
            "/v1/search",
            answering({"results": [{"name": "Tokyo"}]}),
            "error: the geocoding service sent a response that could not be decoded",
        ),
        (
            "/v1/forecast",
            answering({"error": True, "reason": "Cannot read <secret>"}, 400),
            "error: the weather service responded with an error (status 400)",
        ),
        (
            "/v1/forecast",
            answering({"reason": "Minutely API request limit exceeded"}, 429),
            "error: the weather service is rate limiting requests; try again in a few minutes",
        ),
    ],
    ids=["search-fails", "search-is-strange", "forecast-refuses", "rate-limit"],
)
async def test_a_failing_weather_service_is_an_error(
    services: FakeServices, call: Call, path: str, handler: Handler, message: str
) -> None:
    services.answer(path, handler)

    assert await call("get_weather", city="Tokyo") == message


# --- get_stock_price ---


async def test_a_price_has_its_change(services: FakeServices, call: Call) -> None:
    assert await call("get_stock_price", symbol=" aapl ") == {
        "symbol": "AAPL",
        "name": "Apple Inc.",
        "price": 271.49,
        "currency": "USD",
        "as_of": "2025-11-21T21:00:01Z",
        "exchange": "NasdaqGS",
        "day_high": 273.33,
        "day_low": 265.67,
        "previous_close": 266.25,
        "change": 5.24,
        "change_percent": 1.97,
    }
    assert str(services.asked[0].relative()) == "/v8/finance/chart/AAPL?range=1d&interval=1d"


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        (
            "NOPE",
            "error: there is no symbol 'NOPE'; symbols of exchanges outside the US have a suffix, as in SAP.DE",
        ),
        (
            "^nope",
            "error: there is no symbol '^NOPE'; symbols of exchanges outside the US have a suffix, as in SAP.DE",
        ),
    ],
)
async def test_an_unknown_symbol_is_an_error(call: Call, symbol: str, message: str) -> None:
    assert await call("get_stock_price", symbol=symbol) == message


@pytest.mark.parametrize("symbol", ["", "../admin", "A/B", "A?b=c", "A%2f", "a b", "A" * 30])
async def test_an_invalid_symbol_is_not_requested(services: FakeServices, call: Call, symbol: str) -> None:
    assert "argument 'symbol'" in await call("get_stock_price", symbol=symbol)
    assert services.asked == []


async def test_a_quote_without_price_is_an_error(services: FakeServices, call: Call) -> None:
    meta = {"symbol": "AAPL", "regularMarketTime": 1}
    services.answer("/v8", answering({"chart": {"result": [{"meta": meta}], "error": None}}))

    assert await call("get_stock_price", symbol="AAPL") == (
        "error: the quote service sent a response that could not be decoded"
    )


# --- search_web ---


async def test_a_searxng_server_is_called(services: FakeServices, call: Call) -> None:
    assert await call("search_web", query=" road  runners ", max_results=2) == {
        "query": "road runners",
        "results": [
            {"title": "Result 1", "url": "https://example.org/1", "snippet": "Content of 1."},
            {"title": "Result 2", "url": "https://example.org/2", "snippet": "Content of 2."},
        ],
    }
    assert dict(services.asked[0].query) == {"q": "road runners", "format": "json", "safesearch": "1"}


async def test_long_texts_are_cut_and_addresses_of_other_kinds_left_out(
    services: FakeServices, call: Call
) -> None:
    services.found = [
        {"url": "javascript:alert(1)", "title": "x", "content": "x"},
        {"url": "https://example.org", "title": None, "content": "word " * 200},
    ]

    (result,) = (await call("search_web", query="x"))["results"]

    assert (result["title"], len(result["snippet"])) == ("https://example.org", 400)


async def test_an_empty_result_is_not_an_error(services: FakeServices, call: Call) -> None:
    services.found = []

    assert await call("search_web", query="x") == {
        "query": "x",
        "results": [],
        "note": "No results; try other words.",
    }
    assert await call("search_web", query="  ") == "error: the query is empty"


async def test_a_server_without_json_is_an_error(services: FakeServices, call: Call) -> None:
    services.answer("/search", answering({}, 403))

    assert await call("search_web", query="x") == (
        "error: the search server does not return JSON; add json to search.formats in its settings"
    )


async def searched(threads: ToolThreads, library: Any) -> Any:
    search = WebSearch(Egress(), threads, library=library)
    return await run(function_tool(search.search_web, threads), {"query": "x", "max_results": 3})


async def test_without_a_server_the_library_searches_in_a_thread(threads: ToolThreads) -> None:
    requested: list[tuple[str, int, bool]] = []

    def library(query: str, count: int) -> Sequence[Mapping[str, str]]:
        requested.append((query, count, threading.current_thread() is threading.main_thread()))
        return [{"title": "A  title", "href": "https://example.org", "body": "words"}]

    assert await searched(threads, library) == {
        "query": "x",
        "results": [{"title": "A title", "url": "https://example.org", "snippet": "words"}],
    }
    assert requested == [("x", 3, False)]


def test_the_library_has_what_is_required_of_it() -> None:
    from ddgs import DDGS
    from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

    assert callable(DDGS(timeout=1).text)
    assert issubclass(RatelimitException, DDGSException)
    assert issubclass(TimeoutException, DDGSException)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "DDGSException",
            "No results found.",
            "no results, or the search engines rejected the request; try other words",
        ),
        ("DDGSException", "ConnectError: dns error", "the search engines could not be reached"),
        (
            "RatelimitException",
            "429",
            "the search engines are rate limiting requests; try again in a few minutes",
        ),
        ("TimeoutException", "timed out", "the search engines did not respond in time"),
    ],
)
async def test_a_failing_library_is_an_error(
    threads: ToolThreads, kind: str, text: str, message: str
) -> None:
    import ddgs.exceptions

    def library(query: str, count: int) -> Sequence[Mapping[str, str]]:
        raise getattr(ddgs.exceptions, kind)(text)

    assert await searched(threads, library) == f"error: {message}"


# --- together ---


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("get_weather", {"city": "Tokyo"}),
        ("get_stock_price", {"symbol": "AAPL"}),
        ("search_web", {"query": "x"}),
    ],
)
async def test_without_network_the_tools_say_so(
    services: FakeServices, call: Call, name: str, arguments: dict[str, object]
) -> None:
    # The port belonged to this server and is free now.
    await services.__aexit__(None, None, None)
    try:
        assert (await call(name, **arguments)).endswith(" could not be reached")
    finally:
        await services.__aenter__()
