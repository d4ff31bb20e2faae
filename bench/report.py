"""Render the results as a Markdown table or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.figures import Figure, Variant

_HEAD = ("", "baseline", "reference", "handoff-proxy", "× baseline", "× reference", "spread", "target")
_VARIANTS = ("handoff-proxy with …", "value", "by default", "ratio", "target")


def table(figures: Sequence[Figure]) -> str:
    """Return the table as Markdown."""
    return _markdown([_HEAD, *(_row(figure) for figure in figures)])


def table_of_variants(variants: Sequence[Variant]) -> str:
    """Return the second table as Markdown."""
    return _markdown([_VARIANTS, *map(_row_of_variant, variants)])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    columns = range(len(rows[0]))
    widths = [max(len(row[column]) for row in rows) for column in columns]
    lines = ["| " + " | ".join(_cells(row, widths)) + " |" for row in rows]
    rule = (
        "|" + "|".join("-" * (width + 1) + ("-" if at == 0 else ":") for at, width in enumerate(widths)) + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def write_json(
    figures: Sequence[Figure], variants: Sequence[Variant], path: Path, *, foreign_load: float
) -> None:
    """Write the results, the number of CPU cores, and the share of CPU time that other processes used."""
    content = {
        "cores": os.cpu_count(),
        "foreign_load": foreign_load,
        "figures": [asdict(figure) for figure in figures],
        "variants": [asdict(variant) for variant in variants],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        f"{figure.name} ({figure.unit})",
        _number(figure.baseline),
        _number(figure.reference),
        _number(figure.proxy),
        _number(_ratio(figure.proxy, figure.baseline)),
        _number(figure.ratio, digits=3),
        "–" if figure.spread is None else f"{figure.spread[0]:.2f}–{figure.spread[1]:.2f}",
        f"{'≥' if figure.is_least else '≤'} {figure.goal:g}{' ×' if figure.goal_is_ratio else ''}",
    )


def _row_of_variant(variant: Variant) -> tuple[str, ...]:
    return (
        f"{variant.name} ({variant.unit})",
        _number(variant.value),
        _number(variant.compared_with),
        _number(_ratio(variant.value, variant.compared_with)),
        "–" if variant.goal is None else f"{'≥' if variant.is_least else '≤'} {variant.goal:g} ×",
    )


def _ratio(value: float | None, mark: float | None) -> float | None:
    return value / mark if value is not None and mark else None


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = (
        cell.ljust(width) if at == 0 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return [first, *others]


def _number(value: float | None, *, digits: int = 2) -> str:
    """Format a number with two decimals below 10, one below 100, and none above."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"
