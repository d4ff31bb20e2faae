"""The tool ``get_time``: the current time in a time zone or city."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from difflib import get_close_matches
from typing import Annotated
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field

from proxy.errors import ToolError
from proxy.tools.functions import tool

_OFFSET = re.compile(r"(?:utc|gmt)?\s*([+-])(\d{1,2})(?::?(\d{2}))?", re.IGNORECASE)
_FURTHEST_MINUTES = 14 * 60

_CITIES = {
    "Africa/Johannesburg": "cape town, durban, pretoria",
    "America/Chicago": "austin, dallas, houston, minneapolis, new orleans, san antonio, st louis",
    "America/Los_Angeles": "las vegas, portland, sacramento, san diego, san francisco, san jose, seattle",
    "America/New_York": "atlanta, boston, miami, nyc, orlando, philadelphia, pittsburgh, washington, washington dc",
    "America/Sao_Paulo": "brasilia, rio de janeiro",
    "America/Toronto": "montreal, ottawa, quebec",
    "America/Mexico_City": "guadalajara",
    "Asia/Dubai": "abu dhabi",
    "Asia/Ho_Chi_Minh": "hanoi",
    "Asia/Kolkata": "bangalore, bengaluru, chennai, delhi, hyderabad, mumbai, new delhi, pune",
    "Asia/Riyadh": "jeddah, mecca",
    "Asia/Shanghai": "beijing, guangzhou, hangzhou, shenzhen",
    "Asia/Tokyo": "fukuoka, kyoto, nagoya, osaka, sapporo",
    "Australia/Sydney": "canberra",
    "Europe/Berlin": "bonn, cologne, dresden, duesseldorf, dusseldorf, düsseldorf, frankfurt, hamburg, köln, leipzig, "
    "munich, münchen, stuttgart",
    "Europe/Istanbul": "ankara, izmir",
    "Europe/London": "birmingham, bristol, cambridge, edinburgh, glasgow, leeds, liverpool, manchester, oxford",
    "Europe/Madrid": "barcelona, seville, valencia",
    "Europe/Moscow": "saint petersburg, st petersburg",
    "Europe/Paris": "bordeaux, lyon, marseille, nice, strasbourg, toulouse",
    "Europe/Rome": "florence, milan, naples, roma, turin, venice",
    "Europe/Vienna": "graz, salzburg, wien",
    "Europe/Warsaw": "gdansk, krakow",
    "Europe/Zurich": "basel, bern, geneva, zürich",
    "Pacific/Auckland": "christchurch, wellington",
}
"""Large cities whose time zone has another name in the IANA database, by time zone."""


class Clock:
    """The tool ``get_time``."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now

    @tool(has_effects=False)
    def get_time(
        self,
        timezone: Annotated[
            str,
            Field(
                description="An IANA name (Europe/Paris), a large city (Tokyo), UTC, or an offset (UTC+5:30).",
                max_length=100,
            ),
        ] = "UTC",
    ) -> dict[str, str]:
        """Return the date and the time of day in a time zone or a city."""
        name, zone = _zone(timezone)
        now = self._now().astimezone(zone)
        offset = now.strftime("%z")
        return {
            "timezone": name,
            "date": now.strftime("%Y-%m-%d"),
            "weekday": now.strftime("%A"),
            "time": now.strftime("%H:%M:%S"),
            "utc_offset": f"{offset[:3]}:{offset[3:5]}",
        }


def _zone(text: str) -> tuple[str, tzinfo]:
    wanted = _plain(text)
    if offset := _OFFSET.fullmatch(text.strip()):
        return _fixed(offset)
    # In "Paris, France", the part before the comma is the city.
    for candidate in (wanted, wanted.partition(",")[0].strip()):
        if name := _names().get(candidate):
            return name, ZoneInfo(name)
    near = get_close_matches(wanted.rpartition("/")[2], _names(), n=1, cutoff=0.75)
    hint = (
        f"did you mean {_names()[near[0]]}?"
        if near
        else "use an IANA name such as Europe/Paris, or a large city"
    )
    raise ToolError(f"there is no time zone {text.strip()[:60]!r}; {hint}")


def _fixed(offset: re.Match[str]) -> tuple[str, tzinfo]:
    minutes = int(offset[2]) * 60 + int(offset[3] or 0)
    if minutes > _FURTHEST_MINUTES or int(offset[3] or 0) > 59:
        raise ToolError("an offset from UTC is at most 14 hours")
    away = timedelta(minutes=minutes if offset[1] == "+" else -minutes)
    return f"UTC{offset[1]}{minutes // 60:02}:{minutes % 60:02}", timezone(away)


@functools.cache
def _names() -> Mapping[str, str]:
    """Return the IANA time zone by each accepted name; names are in lower case, with spaces for underscores."""
    zones = sorted(available_timezones() - {"Factory", "localtime"})
    names: dict[str, str] = {}
    for zone in zones:
        area, _, city = zone.rpartition("/")
        # The sign in Etc/GMT+5 is inverted (it is UTC-5; IANA tz database, "etcetera"). Accept the full name only.
        if area and area != "Etc":
            names.setdefault(_plain(city), zone)
    for zone, cities in _CITIES.items():
        names.update((city, zone) for city in cities.split(", "))
    names.update((_plain(zone), zone) for zone in zones)
    return names


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").replace(".", " ").split()).lower()
