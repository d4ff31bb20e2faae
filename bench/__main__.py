"""Runs the measures and prints the table."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.loops import run
from bench.measures import MEASURES, Figure
from bench.processes import field
from bench.report import table, write_json
from bench.scripts import SCRIPTS

TIME_LIMIT = 110.0


async def measure(names: list[str], figures: list[Figure]) -> None:
    """Start everything, take the measures in turn, stop everything."""
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as folder:
        async with asyncio.timeout(TIME_LIMIT), field(Path(folder), list(SCRIPTS)) as started:
            for name in names:
                began = time.monotonic()
                figures.extend(await MEASURES[name](started))
                print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures what the server costs.")
    names = list(MEASURES)
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"of {', '.join(names)}; may be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    options = parser.parse_args()
    figures: list[Figure] = []
    try:
        run(measure(options.only or names, figures))
    finally:
        # What was measured before something failed or took too long is worth seeing.
        print(table(figures))
        if options.json:
            write_json(figures, options.json)


if __name__ == "__main__":
    main()
