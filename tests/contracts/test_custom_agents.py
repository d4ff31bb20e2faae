"""What every ``CustomAgentRepository`` promises: in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from proxy.agents.custom_agent_repository import CustomAgentRepository, CustomAgentVersion
from proxy.request_errors import AgentNameTaken, TooManyAgents
from proxy.store.turns import open_history
from proxy.turns.repository import TurnRepository
from tests.fakes.store.custom_agents import MemoryCustomAgents
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.turn_records import new_turn, the_end


@dataclass
class Store:
    history: TurnRepository
    creations: CustomAgentRepository

    async def put(
        self, name: str, body: bytes = b"{}", *, now: float = 1.0, caller: str = "alice"
    ) -> CustomAgentVersion:
        return await self.creations.put(caller, "agent", name, body, now=now, max_count=3)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        memory = MemoryHistory()
        yield Store(memory, MemoryCustomAgents(memory))
        return
    history = open_history(request.getfixturevalue(f"{request.param}_database"))
    yield Store(history, history.creations)
    await history.close()


async def test_every_change_is_a_version_and_old_ones_stay(store: Store) -> None:
    first = await store.put("helper", b"1", now=1.0)
    second = await store.put("helper", b"2", now=2.0)
    await store.put("other", b"3", now=3.0)

    assert first == CustomAgentVersion("agent", "helper", 1, b"1", 1.0, 1.0)
    assert second == CustomAgentVersion("agent", "helper", 2, b"2", 1.0, 2.0)
    find = store.creations.find
    assert await find("alice", "agent", "helper") == second
    assert (await find("alice", "agent", "helper", 1) or second).body == b"1"
    assert await find("alice", "agent", "helper", 3) is None
    assert [(one.name, one.version) for one in await store.creations.newest("alice")] == [
        ("helper", 2),
        ("other", 1),
    ]


async def test_what_is_another_callers_is_not_there(store: Store) -> None:
    await store.put("helper")
    await store.put("helper", b"bob's", caller="bob")
    await store.creations.store_snapshot("alice", "helper", "d1", b"kept")

    assert (await store.creations.find("bob", "agent", "helper") or None) == CustomAgentVersion(
        "agent", "helper", 1, b"bob's", 1.0, 1.0
    )
    assert await store.creations.snapshot("bob", "d1") is None
    assert await store.creations.delete("eve", "agent", "helper") is False
    assert await store.creations.delete("bob", "agent", "helper") is True
    assert await store.creations.find("alice", "agent", "helper") is not None


async def test_a_name_is_that_of_one_thing(store: Store) -> None:
    await store.put("helper")

    with pytest.raises(AgentNameTaken):
        await store.creations.put("alice", "team", "helper", b"{}", now=2.0, max_count=3)
    assert await store.creations.find("alice", "team", "helper") is None
    assert await store.creations.delete("alice", "team", "helper") is False


async def test_there_are_no_more_than_may_be(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.put(name)

    with pytest.raises(TooManyAgents):
        await store.put("d")
    assert (await store.put("c", b"new", now=2.0)).version == 2


async def test_the_revision_changes_with_each_version(store: Store) -> None:
    seen = [await store.creations.revision("alice")]
    await store.put("helper", now=1.0)
    seen.append(await store.creations.revision("alice"))
    await store.put("other", now=1.0)
    await store.put("helper", now=2.0)
    seen.append(await store.creations.revision("alice"))
    await store.creations.delete("alice", "agent", "helper")
    seen.append(await store.creations.revision("alice"))

    assert len(set(seen)) == 4
    assert await store.creations.revision("alice") == seen[-1]
    assert await store.creations.revision("bob") == (0, 0)


async def test_the_first_turn_of_a_team_pins_it_for_its_conversation(store: Store) -> None:
    for snapshot, team in ((None, "acme"), ("d1", "helper"), ("d2", "helper")):
        begun = await store.history.begin(new_turn("conv_a", team=team, snapshot=snapshot))
        assert await store.history.finish(the_end(begun.turn))

    pinned = store.creations.pinned
    assert await pinned("alice", "conv_a", "helper") == "d1"
    assert await pinned("alice", "conv_a", "acme") is None
    assert await pinned("bob", "conv_a", "helper") is None
    assert await pinned("alice", "conv_b", "helper") is None


async def test_a_snapshot_is_stored_once_and_deleted_with_its_agent(store: Store) -> None:
    await store.put("helper")
    for body in (b"first", b"second"):
        await store.creations.store_snapshot("alice", "helper", "d1", body)
    await store.creations.store_snapshot("alice", "other", "d2", b"stays")

    assert await store.creations.snapshot("alice", "d1") == b"first"
    await store.creations.delete("alice", "agent", "helper")
    assert await store.creations.snapshot("alice", "d1") is None
    assert await store.creations.snapshot("alice", "d2") == b"stays"
    assert (await store.put("helper", now=9.0)).version == 1


async def test_concurrent_changes_are_all_stored(store: Store) -> None:
    await asyncio.gather(*(store.put("helper", str(number).encode(), now=number) for number in range(1, 11)))

    newest = await store.creations.find("alice", "agent", "helper")
    assert newest is not None
    assert newest.version == 10
