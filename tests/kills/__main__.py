"""Command: run turns with tools on two workers that are killed at random moments.

Exit code 1 if something acknowledged is lost, a tool with effects ran twice, or a turn or follower did not end.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import new_database
from tests.kills.run import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    with new_database() as database, TemporaryDirectory() as folder:
        report = asyncio.run(
            run(
                Path(folder),
                database,
                turns=options.turns,
                seed=options.seed,
                kill_pause=0.5,
                model_seconds=0.7,
            )
        )
    print(
        f"seed {options.seed}: {report.turns} turns, {report.kills} kills, {report.attempts} requests, "
        f"{report.same_turn} of them got a turn that had begun, {report.seconds:.0f} s"
    )
    for finding in report.findings:
        print(f"  {finding}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
