"""What was acknowledged is there exactly once, whatever is killed; two workers on one database do not mix."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from proxy.errors import ConversationBusy
from proxy.store.turns import SqlHistory, open_history
from tests.fakes.turn_records import new_turn, the_end
from tests.fakes.writer_process import CONVERSATIONS
from tests.fork_server import ROOT, ForkedProcess, fork


@pytest.fixture
async def two_workers(database: str) -> AsyncIterator[tuple[SqlHistory, SqlHistory]]:
    one, two = open_history(database), open_history(database)
    yield one, two
    await one.close()
    await two.close()


async def test_of_two_workers_one_gets_each_conversation(two_workers: tuple[SqlHistory, SqlHistory]) -> None:
    async def race(conversation: str) -> tuple[object, ...]:
        tries = [worker.begin(new_turn(conversation)) for worker in random.sample(two_workers, 2)]
        return tuple(await asyncio.gather(*tries, return_exceptions=True))

    races = await asyncio.gather(*(race(f"conv_{n}") for n in range(200)))

    assert [sorted(type(outcome).__name__ for outcome in each) for each in races] == [
        ["Begun", "ConversationBusy"]
    ] * 200


async def test_two_workers_take_turns_in_a_conversation(two_workers: tuple[SqlHistory, SqlHistory]) -> None:
    """Each tries until it gets its turn, as clients do; every turn follows the one before."""
    done: list[int] = []

    async def work(worker: SqlHistory, count: int) -> None:
        while count:
            known = await worker.find_conversation("alice", "conv_a")
            try:
                begun = await worker.begin(new_turn("conv_a", parent=known.head if known else None))
            except ConversationBusy:
                continue
            assert await worker.finish(the_end(begun.turn))
            done.append(begun.turn)
            count -= 1

    await asyncio.gather(*(work(worker, 20) for worker in two_workers))

    assert len(set(done)) == 40
    rows = [await two_workers[0].chain(turn) for turn in done]
    assert all(chain[-1].turn == turn for chain, turn in zip(rows, done, strict=True))


async def test_two_workers_with_one_idempotency_key_begin_once(
    two_workers: tuple[SqlHistory, SqlHistory],
) -> None:
    async def race(number: int) -> Counter[str]:
        tries = [
            worker.begin(new_turn(f"conv_{number}_{n}", idempotency_key=f"k{number}"))
            for n, worker in enumerate(two_workers)
        ]
        return Counter(
            type(outcome).__name__ for outcome in await asyncio.gather(*tries, return_exceptions=True)
        )

    races = await asyncio.gather(*(race(number) for number in range(50)))

    assert races == [Counter(Begun=1, IdempotencyKeyTaken=1)] * 50
    created = [
        await two_workers[0].find_conversation("alice", f"conv_{n}_{m}") for n in range(50) for m in range(2)
    ]
    assert sum(conversation is not None for conversation in created) == 50


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_was_acknowledged_survives_kill_9_exactly_once(database: str, workers: int) -> None:
    names = [f"worker{n}" for n in range(workers)]
    acknowledged: Counter[str] = Counter()
    for _ in range(3):
        children = [await started(database, name) for name in names]
        for output in await asyncio.gather(
            *(killed_after(child, random.randint(1, 60)) for child in children)
        ):
            acknowledged.update(output)
        history = open_history(database)
        await history.interrupt(now=1e12)
        await history.close()

    history = open_history(database)
    for conversation in (f"{name}-{n}" for name in names for n in range(CONVERSATIONS)):
        known = await history.find_conversation("alice", conversation)
        chain = await history.chain(known.head) if known and known.head else []

        texts = [[str(item.message.content) for item in turn.items] for turn in chain]
        assert texts == [[f"ask {n}", f"first {n}", f"last {n}"] for n in range(len(chain))]
        # The last commit of each round can be unacknowledged.
        assert acknowledged[conversation] <= len(chain) <= acknowledged[conversation] + 3
        begun = await history.begin(new_turn(conversation))
        assert await history.finish(the_end(begun.turn))
    await history.close()


async def started(url: str, name: str) -> ForkedProcess:
    return await fork("tests.fakes.writer_process", url, name, folder=ROOT, environment=os.environ)


async def killed_after(child: ForkedProcess, count: int) -> list[str]:
    """Kill the process after the given number of turns; return the conversation of each acknowledged turn."""
    assert child.stdout is not None
    assert child.stderr is not None
    lines: list[bytes] = []
    while len(lines) < count:
        line = await child.stdout.readline()
        if not line:
            raise AssertionError((await child.stderr.read()).decode())
        lines.append(line)
    child.kill()
    lines += (await child.stdout.read()).splitlines(keepends=True)
    await child.stderr.read()
    await child.wait()
    return [line.split()[0].decode() for line in lines if line.endswith(b"\n")]
