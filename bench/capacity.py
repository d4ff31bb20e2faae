"""How many streams one core can serve in time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from bench.client import Answer, connections, request
from bench.figures import Figure
from bench.measures import greeting
from bench.processes import Field, Served
from bench.scripts import SCRIPTS

MODEL = "single"
COUNTS = (8, 16, 24, 36, 54, 81, 122, 182, 273, 410, 615, 920, 1380)
LATE_SECONDS = 0.02
SHARE_IN_TIME = 0.95
BEGIN_SECONDS = 1.5
"""The streams begin evenly within this time. If all of them began at once, the row would show how many requests a
server accepts in a moment, and not how many streams it holds."""
HALVINGS = 2
"""How often the gap between a number of streams in time and the next one is halved."""


async def streams_held(field: Field) -> list[Figure]:
    """The number of streams with 50 chunks per second of which 95 % arrive less than 20 ms late."""
    baseline, reference, proxy = [await _most(server) for server in field.servers]
    name = "streams held at 50 chunks per second"
    return [Figure(name, "streams", baseline, reference, proxy, 9, goal_is_ratio=True, is_least=True)]


async def _most(server: Served) -> float:
    most, least_too_many = 0, None
    for count in COUNTS:
        if await _share_in_time(server, count) < SHARE_IN_TIME:
            least_too_many = count
            break
        most = count
    if most and least_too_many is not None:
        for _ in range(HALVINGS):
            between = round(math.sqrt(most * least_too_many))
            if await _share_in_time(server, between) < SHARE_IN_TIME:
                least_too_many = between
            else:
                most = between
    return float(most)


async def _share_in_time(server: Served, count: int) -> float:
    script = SCRIPTS[MODEL]
    loop = asyncio.get_running_loop()
    async with connections(server.port, count) as clients:
        waiting = []
        began = loop.time()
        for number, client in enumerate(clients):
            await asyncio.sleep(began + number * BEGIN_SECONDS / count - loop.time())
            waiting.append(client.send(request(MODEL, greeting(), stream=True), is_timed=True))
        try:
            async with asyncio.timeout(script.chunks * script.pause * 3):
                answers = await asyncio.gather(*waiting)
        except TimeoutError:
            return 0.0
    return share_in_time(answers, script.pause)


def share_in_time(answers: Sequence[Answer], pause: float) -> float:
    """Return the share of chunks that were in time, of those that were due while all streams were running.

    A chunk is due at its time on the schedule of its stream, according to the earliest chunk of the stream. The result
    is 0 if there was no such time, because the server accepted the last stream after the end of the first.
    """
    streams = [_arrivals(answer) for answer in answers]
    starts = [min(arrived - number * pause for number, arrived in enumerate(stream)) for stream in streams]
    first = max(stream[0] for stream in streams)
    last = min(start + (len(stream) - 1) * pause for start, stream in zip(starts, streams, strict=True))
    late = [
        arrived - due
        for start, stream in zip(starts, streams, strict=True)
        for number, arrived in enumerate(stream)
        if first <= (due := start + number * pause) <= last
    ]
    return sum(value < LATE_SECONDS for value in late) / len(late) if late else 0.0


def _arrivals(answer: Answer) -> list[float]:
    """Return when each word arrived."""
    assert answer.arrivals is not None
    times: list[float] = []
    for at, words in answer.arrivals:
        times.extend([at] * (words - len(times)))
    return times
