"""What every ``CheckpointRepository`` promises: in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from proxy.errors import ConversationBusy
from proxy.messages import AssistantMessage, FunctionCall, Item, ToolCall, ToolMessage
from proxy.store.turns import open_history
from proxy.turns.checkpoints import MAX_TAKEOVERS, Checkpoint, CheckpointRepository, TakenOver
from proxy.turns.repository import TurnRepository
from tests.fakes.store.checkpoints import MemoryCheckpoints
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.turn_records import new_turn, the_end

CALL = Item(
    AssistantMessage(None, tool_calls=[ToolCall("call_1", FunctionCall("refund", '{"n": 1}'))]),
    "sales",
    visible=False,
)
RESULT = Item(ToolMessage("call_1", "done"), "sales", visible=False)


@dataclass
class Store:
    turns: TurnRepository
    checkpoints: CheckpointRepository


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        memory = MemoryHistory()
        yield Store(memory, MemoryCheckpoints(memory))
        return
    history = open_history(request.getfixturevalue(f"{request.param}_database"))
    yield Store(history, history.checkpoints)
    await history.close()


async def take_over(store: Store, worker: str = "w2", now: float = 200.0) -> list[TakenOver]:
    return list(await store.checkpoints.take_over(worker, now=now, lease_until=now + 30))


async def test_a_lost_turn_is_taken_over_with_its_checkpoints_in_order(store: Store) -> None:
    begun = await store.turns.begin(new_turn(id="chatcmpl-1", checkpoint=b'{"first":1}'))
    second = Checkpoint(begun.turn, 0, 1, b'{"second":1}', [CALL], b"events")
    third = Checkpoint(begun.turn, 0, 2, b'{"third":1}', [RESULT])
    assert await store.checkpoints.save(second)
    assert await store.checkpoints.save(second)
    assert await store.checkpoints.save(third)
    assert await take_over(store, now=130.0) == []

    (taken,) = await take_over(store)

    assert taken.record == await store.turns.turn("alice", "chatcmpl-1")
    assert (taken.record.worker, taken.record.lease_until, taken.fence) == ("w2", 230.0, 1)
    assert taken.conversation == begun.conversation
    first = Checkpoint(begun.turn, 1, 0, b'{"first":1}', [])
    assert list(taken.checkpoints) == [first, replace(second, fence=1), replace(third, fence=1)]
    assert await take_over(store) == []


async def test_a_turn_without_checkpoints_is_interrupted_and_not_taken_over(store: Store) -> None:
    await store.turns.begin(new_turn(id="chatcmpl-1"))

    assert await take_over(store) == []
    assert await store.turns.interrupt(now=200.0) == 1


async def test_a_turn_with_checkpoints_is_not_interrupted_and_keeps_its_conversation(store: Store) -> None:
    begun = await store.turns.begin(new_turn(id="chatcmpl-1", idempotency_key="k", checkpoint=b"{}"))

    assert await store.turns.interrupt(now=200.0) == 0
    with pytest.raises(ConversationBusy):
        await store.turns.begin(new_turn(created_at=200.0))
    await store.checkpoints.discard(begun.turn, fence=0)

    assert await store.turns.interrupt(now=200.0) == 1


async def test_a_turn_of_a_dead_worker_is_taken_over_before_its_lease_expires(store: Store) -> None:
    await store.turns.begin(new_turn(id="chatcmpl-1", checkpoint=b"{}"))
    await store.turns.begin(new_turn("conv_b", worker="w3", checkpoint=b"{}"))

    taken = await store.checkpoints.take_over("w2", now=101.0, lease_until=131.0, dead_workers=["w1"])

    assert [one.record.id for one in taken] == ["chatcmpl-1"]


async def test_the_earlier_worker_stores_neither_checkpoints_nor_the_end(store: Store) -> None:
    begun = await store.turns.begin(new_turn(id="chatcmpl-1", checkpoint=b"{}"))
    await take_over(store)

    assert not await store.checkpoints.save(Checkpoint(begun.turn, 0, 1, b"{}"))
    await store.checkpoints.discard(begun.turn, fence=0)
    assert not await store.turns.finish(the_end(begun.turn))
    record = await store.turns.turn("alice", "chatcmpl-1")
    assert record is not None
    assert (record.status, record.items) == ("running", [])

    assert await store.checkpoints.save(Checkpoint(begun.turn, 1, 1, b"{}"))
    assert await store.turns.finish(the_end(begun.turn, fence=1, has_checkpoints=True))
    assert not await store.checkpoints.save(Checkpoint(begun.turn, 1, 2, b"{}"))


async def test_a_turn_is_taken_over_a_limited_number_of_times(store: Store) -> None:
    await store.turns.begin(new_turn(id="chatcmpl-1", checkpoint=b"{}"))

    for attempt in range(MAX_TAKEOVERS):
        (taken,) = await take_over(store, now=200.0 + 100 * attempt)
        assert taken.fence == attempt + 1

    assert await take_over(store, now=900.0) == []
    assert await store.turns.interrupt(now=900.0) == 1


async def test_two_workers_do_not_take_over_the_same_turn(store: Store) -> None:
    for number in range(6):
        await store.turns.begin(new_turn(f"conv_{number}", checkpoint=b"{}"))

    both = await asyncio.gather(take_over(store, "w2"), take_over(store, "w3"))

    # A worker skips rows that the other one has locked.
    taken = [one.record.id for group in both for one in group]
    taken += [one.record.id for one in await take_over(store, "w2")]
    assert len(taken) == len({*taken}) == 6
