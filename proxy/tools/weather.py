"""The tool ``get_weather``, with the geocoding and forecast APIs of Open-Meteo (https://open-meteo.com/en/docs)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import Field

from proxy.errors import ToolError
from proxy.tools.egress import Egress
from proxy.tools.external_service import Service
from proxy.tools.functions import tool

GEOCODING_URL = "https://geocoding-api.open-meteo.com"
WEATHER_URL = "https://api.open-meteo.com"

_PLACES_CACHE_SECONDS = 24 * 3600.0
_FORECAST_CACHE_SECONDS = 600.0
"""Open-Meteo updates the current conditions every 15 minutes (forecast API, ``current``)."""

_CURRENT = (
    "temperature_2m,apparent_temperature,relative_humidity_2m,precipitation,weather_code,wind_speed_10m"
)
_DAILY = "weather_code,temperature_2m_max,temperature_2m_min,precipitation_probability_max"

_SKIES = {
    0: "clear sky", 1: "mainly clear", 2: "partly cloudy", 3: "overcast", 45: "fog", 48: "freezing fog",
    51: "light drizzle", 53: "drizzle", 55: "dense drizzle", 56: "light freezing drizzle", 57: "freezing drizzle",
    61: "light rain", 63: "rain", 65: "heavy rain", 66: "light freezing rain", 67: "freezing rain",
    71: "light snow", 73: "snow", 75: "heavy snow", 77: "snow grains", 80: "light showers", 81: "showers",
    82: "violent showers", 85: "light snow showers", 86: "heavy snow showers", 95: "thunderstorm",
    96: "thunderstorm with hail", 99: "thunderstorm with heavy hail",
}  # fmt: skip
"""WMO weather interpretation codes (Open-Meteo documentation, "Weather variable documentation")."""


class Place(msgspec.Struct):
    """A result of the geocoding API."""

    name: str
    latitude: float
    longitude: float
    country: str = ""
    admin1: str = ""


class _Places(msgspec.Struct):
    results: list[Place] = []
    """The API omits the field if it found nothing."""


class _Now(msgspec.Struct):
    time: str
    temperature_2m: float
    apparent_temperature: float | None
    relative_humidity_2m: float | None
    precipitation: float | None
    weather_code: int | None
    wind_speed_10m: float | None


class _Days(msgspec.Struct):
    time: list[str]
    weather_code: list[int | None]
    temperature_2m_max: list[float | None]
    temperature_2m_min: list[float | None]
    precipitation_probability_max: list[float | None]


class _Forecast(msgspec.Struct):
    timezone: str
    current: _Now
    daily: _Days


class Weather:
    """The tool ``get_weather``."""

    def __init__(
        self, egress: Egress, *, geocoding: str = GEOCODING_URL, forecast: str = WEATHER_URL
    ) -> None:
        self._egress = egress
        self._geocoding = Service("the geocoding service", geocoding)
        self._forecast = Service("the weather service", forecast)

    @tool(has_effects=False)
    async def get_weather(
        self,
        city: Annotated[
            str,
            Field(
                description="The name of a city, with its country if ambiguous: Paris, France.",
                min_length=2,
                max_length=100,
            ),
        ],
        unit: Literal["celsius", "fahrenheit"] = "celsius",
        days: Annotated[int, Field(description="Days of forecast, including today.", ge=1, le=7)] = 3,
    ) -> dict[str, object]:
        """Return the current weather in a city and a forecast of a few days."""
        place = await self._place(" ".join(city.split()))
        query = {
            "latitude": f"{place.latitude:.4f}",
            "longitude": f"{place.longitude:.4f}",
            "current": _CURRENT,
            "daily": _DAILY,
            "timezone": "auto",
            "forecast_days": str(days),
        }
        if unit == "fahrenheit":
            query.update(temperature_unit="fahrenheit", wind_speed_unit="mph")
        found = await self._egress.get(
            self._forecast, "/v1/forecast", query, _Forecast, cache_seconds=_FORECAST_CACHE_SECONDS
        )
        return _result(place, found, unit)

    async def _place(self, city: str) -> Place:
        query = {"name": city, "count": "1", "language": "en", "format": "json"}
        found = await self._egress.get(
            self._geocoding, "/v1/search", query, _Places, cache_seconds=_PLACES_CACHE_SECONDS
        )
        if not found.results:
            raise ToolError(
                f"no place named {city[:60]!r} was found; check the spelling or use a larger city nearby"
            )
        return found.results[0]


def _result(place: Place, found: _Forecast, unit: str) -> dict[str, object]:
    now, days = found.current, found.daily
    rows = zip(
        days.time,
        days.weather_code,
        days.temperature_2m_max,
        days.temperature_2m_min,
        days.precipitation_probability_max,
        strict=False,
    )
    return {
        "place": ", ".join(dict.fromkeys(part for part in (place.name, place.admin1, place.country) if part)),
        "local_time": now.time,
        "timezone": found.timezone,
        "units": "°C and km/h" if unit == "celsius" else "°F and mph",
        "now": {
            "temperature": now.temperature_2m,
            "feels_like": now.apparent_temperature,
            "sky": _sky(now.weather_code),
            "humidity_percent": now.relative_humidity_2m,
            "wind": now.wind_speed_10m,
            "precipitation_mm": now.precipitation,
        },
        "forecast": [
            {"date": day, "sky": _sky(code), "high": high, "low": low, "rain_percent": rain}
            for day, code, high, low, rain in rows
        ],
        "source": "Open-Meteo.com",
    }


def _sky(code: int | None) -> str:
    return _SKIES.get(code, "unknown") if code is not None else "unknown"
