"""Cost of a dispatcher alone: run as a process, it prints its figures as JSON.

``python -m bench.dispatch direct|queued|none``: AutoGen with ``DirectRuntime``, AutoGen's own runtime, or no AutoGen.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bench.loops import run

if TYPE_CHECKING:
    from proxy.agents.dispatch import Dispatcher

TURNS = 20_000
CONCURRENCY = 32


class Agent:
    """An agent that waits twice, as for a model."""

    async def run(self, state: Any) -> Any:
        for _ in range(2):
            await asyncio.sleep(0)
        return state


def _dispatcher(kind: str) -> Dispatcher:
    from proxy.agents.dispatch import AutoGenDispatcher, DirectDispatcher
    from proxy.agents.queued_dispatch import QueuedDispatcher

    dispatchers: dict[str, Callable[[], Dispatcher]] = {
        "none": DirectDispatcher,
        "queued": QueuedDispatcher,
        "direct": AutoGenDispatcher,
    }
    return dispatchers[kind]()


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


async def main(kind: str) -> None:
    """Measure and print: CPU of the start in seconds, resident memory in MiB, CPU of a turn in µs."""
    if kind != "none":
        import autogen_core  # noqa: F401 - its import is a part of the start
    dispatcher = _dispatcher(kind)
    await dispatcher.start()
    start = time.process_time()
    resident = _resident()

    async def turns(number: int, count: int) -> None:
        for at in range(count):
            state: Any = SimpleNamespace(turn=SimpleNamespace(id=f"turn-{number}-{at}"))
            await dispatcher.run(Agent(), state)

    async def at_once(count: int) -> None:
        await asyncio.gather(*(turns(number, count // CONCURRENCY) for number in range(CONCURRENCY)))

    await at_once(TURNS // 10)
    cpu = time.process_time()
    await at_once(TURNS)
    cost = (time.process_time() - cpu) / TURNS * 1e6
    await dispatcher.close()
    print(json.dumps({"turn": cost, "start": start, "resident": resident}))


if __name__ == "__main__":
    run(main(sys.argv[1]))
