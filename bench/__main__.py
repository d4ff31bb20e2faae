"""Run the measurements and print the results as a table."""

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
    """Start the servers, run the measurements one after the other, stop the servers."""
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as folder:
        async with asyncio.timeout(TIME_LIMIT), field(Path(folder), list(SCRIPTS)) as started:
            for name in names:
                began = time.monotonic()
                figures.extend(await MEASURES[name](started))
                print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the CPU and memory costs of the server."
    )
    names = list(MEASURES)
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"one of {', '.join(names)}; can be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    options = parser.parse_args()
    figures: list[Figure] = []
    try:
        run(measure(options.only or names, figures))
    finally:
        # Print the results so far if a measurement fails or the time limit is reached.
        print(table(figures))
        if options.json:
            write_json(figures, options.json)


if __name__ == "__main__":
    main()
