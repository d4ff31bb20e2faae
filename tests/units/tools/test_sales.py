"""The tool query_sales, against sums made from the file by other means."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.tools.builtin import builtin_tools
from proxy.tools.execution import call_tool
from proxy.tools.port import ToolContext
from proxy.tools.sales import FILE
from proxy.tools.threads import ToolThreads

REGIONS = {"North", "South", "East", "West"}


@pytest.fixture
def threads() -> Iterator[ToolThreads]:
    created = ToolThreads()
    yield created
    created.close()


async def requested(threads: ToolThreads, **arguments: object) -> Any:
    """The answer, or the text of the error."""
    tool = builtin_tools(threads)["query_sales"]
    context = ToolContext("t:1:0", "t", "c", "ann", "DataAgent", Path())
    result = await call_tool(tool, json.dumps(arguments), context, time_limit=20, max_result_bytes=64 * 1024)
    return result.text if result.is_error else json.loads(result.text)


def sales(**chosen: str) -> list[dict[str, str]]:
    with FILE.open() as file:
        return [row for row in csv.DictReader(file) if all(row[name] == chosen[name] for name in chosen)]


def revenue(rows: list[dict[str, str]]) -> float:
    return round(sum(float(row["revenue"]) for row in rows), 2)


def units(rows: list[dict[str, str]]) -> int:
    return sum(int(row["units"]) for row in rows)


def test_the_data_are_whole() -> None:
    rows = sales()

    counted = Counter((row["month"], row["region"], row["product"]) for row in rows)
    assert len(counted) == len(rows) == 24 * 4 * 5
    assert {row["region"] for row in rows} == REGIONS
    assert (rows[0]["month"], rows[-1]["month"]) == ("2024-01", "2025-12")
    assert all(int(row["units"]) > 0 and len(row["revenue"].partition(".")[2]) == 2 for row in rows)


async def test_without_arguments_it_is_the_total_of_everything(threads: ToolThreads) -> None:
    answer = await requested(threads)

    average = round(revenue(sales()) / units(sales()), 2)
    assert answer == {
        "metric": "revenue",
        "group_by": "none",
        "period": {"from": "2024-01", "to": "2025-12"},
        "total": {"revenue": revenue(sales()), "units": units(sales()), "average_price": average},
        "data": {"from": "2024-01", "to": "2025-12", "currency": "USD"},
    }


async def test_regions_come_best_first_with_their_share(threads: ToolThreads) -> None:
    answer = await requested(threads, group_by="region", last_months=1)

    december = {region: revenue(sales(month="2025-12", region=region)) for region in REGIONS}
    assert answer["period"] == {"from": "2025-12", "to": "2025-12"}
    assert {row["region"]: row["revenue"] for row in answer["rows"]} == december
    assert [row["revenue"] for row in answer["rows"]] == sorted(december.values(), reverse=True)
    assert answer["total"]["revenue"] == revenue(sales(month="2025-12"))
    assert sum(row["share_percent"] for row in answer["rows"]) == pytest.approx(100, abs=0.3)


async def test_months_come_in_order_with_their_change(threads: ToolThreads) -> None:
    answer = await requested(
        threads, group_by="month", metric="units", period_from="2024-11", period_to="2025-01"
    )

    november, december, january = answer["rows"]
    assert [row["month"] for row in answer["rows"]] == ["2024-11", "2024-12", "2025-01"]
    assert [row["units"] for row in answer["rows"]] == [
        units(sales(month=month)) for month in ("2024-11", "2024-12", "2025-01")
    ]
    assert "change_percent" not in november
    assert january["change_percent"] == round(100 * (january["units"] / december["units"] - 1), 1)


async def test_product_and_region_narrow_it_down_however_they_are_spelled(threads: ToolThreads) -> None:
    answer = await requested(threads, group_by="year", product=" inflatable  CLIFF", region="north")

    assert (answer["product"], answer["region"]) == ("Inflatable Cliff", "North")
    mine = sales(product="Inflatable Cliff", region="North")
    assert {row["year"]: row["revenue"] for row in answer["rows"]} == {
        year: revenue([row for row in mine if row["month"].startswith(year)]) for year in ("2024", "2025")
    }
    assert (await requested(threads, product="unicycle"))["product"] == "Rocket-Powered Unicycle"


async def test_only_the_best_rows_are_given_and_the_total_stays_whole(threads: ToolThreads) -> None:
    answer = await requested(threads, group_by="product", metric="units", top=2)

    assert [row["product"] for row in answer["rows"]] == ["Spring-Loaded Welcome Mat", "Pocket Thundercloud"]
    assert answer["total"]["units"] == units(sales())


async def test_quarters_and_prices(threads: ToolThreads) -> None:
    answer = await requested(threads, group_by="quarter", metric="average_price", last_months=6)

    assert [row["quarter"] for row in answer["rows"]] == ["2025-Q3", "2025-Q4"]
    third = [row for month in ("07", "08", "09") for row in sales(month=f"2025-{month}")]
    assert answer["rows"][0]["average_price"] == round(revenue(third) / units(third), 2)


async def test_a_period_is_cut_to_the_data(threads: ToolThreads) -> None:
    answer = await requested(threads, period_from="1999-01", period_to="2030-12")

    assert answer["period"] == {"from": "2024-01", "to": "2025-12"}
    assert (await requested(threads, last_months=24, period_to="2024-02"))["period"]["from"] == "2024-01"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"region": "Nroth"}, "there is no region 'Nroth'; did you mean North?"),
        ({"region": "Mars"}, "there is no region 'Mars'; there are East, North, South, West"),
        ({"product": "cliffs"}, "there is no product 'cliffs'; there are Inflatable Cliff, "),
        ({"product": "' OR 1=1 --"}, 'there is no product "\' OR 1=1 --"; there are Inflatable Cliff, '),
        (
            {"period_from": "2026-01"},
            "no sales in the requested period; the data covers 2024-01 to 2025-12",
        ),
        (
            {"period_to": "2023-12"},
            "no sales in the requested period; the data covers 2024-01 to 2025-12",
        ),
        (
            {"period_from": "2025-02", "period_to": "2025-01"},
            "no sales in the requested period; the data covers 2024-01 to 2025-12",
        ),
        ({"period_from": "2025-01", "last_months": 2}, "specify period_from or last_months, not both"),
        ({"period_from": "2025-13"}, "argument 'period_from'"),
        ({"group_by": "month; DROP TABLE sales"}, "argument 'group_by'"),
        ({"last_months": 0}, "argument 'last_months'"),
    ],
    ids=str,
)
async def test_an_invalid_query_is_an_error(
    threads: ToolThreads, arguments: dict[str, object], message: str
) -> None:
    assert (await requested(threads, **arguments)).startswith(f"error: {message}")
