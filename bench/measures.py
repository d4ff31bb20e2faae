"""The measurements, one function per result or group of results.

Each sends the same requests to the servers in turn and returns one value per server. CPU is the CPU time of the
server process between two points, divided by the number of operations in between.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import chain

from bench.client import Connection, Messages, connected, connections, request
from bench.figures import Figure
from bench.processes import Field, Served
from bench.scripts import HANDOFF, SCRIPTS

_CANCELLED_WITH_CLIENT = {"x-on-disconnect": "cancel"}
"""Otherwise, hundreds of turns would wait for their clients during the next measurement."""
_numbers = itertools.count()
_grown: dict[Served, list[dict[str, str]]] = {}
"""The stored conversation of each server."""

Measure = Callable[[Field], Awaitable[list[Figure]]]
Cost = Callable[[Served], Awaitable[float]]


async def in_rounds(field: Field, cost: Cost, *, rounds: int, own: Sequence[Cost] = ()) -> list[list[float]]:
    """Measure all servers in each round, so that changes of the machine's speed affect all of them.

    ``own`` are further costs of handoff-proxy, behind those of the servers. A first round is not counted: each server
    does in it what it does only at its first requests.
    """
    measured = [
        [await cost(server) for server in field.servers] + [await one(field.proxy) for one in own]
        for _ in range(rounds + 1)
    ]
    return measured[1:]


async def chunks_singly(field: Field) -> list[Figure]:
    """CPU per chunk that arrives alone, on ten streams with 50 chunks per second."""
    rounds = await in_rounds(field, partial(_cost_of_chunks, model="paced", streams=10), rounds=6)
    return [Figure.of_rounds("chunk arriving singly", "µs CPU", rounds, goal=0.15)]


async def chunks_in_bursts(field: Field) -> list[Figure]:
    """CPU per chunk in bursts of twenty, on four streams with 50 bursts per second."""
    rounds = await in_rounds(field, COSTS["bursts"], rounds=4)
    return [Figure.of_rounds("chunk in bursts", "µs CPU", rounds, goal=0.05)]


async def chunks_of_responses(field: Field) -> list[Figure]:
    """The same for a model that is called on the Responses API; the other servers do not support it."""
    cost = await _cost_of_chunks(field.proxy, "responses", streams=4)
    return [Figure.of_proxy("chunk in bursts, Responses upstream", "µs CPU", [cost], goal=10)]


async def _cost_of_chunks(server: Served, model: str, *, streams: int) -> float:
    """Measure while all streams are running, which excludes the cost of the requests."""
    script = SCRIPTS[model]
    async with connections(server.port, streams) as clients:
        answers = []
        for client in clients:
            answers.append(client.send(request(model, greeting(), stream=True)))
            # Offset the streams, so that their chunks rarely arrive at the same time.
            await asyncio.sleep(script.pause * 1.1)
        # Not after a time: a server under valgrind takes seconds for the beginning of a turn.
        await _until_words(clients, script.chunks * 0.1)
        words, cpu = _words(clients), server.cpu_seconds()
        await _until_words(clients, script.chunks * 0.8)
        cost = (server.cpu_seconds() - cpu) / (_words(clients) - words)
        for answer in answers:
            assert (await answer).words == script.chunks, "words were lost"
    return cost * 1e6


async def _until_words(clients: Sequence[Connection], count: float) -> None:
    """Return when each client has received this number of words."""
    while min(client.answer.words for client in clients) < count:  # noqa: ASYNC110 - an event per word would cost more
        await asyncio.sleep(0.01)


def _words(clients: Sequence[Connection]) -> int:
    return sum(client.answer.words for client in clients)


async def plain_requests(field: Field) -> list[Figure]:
    """CPU of a request with an immediate JSON response, of eight or 32 clients; for handoff-proxy, of a stored turn."""
    few = await in_rounds(field, partial(_cost_of_plain, count=160), rounds=12)
    many = await in_rounds(field, partial(_cost_of_plain, count=320, concurrency=32), rounds=12)
    return [
        Figure.of_rounds("plain request", "µs CPU", few, goal=0.25),
        Figure.of_rounds("plain request, 32 at a time", "µs CPU", many, goal=0.25),
    ]


async def short_streams(field: Field) -> list[Figure]:
    """CPU of a streamed request with one chunk."""
    rounds = await in_rounds(field, partial(_cost_of_short_streams, count=160), rounds=12)
    return [Figure.of_rounds("streamed request of one chunk", "µs CPU", rounds, goal=0.3)]


async def _cost_of_plain(server: Served, *, count: int = 480, concurrency: int = 8) -> float:
    async def ask(client: Connection) -> None:
        await client.ask(request("plain", greeting(), stream=False), SCRIPTS["plain"].chunks)

    return await _cost_of_each(server, ask, count=count, concurrency=concurrency) * 1e6


async def _cost_of_short_streams(server: Served, *, count: int = 480, concurrency: int = 8) -> float:
    async def ask(client: Connection) -> None:
        await client.ask(request("first", greeting(), stream=True), SCRIPTS["first"].chunks)

    return await _cost_of_each(server, ask, count=count, concurrency=concurrency) * 1e6


async def handoff_turns(field: Field) -> list[Figure]:
    """CPU of a turn in which one agent hands over to another, which says 40 chunks.

    At the other two the client makes both calls itself.
    """

    async def two_calls(client: Connection) -> None:
        for model in HANDOFF:
            await client.ask(request(model, greeting(), stream=True), SCRIPTS[model].chunks)

    async def cost(server: Served) -> float:
        if server is field.proxy:
            return await _cost_of_handoff(server, count=24) / 1e3
        return await _cost_of_each(server, two_calls, count=24, concurrency=8) * 1e3

    rounds = await in_rounds(field, cost, rounds=5)
    return [Figure.of_rounds("handoff turn, 40 chunks", "ms CPU", rounds, goal=0.22)]


async def _cost_of_handoff(server: Served, *, count: int = 48, concurrency: int = 8) -> float:
    async def run_turn(client: Connection) -> None:
        await client.ask(request("handoff", greeting(), stream=True), SCRIPTS["talking"].chunks)

    return await _cost_of_each(server, run_turn, count=count, concurrency=concurrency) * 1e6


async def long_histories(field: Field) -> list[Figure]:
    """CPU of a request with 1,000 messages: of a stored conversation, and of a new one."""
    rounds = await in_rounds(
        field, partial(_cost_of_new, count=12), rounds=5, own=[partial(_cost_of_known, count=12)]
    )
    new, with_known = [one[:3] for one in rounds], [(*one[:2], one[3]) for one in rounds]
    return [
        Figure.of_rounds("1,000 messages, known", "ms CPU", with_known, goal=0.03),
        Figure.of_rounds("1,000 messages, new", "ms CPU", new, goal=0.03),
    ]


async def _cost_of_new(server: Served, *, count: int = 24) -> float:
    return await _cost_of_lists(server, [messages_of(999)] * count)


async def _cost_of_lists(server: Served, lists: Sequence[Messages]) -> float:
    """Send ``lists`` in order; a new list starts with a unique greeting."""
    waiting = iter(lists)

    async def ask(client: Connection) -> None:
        messages = next(waiting)
        if messages[0]["content"] == "":
            messages = [*greeting(), *messages[1:]]
        await client.ask(request("history", messages, stream=False), SCRIPTS["history"].chunks)

    warm_up = len(lists) // 6
    return await _cost_of_each(server, ask, count=len(lists) - warm_up, concurrency=1, warm_up=warm_up) * 1e3


async def _cost_of_known(server: Served, *, count: int = 24) -> float:
    """Continue a stored conversation of 998 messages, which is created once for each server."""
    if server not in _grown:
        async with connections(server.port, 1) as (client,):
            _grown[server] = await _grown_conversation(client, 998)
    return await _cost_of_lists(server, _continuations(_grown[server], count))


async def _grown_conversation(client: Connection, length: int) -> list[dict[str, str]]:
    """Create a conversation of ``length`` messages (an even number) turn by turn, and return its messages."""
    conversation = greeting()
    headers = {"x-conversation-id": f"bench-{next(_numbers)}"}
    messages = conversation
    while True:
        await client.ask(
            request("history", messages, stream=False, headers=headers), SCRIPTS["history"].chunks
        )
        conversation = [*conversation, {"role": "assistant", "content": _answer_text()}]
        if len(conversation) >= length:
            return conversation
        messages = [{"role": "user", "content": _question(len(conversation))}]
        conversation = [*conversation, *messages]


def _continuations(conversation: list[dict[str, str]], count: int) -> list[Messages]:
    lists: list[Messages] = []
    for _ in range(count):
        # A number that no other question has: each of them is a new branch.
        conversation = [*conversation, {"role": "user", "content": _question(next(_numbers))}]
        lists.append(conversation)
        conversation = [*conversation, {"role": "assistant", "content": _answer_text()}]
    return lists


async def first_token(field: Field) -> list[Figure]:
    """Time that a server adds between the request and the first word, for sequential requests."""
    servers = (field.upstream, *field.servers)
    for server in servers:
        await _times_to_first_word(server)
    rounds = [[await _times_to_first_word(server) for server in servers] for _ in range(10)]
    medians = [[statistics.median(times) * 1e3 for times in one] for one in rounds]
    added = [[time - direct for time in times] for direct, *times in medians]
    # Of all rounds: one of them has too few requests for a percentile.
    base = statistics.median(direct for direct, *_ in medians)
    _, *late = [_percentile([*chain(*times)], 0.99) * 1e3 for times in zip(*rounds, strict=True)]
    return [
        Figure.of_rounds("added time to first token, median", "ms", added, goal=0.35),
        Figure.of_rounds("added time to first token, p99", "ms", [[one - base for one in late]], goal=0.35),
    ]


async def _times_to_first_word(server: Served, count: int = 30) -> list[float]:
    times = []
    async with connections(server.port, 1) as (client,):
        for number in range(count + 5):
            answer = await client.ask(request("first", greeting(), stream=True), SCRIPTS["first"].chunks)
            if number >= 5:
                times.append(answer.first_word_at - answer.sent_at)
    return times


async def waiting_streams(field: Field) -> list[Figure]:
    """Memory of an idle stream, computed from the growth between 100 and 600 streams."""
    baseline, reference, proxy = [await _memory_of_a_stream(server) for server in field.servers]
    return [Figure("memory of a waiting stream", "KiB", baseline, reference, proxy, goal=30)]


async def _memory_of_a_stream(server: Served, few: int = 100, many: int = 600) -> float:
    async with AsyncExitStack() as stack:
        resident = []
        for count in (few, many - few):
            for client in [await stack.enter_async_context(connected(server.port)) for _ in range(count)]:
                # Do not wait for the end: these streams are endless.
                client.send(request("waiting", greeting(), stream=True, headers=_CANCELLED_WITH_CLIENT))
                await client.first_word.wait()
            await asyncio.sleep(0.2)
            resident.append(server.resident_bytes())
    await asyncio.sleep(0.5)
    return (resident[1] - resident[0]) / (many - few) / 1024


async def _cost_of_each(
    server: Served,
    ask: Callable[[Connection], Awaitable[None]],
    *,
    count: int,
    concurrency: int,
    warm_up: int = 8,
) -> float:
    """Return the CPU seconds of one ``ask``, with ``concurrency`` connections that each send sequentially."""
    async with connections(server.port, concurrency) as clients:

        async def repeat(client: Connection, times: int) -> None:
            for _ in range(times):
                await ask(client)

        await asyncio.gather(*(repeat(client, warm_up // concurrency) for client in clients))
        cpu = server.cpu_seconds()
        await asyncio.gather(*(repeat(client, count // concurrency) for client in clients))
        return (server.cpu_seconds() - cpu) / count


def greeting() -> list[dict[str, str]]:
    """Return the start of a new conversation."""
    return [
        {
            "role": "user",
            "content": f"Hello, I am visitor {next(_numbers)} and I would like to know something.",
        }
    ]


def _question(number: int) -> str:
    return f"And what about number {number}? I have considered it for quite a while and am still not sure."


def _answer_text() -> str:
    return "".join(" word" for _ in range(SCRIPTS["history"].chunks))


def messages_of(count: int) -> list[dict[str, str]]:
    """Return ``count`` messages; the first one is a placeholder for a unique greeting."""
    answer = {"role": "assistant", "content": _answer_text()}
    return [
        {"role": "user", "content": ""},
        *(
            answer if number % 2 else {"role": "user", "content": _question(number)}
            for number in range(1, count)
        ),
    ]


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


# Memory first: later measurements leave free memory in the process, which would be reused.
MEASURES: dict[str, Measure] = {
    "memory": waiting_streams,
    "single": chunks_singly,
    "bursts": chunks_in_bursts,
    "responses": chunks_of_responses,
    "plain": plain_requests,
    "short": short_streams,
    "handoff": handoff_turns,
    "history": long_histories,
    "first-token": first_token,
}

# Measurements of one server, in µs of CPU; of lists, in ms.
COSTS: dict[str, Cost] = {
    "plain": _cost_of_plain,
    "plain32": partial(_cost_of_plain, count=960, concurrency=32),
    "short": _cost_of_short_streams,
    "single": partial(_cost_of_chunks, model="single", streams=10),
    "bursts": partial(_cost_of_chunks, model="bursts", streams=4),
    "handoff": _cost_of_handoff,
    "new": _cost_of_new,
    "known": _cost_of_known,
}

# The same with fewer operations, for servers under valgrind.
INSTRUCTIONS: dict[str, Cost] = {
    "plain": partial(_cost_of_plain, count=64, concurrency=1),
    "plain32": partial(_cost_of_plain, count=128, concurrency=32),
    "short": partial(_cost_of_short_streams, count=64, concurrency=1),
    "bursts": partial(_cost_of_chunks, model="bursts", streams=1),
    "single": partial(_cost_of_chunks, model="single", streams=4),
    "handoff": partial(_cost_of_handoff, count=8, concurrency=1),
    "new": _cost_of_new,
    "known": _cost_of_known,
}
