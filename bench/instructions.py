"""Count the CPU instructions of an operation under valgrind: ``python -m bench.instructions --only plain``.

Other processes do not affect the counts, in contrast to CPU time: two runs differ by about a per cent. They do not
contain the work of the kernel, and each instruction counts the same, whether its data is in the CPU's cache or not.
``--profile FILE`` keeps the counts of each C function. A server under valgrind runs about fifty times slower.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.loops import run
from bench.measures import INSTRUCTIONS
from bench.processes import ROOT, Served, free_ports, proxy_process, started_process
from bench.scripts import SCRIPTS

_TOTAL = re.compile(r"^(?:summary|totals): (\d+)$", re.MULTILINE)


# Equal if the servers are: a list cannot be part of a key.
@dataclass(frozen=True, slots=True, eq=False)
class Counted(Served):
    """A server under callgrind, whose "CPU seconds" are millions of instructions."""

    dumps: Path
    counted: list[float] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """Instructions so far, in millions; all threads."""
        # Callgrind writes the instructions since the last dump into a new file.
        _control("--dump", str(self.pid))
        newest = max(self.dumps.glob("calls.*"), key=lambda path: int(path.suffix[1:]))
        total = _TOTAL.search(newest.read_text())
        if total is None:
            raise RuntimeError(f"{newest.name} contains no total")
        self.counted.append(int(total[1]) / 1e6)
        return sum(self.counted)


def _control(*arguments: str) -> None:
    subprocess.run(["callgrind_control", *arguments], check=True, capture_output=True)


async def count(trees: Sequence[Path], names: Sequence[str], profile: Path | None) -> None:
    """Start a server of each checkout and print one line per measurement, in thousands of instructions."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="handoff-bench-")))
        ports = free_ports(1 + len(trees))
        await stack.enter_async_context(
            started_process("upstream", ["bench.upstream", str(ports[0])], ports[0], {}, folder)
        )
        servers = []
        for at, tree in enumerate(trees):
            (own := folder / str(at)).mkdir()
            dumps = own / "calls"
            under = (
                "valgrind",
                "--tool=callgrind",
                # Counting makes the start several times slower.
                "--instr-atstart=no",
                f"--callgrind-out-file={dumps}",
                "--fair-sched=yes",
                "--compress-strings=no",
                "--compress-pos=no",
                "--quiet",
            )
            server = await stack.enter_async_context(
                proxy_process(own, list(SCRIPTS), ports[0], ports[1 + at], tree=tree, under=under)
            )
            _control("--instr", "on", str(server.pid))
            servers.append(Counted(server.name, server.port, server.pid, own))
        print(f"{'':10} " + " ".join(f"{'this' if tree == ROOT else 'other':>10}" for tree in trees))
        for name in names:
            # The costs of lists are in ms, the others in µs.
            scale = 1.0 if name in ("new", "known") else 1e-3
            values = [await INSTRUCTIONS[name](server) * scale for server in servers]
            print(f"{name:10} " + " ".join(f"{value:10.0f}" for value in values), flush=True)
        if profile is not None:
            newest = max(servers[0].dumps.glob("calls.*"), key=lambda path: int(path.suffix[1:]))
            shutil.copy(newest, profile)


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.instructions",
        description="Count the instructions of an operation, in thousands; needs valgrind.",
    )
    parser.add_argument("other", type=Path, nargs="?", help="another checkout to compare with")
    parser.add_argument("--only", action="append", choices=list(INSTRUCTIONS), help="can be repeated")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="keep the profile of the last measurement"
    )
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed")
    trees = [ROOT, *([options.other.resolve()] if options.other else [])]
    run(count(trees, options.only or list(INSTRUCTIONS), options.profile))


if __name__ == "__main__":
    main()
