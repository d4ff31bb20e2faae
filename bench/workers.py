"""Several workers: what two of them carry compared with one, and what checkpoints cost.

Each worker gets the load of the same number of clients. What the workers carry is the number of requests per CPU
second of a worker, times the number of workers, so that the figure does not depend on the cores that are left for the
load generator and the database. Each of the two has a core: on one core, the figure would contain the switches
between them, and ``--workers`` is for several cores. A worker on the core of the load generator finds its data evicted
from the cache more often, so the single worker is measured on both cores in turn. With the same clients for both
together, each worker has half of the requests at a time, and its transactions have half as many turns: that is another
row, and so is how evenly connections are spread.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import Connection, connections, request
from bench.figures import Variant
from bench.measures import greeting
from bench.processes import Field, Served, free_ports, migrate, move_to_core, proxy_process
from bench.scripts import SCRIPTS

CLIENTS, REQUESTS = 32, 1280
"""For each worker."""
ROUNDS = 5
LEAST = 1.8


async def workers(field: Field, postgres: str | None) -> list[Variant]:
    """Two workers compared with one, and a turn with checkpoints compared with one without."""
    given = {} if postgres is None else {"PROXY_DATABASE_URL": postgres}
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as name:
        folder = Path(name)
        if postgres is not None:
            await asyncio.to_thread(migrate, folder, given)
        models, upstream, (one, two) = list(SCRIPTS), field.upstream.port, free_ports(2)
        single, several = folder / "one", folder / "two"
        for made in (single, several):
            made.mkdir()
        async with (
            proxy_process(single, models, upstream, one, given) as server,
            proxy_process(several, models, upstream, two, {**given, "PROXY_WORKERS": "2"}) as supervisor,
        ):
            pair = await _workers_of(supervisor)
            for number, worker in enumerate(pair):
                move_to_core(worker, number)
            carried = [
                (
                    await _carried(supervisor, pair, CLIENTS * 2),
                    await _carried_alone(server),
                    await _carried(supervisor, pair, CLIENTS),
                )
                for _ in range(ROUNDS)
            ]
            costs = [
                (await _cost(server, with_key=True), await _cost(server, with_key=False))
                for _ in range(ROUNDS)
            ]
    both, alone, same = (
        statistics.median(load.requests for load in loads) for loads in zip(*carried, strict=True)
    )
    ratios = sorted(two.requests / one.requests for two, one, _ in carried)
    share = statistics.median(load.busiest for loads in carried for load in (loads[0], loads[2]))
    saved, plain = (statistics.median(values) for values in zip(*costs, strict=True))
    database = "SQLite" if postgres is None else "PostgreSQL"
    return [
        Variant(
            f"two workers, {database}: plain requests", "per CPU second", both, alone, LEAST, is_least=True
        ),
        Variant(f"the same, least and most of {ROUNDS} rounds", "×", ratios[0], ratios[-1]),
        Variant("the same, with as many clients as one worker", "per CPU second", same, alone),
        Variant("busier of two workers: part of the load", "%", share, 100 / 2),
        Variant(f"checkpoints, {database}: handoff turn", "ms CPU", saved, plain),
    ]


async def _workers_of(supervisor: Served) -> list[Served]:
    """Return the workers, which are the children of the supervisor that use the most CPU time."""
    async with asyncio.timeout(60):
        while True:
            children = _children(supervisor)
            if len(children) >= 2 and min(child.cpu_seconds() for child in children) > 0.5:
                await asyncio.sleep(1)
                return children
            await asyncio.sleep(0.1)


def _children(supervisor: Served) -> list[Served]:
    # A child belongs to the thread that started it (proc_tid_children(5)).
    threads = Path(f"/proc/{supervisor.pid}/task").glob("*/children")
    pids = [int(pid) for thread in threads for pid in thread.read_text().split()]
    found = [Served("worker", supervisor.port, pid) for pid in pids]
    return sorted(found, key=Served.cpu_seconds)[-2:]


@dataclass(frozen=True, slots=True)
class Carried:
    """Requests per CPU second of all workers together, and the share of the busiest one in percent."""

    requests: float
    busiest: float


async def _carried(server: Served, processes: Sequence[Served], clients: int) -> Carried:
    async def ask(client: Connection, count: int) -> None:
        for _ in range(count):
            await client.ask(request("plain", greeting(), stream=False), SCRIPTS["plain"].chunks)

    async with connections(server.port, clients) as opened:
        await asyncio.gather(*(ask(client, 2) for client in opened))
        before = [process.cpu_seconds() for process in processes]
        await asyncio.gather(*(ask(client, REQUESTS // CLIENTS) for client in opened))
        used = [process.cpu_seconds() - start for process, start in zip(processes, before, strict=True)]
    requests = clients * (REQUESTS // CLIENTS)
    return Carried(len(used) * requests / sum(used), 100 * max(used) / sum(used))


async def _carried_alone(server: Served) -> Carried:
    """Measure one worker on the core of each of the two: a request costs more on the core of the load generator."""
    seconds = []
    for number in (1, 0):
        move_to_core(server, number)
        seconds.append(1 / (await _carried(server, [server], CLIENTS)).requests)
    return Carried(1 / statistics.mean(seconds), 100)


async def _cost(server: Served, *, with_key: bool, count: int = 160) -> float:
    """Return the CPU of a handoff turn, with an idempotency key or without, in milliseconds."""

    async def ask(client: Connection, number: int) -> None:
        for _ in range(number):
            headers: Mapping[str, str] = {"idempotency-key": secrets.token_hex(8)} if with_key else {}
            await client.ask(
                request("handoff", greeting(), stream=True, headers=headers), SCRIPTS["talking"].chunks
            )

    async with connections(server.port, 8) as clients:
        await asyncio.gather(*(ask(client, 2) for client in clients))
        before = server.cpu_seconds()
        await asyncio.gather(*(ask(client, count // 8) for client in clients))
        return (server.cpu_seconds() - before) / count * 1e3
