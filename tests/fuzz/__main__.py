"""Command: fuzz a new server for a time, then report; exit code 1 if something was found."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fakes.upstream import FakeUpstream
from tests.fuzz.run import Finding, Provider, Resources, Run, Server, grown, server
from tests.fuzz.targets import TARGETS

SEEDS = Path(__file__).parent / "seeds.txt"
"""A target and a seed a line: those that found something. They run first, for a short time."""
_SEED_SECONDS = 5
_WARM_UP = 30


async def fuzz(names: list[str], seconds: float, seed: int) -> int:
    """Run the targets, each for its part of the time; return how many found something."""
    provider = Provider()
    failures = 0
    with TemporaryDirectory() as folder:
        async with (
            FakeUpstream(answer=provider.answer) as upstream,
            server(Path(folder), upstream.base_url) as served,
        ):
            runs = [(name, stored, float(_SEED_SECONDS)) for name, stored in _seeds() if name in names]
            runs += [(name, seed, seconds / len(names)) for name in names]
            for name, _, _ in runs:
                # Once before the measurement, so that caches and pools are filled.
                failures += await _reported(served, provider, upstream, name, 0, 5, limit=_WARM_UP)
            before = await served.resources()
            for name, number, length in runs:
                failures += await _reported(served, provider, upstream, name, number, length)
            failures += _growth(before, await served.resources())
    return failures


async def _run(
    served: Server, provider: Provider, name: str, *, seed: int, seconds: float, limit: int | None
) -> int:
    run = Run(seed, time.monotonic() + seconds, served.url, provider, limit)
    await TARGETS[name](run)
    served.check_log()
    return run.count


async def _reported(
    served: Server,
    provider: Provider,
    upstream: FakeUpstream,
    name: str,
    seed: int,
    seconds: float,
    *,
    limit: int | None = None,
) -> int:
    try:
        count = await _run(served, provider, name, seed=seed, seconds=seconds, limit=limit)
    except (Finding, OSError, TimeoutError) as finding:
        print(f"{name:12} seed {seed}: FAILED\n{finding}\nTo repeat: --only {name} --seed {seed}", flush=True)
        return 1
    finally:
        upstream.requests.clear()
    print(f"{name:12} seed {seed}: {count} inputs in {seconds:.0f} s, nothing found", flush=True)
    return 0


def _growth(before: Resources, after: Resources) -> int:
    print(f"tasks {before.tasks} -> {after.tasks}, open files {before.files} -> {after.files}, ", end="")
    print(f"memory {before.memory >> 20} -> {after.memory >> 20} MiB")
    found = grown(before, after)
    for sentence in found:
        print(f"FAILED: the server has grown: {sentence}")
    return len(found)


def _seeds() -> list[tuple[str, int]]:
    lines = SEEDS.read_text().splitlines()
    content = [line.split() for line in lines if line and not line.startswith("#")]
    return [(name, int(seed)) for name, seed in content]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="for all targets together")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run; random otherwise")
    parser.add_argument("--only", choices=list(TARGETS), action="append", help="targets to run")
    given = parser.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    sys.exit(1 if asyncio.run(fuzz(given.only or list(TARGETS), given.seconds, seed)) else 0)


if __name__ == "__main__":
    main()
