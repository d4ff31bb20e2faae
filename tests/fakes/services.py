"""The outside services of the built-in tools on 127.0.0.1, in the forms in which the real ones answer.

::

    async with FakeServices() as services:
        services.sky = 95                              # what the weather is, as a WMO code
        ... settings with PROXY_WEATHER_URL=services.url
        assert services.asked[0].path == "/v1/search"  # every request, in order

``services.answer(path, function)`` puts a handler of aiohttp's in the place of one of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from aiohttp import web
from yarl import URL

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TOKYO = {
    "id": 1850147, "name": "Tokyo", "latitude": 35.6895, "longitude": 139.69171, "elevation": 44.0,
    "feature_code": "PPLC", "country_code": "JP", "admin1_id": 1850144, "timezone": "Asia/Tokyo",
    "population": 9733276, "country_id": 1861060, "country": "Japan", "admin1": "Tokyo",
}  # fmt: skip
SPRINGFIELD = {
    "id": 4250542, "name": "Springfield", "latitude": 39.80172, "longitude": -89.64371, "elevation": 180.0,
    "feature_code": "PPLA", "country_code": "US", "timezone": "America/Chicago", "country": "United States",
    "admin1": "Illinois",
}  # fmt: skip
APPLE = {
    "currency": "USD", "symbol": "AAPL", "exchangeName": "NMS", "fullExchangeName": "NasdaqGS",
    "instrumentType": "EQUITY", "firstTradeDate": 345479400, "regularMarketTime": 1763758801,
    "hasPrePostMarketData": True, "gmtoffset": -18000, "timezone": "EST",
    "exchangeTimezoneName": "America/New_York", "regularMarketPrice": 271.49, "fiftyTwoWeekHigh": 277.32,
    "fiftyTwoWeekLow": 169.21, "regularMarketDayHigh": 273.33, "regularMarketDayLow": 265.67,
    "regularMarketVolume": 58784100, "longName": "Apple Inc.", "shortName": "Apple Inc.",
    "chartPreviousClose": 266.25, "previousClose": 266.25, "scale": 3, "priceHint": 2,
}  # fmt: skip


class FakeServices:
    """The server, as a context manager; ``url`` is the base of every service."""

    def __init__(self) -> None:
        self.asked: list[URL] = []
        self.headers: list[dict[str, str]] = []
        self.places: dict[str, dict[str, Any]] = {"tokyo": TOKYO, "springfield, il": SPRINGFIELD}
        self.sky = 3
        self.found: list[dict[str, Any]] = [_hit(number) for number in range(1, 21)]
        self._answers: dict[str, Handler] = {
            "/v1/search": self._geocoding,
            "/v1/forecast": self._forecast,
            "/v8/finance/chart": self._chart,
            "/search": self._searxng,
        }
        self._runner: web.AppRunner | None = None
        self.url = ""

    def answer(self, path: str, handler: Handler) -> None:
        """Have requests whose path begins with this one answered by the handler."""
        self._answers = {
            path: handler,
            **{known: old for known, old in self._answers.items() if known != path},
        }

    async def __aenter__(self) -> FakeServices:
        app = web.Application()
        app.router.add_get("/{rest:.*}", self._dispatch)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.url)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        for path, handler in self._answers.items():
            if request.path.startswith(path):
                return await handler(request)
        return web.json_response({"error": "no such path"}, status=404)

    async def _geocoding(self, request: web.Request) -> web.Response:
        found = self.places.get(request.query["name"].lower())
        body: dict[str, Any] = {"generationtime_ms": 0.6}
        return web.json_response({"results": [found], **body} if found else body)

    async def _forecast(self, request: web.Request) -> web.Response:
        query = request.query
        if not -90 <= float(query["latitude"]) <= 90:
            return web.json_response({"error": True, "reason": "Latitude must be in range"}, status=400)
        is_american = query.get("temperature_unit") == "fahrenheit"
        days = int(query["forecast_days"])
        degrees, speed = ("°F", "mp/h") if is_american else ("°C", "km/h")
        return web.json_response({
            "latitude": 35.7, "longitude": 139.6875, "generationtime_ms": 0.11, "utc_offset_seconds": 32400,
            "timezone": "Asia/Tokyo", "timezone_abbreviation": "GMT+9", "elevation": 40.0,
            "current_units": {
                "time": "iso8601", "interval": "seconds", "temperature_2m": degrees,
                "apparent_temperature": degrees, "relative_humidity_2m": "%", "precipitation": "mm",
                "weather_code": "wmo code", "wind_speed_10m": speed,
            },
            "current": {
                "time": "2026-11-24T03:45", "interval": 900, "temperature_2m": 12.4,
                "apparent_temperature": 10.9, "relative_humidity_2m": 71, "precipitation": 0.0,
                "weather_code": self.sky, "wind_speed_10m": 8.3,
            },
            "daily_units": {"time": "iso8601", "weather_code": "wmo code", "temperature_2m_max": degrees},
            "daily": {
                "time": [f"2026-11-{24 + day}" for day in range(days)],
                "weather_code": [61] * days,
                "temperature_2m_max": [15.2] * days,
                "temperature_2m_min": [9.8] * days,
                "precipitation_probability_max": [80, *[None] * (days - 1)],
            },
        })  # fmt: skip

    async def _chart(self, request: web.Request) -> web.Response:
        if request.path.rpartition("/")[2] != "AAPL":
            problem = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
            return web.json_response({"chart": {"result": None, "error": problem}}, status=404)
        result = {"meta": APPLE, "timestamp": [1763735400], "indicators": {"quote": [{"close": [271.49]}]}}
        return web.json_response({"chart": {"result": [result], "error": None}})

    async def _searxng(self, request: web.Request) -> web.Response:
        if request.query.get("format") != "json":
            return web.Response(text="<!DOCTYPE html>", content_type="text/html")
        return web.json_response({
            "query": request.query["q"], "number_of_results": 0, "results": self.found, "answers": [],
            "corrections": [], "infoboxes": [], "suggestions": [], "unresponsive_engines": [["bing", "timeout"]],
        })  # fmt: skip


def _hit(number: int) -> dict[str, Any]:
    url = f"https://example.org/{number}"
    return {
        "url": url, "title": f"Result {number}", "content": f"Content of {number}.", "publishedDate": None,
        "thumbnail": "", "engine": "brave", "template": "default.html",
        "parsed_url": ["https", "example.org", f"/{number}", "", "", ""], "img_src": "", "priority": "",
        "engines": ["brave"], "positions": [number], "score": 1 / number, "category": "general",
    }  # fmt: skip
