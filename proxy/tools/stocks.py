"""The tool ``get_stock_price``: prices from the chart endpoint of Yahoo Finance (no API key, personal use only).

A server with the same response format can be configured instead. Stooq's CSV endpoint serves only browsers.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from pydantic import Field

from proxy.errors import ToolError
from proxy.tools.egress import Egress
from proxy.tools.external_service import Service, ServiceFailed
from proxy.tools.functions import tool

STOCK_URL = "https://query1.finance.yahoo.com"

_CACHE_SECONDS = 60.0


class _Quote(msgspec.Struct, rename="camel"):
    symbol: str
    regular_market_price: float
    regular_market_time: int
    currency: str | None = None
    full_exchange_name: str | None = None
    long_name: str | None = None
    short_name: str | None = None
    chart_previous_close: float | None = None
    regular_market_day_high: float | None = None
    regular_market_day_low: float | None = None


class _Result(msgspec.Struct):
    meta: _Quote


class _Chart(msgspec.Struct):
    result: list[_Result] | None = None


class _Answer(msgspec.Struct):
    chart: _Chart


class Stocks:
    """The tool ``get_stock_price``."""

    def __init__(self, egress: Egress, *, url: str = STOCK_URL) -> None:
        self._egress = egress
        self._service = Service("the quote service", url)

    @tool(has_effects=False)
    async def get_stock_price(
        self,
        symbol: Annotated[
            str,
            Field(
                description="A ticker symbol: AAPL, SAP.DE, ^GSPC, BTC-USD.",
                pattern=r"^\s*\^?[A-Za-z0-9][A-Za-z0-9.=-]{0,19}\s*$",
            ),
        ],
    ) -> dict[str, object]:
        """Return the latest known price of a share, an index, a fund or a currency by its ticker symbol."""
        wanted = symbol.strip().upper()
        path = f"/v8/finance/chart/{wanted.replace('^', '%5E')}"
        unknown = ToolError(
            f"there is no symbol {wanted!r}; symbols of exchanges outside the US have a suffix, as in SAP.DE"
        )
        try:
            answer = await self._egress.get(
                self._service, path, {"range": "1d", "interval": "1d"}, _Answer, cache_seconds=_CACHE_SECONDS
            )
        except ServiceFailed as error:
            if error.status == 404:
                raise unknown from None
            raise
        if not answer.chart.result:
            raise unknown
        return _result(answer.chart.result[0].meta)


def _result(quote: _Quote) -> dict[str, object]:
    try:
        as_of = datetime.fromtimestamp(quote.regular_market_time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        as_of = None
    result: dict[str, object] = {
        "symbol": quote.symbol,
        "name": quote.long_name or quote.short_name or quote.symbol,
        "price": quote.regular_market_price,
        "currency": quote.currency or "unknown",
        "as_of": as_of,
        "exchange": quote.full_exchange_name,
        "day_high": quote.regular_market_day_high,
        "day_low": quote.regular_market_day_low,
    }
    if before := quote.chart_previous_close:
        change = quote.regular_market_price - before
        result |= {
            "previous_close": before,
            "change": round(change, 4),
            "change_percent": round(100 * change / before, 2),
        }
    return result
