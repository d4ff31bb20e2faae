"""The tool get_time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ToolError
from proxy.tools.clock import Clock

WINTER = datetime(2026, 1, 15, 23, 30, 5, tzinfo=UTC)
SUMMER = datetime(2026, 7, 15, 23, 30, 5, tzinfo=UTC)


def time_at(place: str, now: datetime = WINTER) -> str:
    answer = Clock(lambda: now).get_time(place)
    return (
        f"{answer['timezone']} {answer['weekday']} {answer['date']} {answer['time']} {answer['utc_offset']}"
    )


def test_without_a_zone_it_is_utc() -> None:
    assert Clock(lambda: WINTER).get_time() == {
        "timezone": "UTC",
        "date": "2026-01-15",
        "weekday": "Thursday",
        "time": "23:30:05",
        "utc_offset": "+00:00",
    }


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("Asia/Tokyo", "Asia/Tokyo Friday 2026-01-16 08:30:05 +09:00"),
        ("europe/paris", "Europe/Paris Friday 2026-01-16 00:30:05 +01:00"),
        ("Tokyo", "Asia/Tokyo Friday 2026-01-16 08:30:05 +09:00"),
        (" new  york ", "America/New_York Thursday 2026-01-15 18:30:05 -05:00"),
        ("New_York", "America/New_York Thursday 2026-01-15 18:30:05 -05:00"),
        ("San Francisco", "America/Los_Angeles Thursday 2026-01-15 15:30:05 -08:00"),
        ("St. Petersburg", "Europe/Moscow Friday 2026-01-16 02:30:05 +03:00"),
        ("Paris, France", "Europe/Paris Friday 2026-01-16 00:30:05 +01:00"),
        ("München", "Europe/Berlin Friday 2026-01-16 00:30:05 +01:00"),
        ("Kathmandu", "Asia/Kathmandu Friday 2026-01-16 05:15:05 +05:45"),
        ("gmt", "GMT Thursday 2026-01-15 23:30:05 +00:00"),
        ("UTC+5:30", "UTC+05:30 Friday 2026-01-16 05:00:05 +05:30"),
        ("-0330", "UTC-03:30 Thursday 2026-01-15 20:00:05 -03:30"),
        ("GMT-3", "UTC-03:00 Thursday 2026-01-15 20:30:05 -03:00"),
    ],
)
def test_zones_are_found_by_name_city_or_offset(place: str, expected: str) -> None:
    assert time_at(place) == expected


def test_summer_time_counts() -> None:
    assert time_at("Berlin") == "Europe/Berlin Friday 2026-01-16 00:30:05 +01:00"
    assert time_at("Berlin", SUMMER) == "Europe/Berlin Thursday 2026-07-16 01:30:05 +02:00"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("Tokio", "there is no time zone 'Tokio'; did you mean Asia/Tokyo?"),
        ("Europe/Pariss", "there is no time zone 'Europe/Pariss'; did you mean Europe/Paris?"),
        ("", "there is no time zone ''; use an IANA name such as Europe/Paris, or a large city"),
        (
            "Narnia-on-Sea",
            "there is no time zone 'Narnia-on-Sea'; use an IANA name such as Europe/Paris, or a large city",
        ),
        (
            "../../etc/passwd",
            "there is no time zone '../../etc/passwd'; use an IANA name such as Europe/Paris, or a large city",
        ),
        ("UTC+15", "an offset from UTC is at most 14 hours"),
        ("+1:75", "an offset from UTC is at most 14 hours"),
    ],
)
def test_an_unknown_zone_gets_a_suggestion(place: str, message: str) -> None:
    with pytest.raises(ToolError) as raised:
        time_at(place)

    assert raised.value.message == message


@given(st.text(max_size=100))
def test_any_text_is_a_zone_or_a_tool_error_with_a_reason(place: str) -> None:
    answer = answer_or_error(place)

    if not answer.startswith(("there is no time zone ", "an offset from UTC is at most 14 hours")):
        offset = datetime.strptime(answer.rpartition(" ")[2], "%z").utcoffset()
        assert offset is not None
        assert abs(offset) <= timedelta(hours=14)


def answer_or_error(place: str) -> str:
    try:
        return time_at(place)
    except ToolError as error:
        return error.message
