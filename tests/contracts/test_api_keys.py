"""What every ``KeyStore`` promises: in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from proxy.auth import ApiKeyRecord, KeyStore, Terms, new_key
from proxy.store.turns import open_history
from tests.fakes.store.api_keys import MemoryKeys

TERMS = Terms("none", 10, 1000, ("acme-support", "assistant"))


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[KeyStore]:
    if request.param == "memory":
        yield MemoryKeys()
        return
    history = open_history(request.getfixturevalue(f"{request.param}_database"))
    yield history.keys
    await history.close()


def a_key(name: str = "desk", *, now: float = 1.0, expires_at: float | None = None) -> ApiKeyRecord:
    return new_key(name, TERMS, now=now, expires_at=expires_at)[1]


async def test_a_stored_key_is_returned_unchanged(store: KeyStore) -> None:
    key, plain = a_key(expires_at=99.5), replace(a_key(), terms=Terms())

    await store.add(key)
    await store.add(plain)

    assert await store.find(key.id) == key
    assert await store.find(plain.id) == plain
    assert await store.find("0" * 16) is None


async def test_keys_are_listed_in_the_order_in_which_they_were_created(store: KeyStore) -> None:
    late, early = a_key("late", now=2.0), a_key("early", now=1.0)

    for key in (late, early):
        await store.add(key)

    assert [key.name for key in await store.all()] == ["early", "late"]


async def test_a_revoked_key_stays_revoked(store: KeyStore) -> None:
    key = a_key()
    assert not await store.has_any()
    await store.add(key)
    assert await store.has_any()

    assert await store.revoke(key.id, now=5.0)
    assert not await store.revoke(key.id, now=6.0)
    assert not await store.revoke("0" * 16, now=6.0)

    assert await store.find(key.id) == replace(key, revoked_at=5.0)
    assert not await store.has_any()
