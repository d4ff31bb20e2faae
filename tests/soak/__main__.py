"""Command: run two workers under load with faults, and compare what they hold at the end with the beginning.

Exit code 1 if tasks, open files, memory, database connections or rows have grown, or an answer was unexpected.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg  # type: ignore[import-untyped]

from proxy.store.engine.migrations import migrate
from tests.conftest import new_database
from tests.fakes.upstream import FakeUpstream
from tests.fuzz.run import Finding, Resources, Server, grown, server
from tests.soak.load import Clients, FaultyProvider, delete_all

_WARM_UP = 20.0
_KILL_EVERY = 45.0
MAX_NEW_CONNECTIONS = 6


@dataclass(frozen=True)
class Store:
    """What the database holds."""

    connections: int
    rows: Mapping[str, int]


class Soak:
    """Two workers, their clients, and the faults."""

    def __init__(self, folder: Path, database: str, upstream: str, rng: random.Random) -> None:
        self._folder = folder
        self._database = database
        self._upstream = upstream
        self._rng = rng
        self.workers: list[Server] = []
        self._stacks: list[AsyncExitStack] = []
        self.kills = 0
        self.findings: list[str] = []

    async def start(self) -> None:
        """Start both workers."""
        for number in range(2):
            stack = AsyncExitStack()
            self._stacks.append(stack)
            self.workers.append(await self._started(stack, number, port=None))

    async def _started(self, stack: AsyncExitStack, number: int, port: int | None) -> Server:
        folder = self._folder / str(number)
        folder.mkdir(exist_ok=True)
        environment = {"PROXY_DATABASE_URL": self._database, "PROXY_TURN_TIME_LIMIT": "15"}
        return await stack.enter_async_context(server(folder, self._upstream, environment, port=port))

    async def close(self) -> None:
        """Stop both workers."""
        for stack in self._stacks:
            await stack.aclose()

    async def kill_one(self) -> None:
        """Kill a worker without warning, and start it again on its port."""
        number = self.kills % 2
        self.kills += 1
        killed = self.workers[number]
        self.check_log(killed)
        killed.process.signal(signal.SIGKILL)
        await self._stacks[number].aclose()
        self._stacks[number] = AsyncExitStack()
        port = int(killed.url.rpartition(":")[2])
        self.workers[number] = await self._started(self._stacks[number], number, port=port)

    def check_log(self, worker: Server) -> None:
        """Note errors in the log of a worker, and blocks of its event loop."""
        try:
            worker.check_log()
        except Finding as finding:
            self.findings.append(str(finding))

    async def store(self) -> Store:
        """Return what the database holds."""
        connection = await asyncpg.connect(self._database)
        try:
            names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            rows = {}
            for (name,) in names:
                rows[name] = await connection.fetchval(f'SELECT count(*) FROM "{name}"')
            count = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return Store(count, rows)
        finally:
            await connection.close()


async def _load(soak: Soak, seconds: float, rng: random.Random, *, kills: bool) -> Clients:
    clients = Clients([worker.url for worker in soak.workers], rng)
    running = asyncio.create_task(clients.run())
    end = time.monotonic() + seconds
    while time.monotonic() < end and not running.done():
        await asyncio.sleep(min(_KILL_EVERY, max(end - time.monotonic(), 0)))
        if kills and end - time.monotonic() > _KILL_EVERY / 2:
            await soak.kill_one()
    clients.stop()
    await running
    return clients


async def _settled(soak: Soak) -> tuple[list[Resources], Store]:
    await delete_all(soak.workers[0].url)
    held = [await worker.resources() for worker in soak.workers]
    return held, await soak.store()


async def soak(seconds: float, seed: int) -> int:
    """Run; return how many things are wrong."""
    rng = random.Random(seed)
    with TemporaryDirectory() as folder, new_database() as database:
        await migrate(database)
        async with FakeUpstream(answer=FaultyProvider(rng).answer) as upstream:
            run = Soak(Path(folder), database, upstream.base_url, rng)
            forgetting = asyncio.create_task(_forget(upstream))
            try:
                await run.start()
                await _load(run, _WARM_UP, rng, kills=False)
                _say("warm-up ended")
                before = await _settled(run)
                _say("load starts")
                clients = await _load(run, seconds, rng, kills=True)
                _say("load ended")
                after = await _settled(run)
                for worker in run.workers:
                    run.check_log(worker)
            finally:
                forgetting.cancel()
                await run.close()
    return _report(run, clients, before, after)


def _say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", flush=True)


async def _forget(upstream: FakeUpstream) -> None:
    """Drop recorded requests: they would fill the memory of this process."""
    while True:
        await asyncio.sleep(5)
        upstream.requests.clear()


def _report(
    run: Soak, clients: Clients, before: tuple[list[Resources], Store], after: tuple[list[Resources], Store]
) -> int:
    wrong = [*clients.unexpected, *run.findings]
    print(f"\n{'':24}{'before':>10}{'after':>10}")
    for number, (old, new) in enumerate(zip(before[0], after[0], strict=True)):
        wrong += [f"worker {number} has grown: {sentence}" for sentence in grown(old, new)]
        for name, factor in (("tasks", 1), ("files", 1), ("memory", 1 << 20)):
            unit = " (MiB)" if factor > 1 else ""
            one, two = getattr(old, name) // factor, getattr(new, name) // factor
            print(f"{f'worker {number} {name}{unit}':24}{one:10}{two:10}")
    print(f"{'database connections':24}{before[1].connections:10}{after[1].connections:10}")
    if after[1].connections > before[1].connections + MAX_NEW_CONNECTIONS:
        wrong.append("database connections have grown")
    for name, count in after[1].rows.items():
        old_count = before[1].rows[name]
        print(f"{f'rows {name}':24}{old_count:10}{count:10}")
        if count > old_count:
            wrong.append(f"table {name} has grown: {old_count} before, {count} after")
    if clients.statuses["timeout"]:
        wrong.append(f"{clients.statuses['timeout']} requests were not answered within 30 s")
    print(f"workers killed: {run.kills}; answers: {dict(sorted(clients.statuses.items()))}")
    for sentence in wrong[:20]:
        print(f"FAILED: {sentence[:1500]}")
    return len(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None, help="of load and faults; random otherwise")
    given = parser.parse_args()
    gc.enable()  # the configuration of the tests disables it
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    # The fake provider reports each connection that a worker closes.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    sys.exit(1 if asyncio.run(soak(given.seconds, seed)) else 0)


if __name__ == "__main__":
    main()
