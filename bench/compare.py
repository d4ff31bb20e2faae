"""Compare this checkout with another one: ``python -m bench.compare ../other-checkout``.

Both servers run at the same time and get the same requests in alternating rounds, so that changes of the machine's load
affect both. The result of a measurement is the median of the rounds, and of the ratio of each pair of rounds.
``--other NAME=VALUE`` sets an environment variable of the other server only; the checkout can then be this one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench.loops import run
from bench.measures import COSTS
from bench.processes import ROOT, Served, free_ports, proxy_process, started_process
from bench.scripts import SCRIPTS


async def compare(other: Path, names: list[str], rounds: int, environment: dict[str, str]) -> None:
    """Start both servers and print one line per measurement."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="handoff-bench-")))
        ports = free_ports(3)
        await stack.enter_async_context(
            started_process("upstream", ["bench.upstream", str(ports[0])], ports[0], {}, folder)
        )
        servers: list[Served] = []
        for at, tree in enumerate((other, ROOT)):
            (own := folder / str(at)).mkdir()
            more = environment if at == 0 else {}
            servers.append(
                await stack.enter_async_context(
                    proxy_process(own, list(SCRIPTS), ports[0], ports[1 + at], more, tree=tree)
                )
            )
        print(f"{'':10} {'other':>10} {'this':>10} {'ratio':>8} {'min':>8} {'max':>8}")
        for name in names:
            pairs = []
            for at in range(rounds):
                order = servers if at % 2 else servers[::-1]
                cost = {server: await COSTS[name](server) for server in order}
                pairs.append((cost[servers[0]], cost[servers[1]]))
            before, after = (statistics.median(values) for values in zip(*pairs, strict=True))
            ratios = sorted(this / that for that, this in pairs)
            print(
                f"{name:10} {before:10.1f} {after:10.1f} {statistics.median(ratios):8.3f}"
                f" {ratios[0]:8.3f} {ratios[-1]:8.3f}",
                flush=True,
            )


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description="Compare the costs of two checkouts, in µs of CPU."
    )
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--only", action="append", choices=list(COSTS), help="a measurement; can be repeated")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--other", action="append", default=[], metavar="NAME=VALUE", dest="variables")
    options = parser.parse_args()
    environment = dict(pair.split("=", 1) for pair in options.variables)
    run(compare(options.other.resolve(), options.only or list(COSTS), options.rounds, environment))


if __name__ == "__main__":
    main()
