"""Render the results as a Markdown table or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.measures import Figure

_HEAD = ("", "baseline", "reference", "handoff-proxy", "× baseline", "× reference", "target")


def table(figures: Sequence[Figure]) -> str:
    """Return the table as Markdown."""
    rows = [_HEAD, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["| " + " | ".join(_cells(row, widths)) + " |" for row in rows]
    rule = (
        "|" + "|".join("-" * (width + 1) + ("-" if at == 0 else ":") for at, width in enumerate(widths)) + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def write_json(figures: Sequence[Figure], path: Path) -> None:
    """Write the results and the number of CPU cores."""
    path.write_text(
        json.dumps({"cores": os.cpu_count(), "figures": [asdict(figure) for figure in figures]}, indent=2)
        + "\n"
    )


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        f"{figure.name} ({figure.unit})",
        _number(figure.baseline),
        _number(figure.reference),
        _number(figure.proxy),
        _number(_ratio(figure.proxy, figure.baseline)),
        _number(_ratio(figure.proxy, figure.reference)),
        f"≤ {figure.goal:g}",
    )


def _ratio(value: float | None, mark: float | None) -> float | None:
    return value / mark if value is not None and mark else None


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = (
        cell.ljust(width) if at == 0 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return [first, *others]


def _number(value: float | None) -> str:
    """Format a number with two decimals below 10, one below 100, and none above."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
