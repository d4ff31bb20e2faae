"""How many streams one core can serve in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench.client import Answer, connections, request
from bench.figures import Figure
from bench.measures import greeting
from bench.processes import Field, Served
from bench.scripts import SCRIPTS

MODEL = "paced"
COUNTS = (8, 16, 24, 36, 54, 81, 122, 182, 273, 410, 615, 920)
LATE_SECONDS = 0.02
SHARE_IN_TIME = 0.95


async def streams_held(field: Field) -> list[Figure]:
    """The number of streams with 50 chunks per second of which 95 % arrive less than 20 ms late."""
    baseline, reference, proxy = [await _most(server) for server in field.servers]
    name = "streams held at 50 chunks per second"
    return [Figure(name, "streams", baseline, reference, proxy, 9, goal_is_ratio=True, is_least=True)]


async def _most(server: Served) -> float:
    most = 0
    for count in COUNTS:
        if await _share_in_time(server, count) < SHARE_IN_TIME:
            break
        most = count
    return float(most)


async def _share_in_time(server: Served, count: int) -> float:
    script = SCRIPTS[MODEL]
    async with connections(server.port, count) as clients:
        waiting = []
        for client in clients:
            waiting.append(client.send(request(MODEL, greeting(), stream=True), is_timed=True))
            # The streams begin within one pause, so that their chunks are spread evenly.
            await asyncio.sleep(script.pause / count)
        try:
            async with asyncio.timeout(script.chunks * script.pause * 3):
                answers = await asyncio.gather(*waiting)
        except TimeoutError:
            return 0.0
    late = [value for answer in answers for value in _lateness(answer, script.pause)]
    return sum(value < LATE_SECONDS for value in late) / len(late)


def _lateness(answer: Answer, pause: float) -> Sequence[float]:
    """How late each chunk arrived, compared with the earliest one of its stream relative to its schedule."""
    assert answer.arrivals is not None
    offsets = []
    for number in range(1, answer.words + 1):
        arrived = next(at for at, words in answer.arrivals if words >= number)
        offsets.append(arrived - number * pause)
    first = min(offsets)
    return [offset - first for offset in offsets]
