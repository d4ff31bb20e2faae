"""Run the measurements and print the results as a table."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

from bench.across import across_workers
from bench.capacity import streams_held
from bench.figures import Figure, Variant
from bench.loops import run
from bench.measures import MEASURES, Measure
from bench.processes import Field, ForeignLoad, field
from bench.report import table, table_of_variants, write_json
from bench.scripts import SCRIPTS
from bench.startup import dispatchers, http_clients, start_of_servers
from bench.stored import on_postgres, stored_turns
from bench.traced import traced_turns
from bench.workers import workers

TIME_LIMIT = 900.0
FIGURES: dict[str, Measure] = {**MEASURES, "start": start_of_servers, "capacity": streams_held}
VARIANTS = ("dispatch", "http-clients", "stored", "tracing", "workers", "across", "postgres")


@dataclass(slots=True)
class Results:
    """What was measured so far."""

    figures: list[Figure] = dataclass_field(default_factory=list)
    variants: list[Variant] = dataclass_field(default_factory=list)
    foreign_load: float = 0.0


async def measure(names: Sequence[str], results: Results, *, postgres: str | None, redis: str | None) -> None:
    """Start the servers, run the measurements one after the other, stop the servers."""
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as folder:
        async with asyncio.timeout(TIME_LIMIT), field(Path(folder), list(SCRIPTS)) as started:
            load = ForeignLoad()
            before = sum(server.cpu_seconds() for server in (started.upstream, *started.servers))
            for name in names:
                began = time.monotonic()
                if name in FIGURES:
                    results.figures.extend(await FIGURES[name](started))
                else:
                    results.variants.extend(await _variants(name, started, postgres, redis))
                results.foreign_load = load.share([started.upstream, *started.servers], before)
                print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)


async def _variants(name: str, started: Field, postgres: str | None, redis: str | None) -> Sequence[Variant]:
    if name == "dispatch":
        return await dispatchers()
    if name == "http-clients":
        return await http_clients(started)
    if name == "stored":
        return await stored_turns(started)
    if name == "tracing":
        return await traced_turns(started)
    if name == "workers":
        return await workers(started, postgres)
    if name == "across":
        return await across_workers(started, postgres, redis)
    return await on_postgres(started, postgres) if postgres is not None else ()


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the CPU and memory costs of the server."
    )
    names = [*FIGURES, *VARIANTS]
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"one of {', '.join(names)}; can be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")
    parser.add_argument(
        "--postgres", metavar="URL", help="also measure with this PostgreSQL database, which should be empty"
    )
    parser.add_argument("--redis", metavar="URL", help="also measure with this Redis server")
    options = parser.parse_args()
    results = Results()
    try:
        run(measure(options.only or names, results, postgres=options.postgres, redis=options.redis))
    finally:
        # Print the results so far if a measurement fails or the time limit is reached.
        print(table(results.figures))
        if results.variants:
            print(f"\n{table_of_variants(results.variants)}")
        print(f"\nOther processes used {results.foreign_load:.0%} of the CPU time of all cores.")
        if options.json:
            write_json(results.figures, results.variants, options.json, foreign_load=results.foreign_load)


if __name__ == "__main__":
    main()
