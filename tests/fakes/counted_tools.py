"""Tools that record their runs: each run is a line of a file in the data folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from proxy.tools import Context, tool

FILE = "runs"


@tool(has_effects=False)
def look_up(order: str, context: Context) -> str:
    """Look up an order."""
    _record("look_up", order, context)
    return f"{order} was delivered"


def refund(order: str, context: Context) -> str:
    """Refund an order."""
    _record("refund", order, context)
    return f"{order} was refunded"


def release(order: str, context: Context) -> str:
    """Release an order; needs approval."""
    _record("release", order, context)
    return f"{order} was released"


def runs(folder: Path) -> Counter[str]:
    """Return the number of runs of all tools by order."""
    return Counter(line.split()[1] for line in _lines(folder))


def call_keys(folder: Path, order: str) -> list[str]:
    """Return the keys of the calls for an order."""
    return [line.split()[2] for line in _lines(folder) if line.split()[1] == order]


def _lines(folder: Path) -> list[str]:
    file = folder / "data" / FILE
    return file.read_text().splitlines() if file.exists() else []


def _record(tool: str, order: str, context: Context) -> None:
    with (context.data_dir / FILE).open("a") as file:
        file.write(f"{tool} {order} {context.call_key}\n")
