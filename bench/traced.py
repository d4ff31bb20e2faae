"""The cost of a request with tracing, compared with a server that does not trace."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.figures import Variant
from bench.measures import COSTS
from bench.processes import Field, free_ports, proxy_process
from bench.scripts import SCRIPTS

_ACCEPTED = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"


async def traced_turns(field: Field) -> list[Variant]:
    """A plain request and a handoff turn with spans that are exported to a collector on this machine."""
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as name:
        (port,) = free_ports(1)
        async with collector() as url:
            traced = {"PROXY_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
            async with proxy_process(Path(name), list(SCRIPTS), field.upstream.port, port, traced) as server:
                found = []
                for cost, label, unit, scale in (
                    ("plain", "plain request", "µs CPU", 1.0),
                    ("handoff", "handoff turn, 40 chunks", "ms CPU", 1e-3),
                ):
                    rounds = [
                        (await COSTS[cost](server) * scale, await COSTS[cost](field.proxy) * scale)
                        for _ in range(4)
                    ]
                    own, other = (statistics.median(values) for values in zip(*rounds, strict=True))
                    found.append(Variant(f"tracing: {label}", unit, own, other, None))
                    if cost == "plain":
                        found.append(
                            Variant(
                                "tracing off: its calls of a plain turn",
                                "µs CPU",
                                _cost_off(),
                                other,
                                0.01,
                            )
                        )
                return found


def _cost_off(turns: int = 200_000) -> float:
    """Return the µs of CPU of the four checks of a plain turn while tracing is off."""
    from proxy.tracing import is_traced

    start = time.process_time()
    for _ in range(turns):
        # Of the agent, of the model call, and before and after its attempt.
        is_traced()
        is_traced()
        is_traced()
        is_traced()
    return (time.process_time() - start) / turns * 1e6


@asynccontextmanager
async def collector() -> AsyncIterator[str]:
    """Accept exports of spans without reading them; return the URL."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                writer.write(_ACCEPTED)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
