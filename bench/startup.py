"""What a server costs before its first request, and what parts of it cost alone."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench.figures import Figure, Variant
from bench.processes import ROOT, Field, free_ports, proxy_process, started_process
from bench.scripts import SCRIPTS

SETTLED_SECONDS = 1.0


async def start_of_servers(field: Field) -> list[Figure]:
    """CPU from the start until the port is open, and resident memory afterwards, with an existing database."""
    cpu: list[list[float]] = []
    resident: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as name:
        folder = Path(name)
        for _ in range(3):
            started = [await _start(field, folder, server) for server in ("baseline", "reference", "proxy")]
            cpu.append([seconds for seconds, _ in started])
            resident.append([size for _, size in started])
    seconds, sizes = cpu[1:], resident[1:]
    of_cpu = Figure.of_rounds("start until ready", "s CPU", seconds, goal=0)
    of_memory = Figure.of_rounds("resident memory, idle", "MiB", sizes, goal=0)
    return [
        Figure(of_cpu.name, of_cpu.unit, of_cpu.baseline, of_cpu.reference, of_cpu.proxy, goal=1.5),
        Figure(
            of_memory.name, of_memory.unit, of_memory.baseline, of_memory.reference, of_memory.proxy, goal=80
        ),
    ]


async def _start(field: Field, folder: Path, kind: str) -> tuple[float, float]:
    (port,) = free_ports(1)
    upstream = str(field.upstream.port)
    async with AsyncExitStack() as stack:
        if kind == "proxy":
            process = proxy_process(folder, list(SCRIPTS), field.upstream.port, port)
        else:
            process = started_process(kind, [f"bench.{kind}", str(port), upstream], port, {}, folder)
        served = await stack.enter_async_context(process)
        seconds = served.cpu_seconds()
        await asyncio.sleep(SETTLED_SECONDS)
        return seconds, served.resident_bytes() / 2**20


async def dispatchers() -> list[Variant]:
    """A dispatch at 32 concurrent turns, with AutoGen's queue and without AutoGen, compared with direct calls."""
    direct, queued, none = [await _figures("bench.dispatch", kind) for kind in ("direct", "queued", "none")]
    rows = []
    for name, found in (("AutoGen's queue", queued), ("no AutoGen", none)):
        rows += [
            Variant(f"{name}: dispatch of a turn, 32 at a time", "µs CPU", found["turn"], direct["turn"]),
            Variant(f"{name}: import and start", "ms CPU", found["start"] * 1e3, direct["start"] * 1e3),
            Variant(f"{name}: resident memory", "MiB", found["resident"], direct["resident"]),
        ]
    return rows


async def http_clients(field: Field) -> list[Variant]:
    """The client of the provider: aiohttp compared with the client of the proxy, each in a separate process."""
    port = str(field.upstream.port)
    rounds = [
        [await _figures("bench.http_clients", kind, port) for kind in ("aiohttp", "own")] for _ in range(3)
    ]
    rows = []
    for part, name in (("request", "a request"), ("chunk", "a chunk arriving singly")):
        theirs, own = (
            statistics.median(found[part] for found in of_kind) for of_kind in zip(*rounds, strict=True)
        )
        rows.append(
            Variant(f"aiohttp as the client of the provider: {name}, client only", "µs CPU", theirs, own)
        )
    return rows


async def _figures(module: str, *arguments: str) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    found: dict[str, float] = json.loads(output)
    return found
