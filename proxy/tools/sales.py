"""The tool ``query_sales``: monthly sales of the bundled sample company over 24 months.

Each call loads ``sales.csv`` into a new in-memory SQLite database, which takes two milliseconds.
"""

from __future__ import annotations

import csv
import functools
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from proxy.errors import ToolError
from proxy.tools.functions import tool

FILE = Path(__file__).parent / "sales.csv"

Month = Annotated[str, Field(description="A month as YYYY-MM.", pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]
Metric = Literal["revenue", "units", "average_price"]
Grouping = Literal["none", "month", "quarter", "year", "product", "region"]

_TABLE = """
CREATE TABLE sales (
    month TEXT NOT NULL,
    region TEXT NOT NULL,
    product TEXT NOT NULL,
    units INTEGER NOT NULL,
    cents INTEGER NOT NULL,
    PRIMARY KEY (month, region, product)
)
"""
_GROUPS: dict[Grouping, str] = {
    "none": "''",
    "month": "month",
    "quarter": "substr(month, 1, 4) || '-Q' || ((CAST(substr(month, 6) AS INTEGER) + 2) / 3)",
    "year": "substr(month, 1, 4)",
    "product": "product",
    "region": "region",
}
_TIME_GROUPINGS = ("month", "quarter", "year")


@tool(has_effects=False)
def query_sales(
    group_by: Annotated[
        Grouping, Field(description="The dimension of the rows; none returns only the total.")
    ] = "none",
    metric: Annotated[
        Metric, Field(description="The metric that rows are ranked and compared by.")
    ] = "revenue",
    period_from: Month | None = None,
    period_to: Month | None = None,
    last_months: Annotated[
        int | None,
        Field(
            description="The number of months up to period_to or the end of the data, instead of period_from.",
            ge=1,
            le=24,
        ),
    ] = None,
    product: Annotated[str | None, Field(description="Only this product.", max_length=100)] = None,
    region: Annotated[str | None, Field(description="Only this region.", max_length=100)] = None,
    top: Annotated[int | None, Field(description="Maximum number of rows, best first.", ge=1, le=100)] = None,
) -> dict[str, object]:
    """Query the company's sales figures: units and revenue in US dollars by month, region and product.

    Rows of months, quarters or years are in chronological order, with the change from the previous row. Rows of
    products and regions are sorted best first, with their share. The total covers all matching sales, also with top.
    """
    with closing(_database()) as database:
        months = [row[0] for row in database.execute("SELECT DISTINCT month FROM sales ORDER BY month")]
        first, last = _period(months, period_from, period_to, last_months)
        chosen: dict[str, str] = {"first": first, "last": last}
        where = "month BETWEEN :first AND :last"
        for column, wanted in (("product", product), ("region", region)):
            if wanted is not None and wanted.strip():
                chosen[column] = _match_name(database, column, wanted)
                where += f" AND {column} = :{column}"
        # The interpolated expressions are constants of this module; values of the caller are bound parameters.
        select = f"SELECT {_GROUPS[group_by]}, SUM(units), SUM(cents) FROM sales WHERE {where} GROUP BY 1 ORDER BY 1"  # noqa: S608
        groups = [_figures(group_by, *row) for row in database.execute(select, chosen)]
        total = _figures(
            "none", *database.execute(select.replace(_GROUPS[group_by], "''", 1), chosen).fetchone()
        )
    answer: dict[str, object] = {
        "metric": metric,
        "group_by": group_by,
        "period": {"from": first, "to": last},
        **{column: chosen[column] for column in ("product", "region") if column in chosen},
    }
    if group_by != "none":
        answer["rows"] = _rows(groups, group_by, metric, total, top)
    return {**answer, "total": total, "data": {"from": months[0], "to": months[-1], "currency": "USD"}}


def _database() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.execute(_TABLE)
    database.executemany("INSERT INTO sales VALUES (?, ?, ?, ?, ?)", _sales())
    return database


@functools.cache
def _sales() -> Sequence[tuple[str, str, str, int, int]]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return [
            (
                row["month"],
                row["region"],
                row["product"],
                int(row["units"]),
                int(row["revenue"].replace(".", "")),
            )
            for row in csv.DictReader(file)
        ]


def _period(
    months: Sequence[str], period_from: str | None, period_to: str | None, last_months: int | None
) -> tuple[str, str]:
    """Return the first and the last month of the period, limited to the months of the data."""
    last = min(period_to or months[-1], months[-1])
    if last_months is not None and period_from is not None:
        raise ToolError("specify period_from or last_months, not both")
    first = max(period_from or months[0], months[0])
    if last < first or last not in months:
        raise ToolError(f"no sales in the requested period; the data covers {months[0]} to {months[-1]}")
    if last_months is not None:
        first = months[max(months.index(last) - last_months + 1, 0)]
    return first, last


def _match_name(database: sqlite3.Connection, column: str, wanted: str) -> str:
    names: list[str] = [row[0] for row in database.execute(f"SELECT DISTINCT {column} FROM sales ORDER BY 1")]  # noqa: S608
    spelled = {name.lower(): name for name in names}
    plain = " ".join(wanted.lower().split())
    if plain in spelled:
        return spelled[plain]
    parts = [name for lower, name in spelled.items() if plain in lower]
    if len(parts) == 1:
        return parts[0]
    near = get_close_matches(plain, spelled, n=1)
    hint = f"did you mean {spelled[near[0]]}?" if near else f"there are {', '.join(names)}"
    raise ToolError(f"there is no {column} {wanted.strip()!r}; {hint}")


def _figures(group_by: Grouping, name: str, units: int, cents: int) -> dict[str, Any]:
    figures = {"revenue": cents / 100, "units": units, "average_price": round(cents / 100 / units, 2)}
    return figures if group_by == "none" else {group_by: name, **figures}


def _rows(
    rows: list[dict[str, Any]], group_by: Grouping, metric: Metric, total: dict[str, Any], top: int | None
) -> list[dict[str, Any]]:
    if group_by in _TIME_GROUPINGS:
        for before, row in pairwise(rows):
            row["change_percent"] = round(100 * (row[metric] / before[metric] - 1), 1)
    elif metric != "average_price":
        for row in rows:
            row["share_percent"] = round(100 * row[metric] / total[metric], 1)
    if group_by not in _TIME_GROUPINGS or top is not None:
        rows = sorted(rows, key=lambda row: float(row[metric]), reverse=True)
    return rows[:top]
