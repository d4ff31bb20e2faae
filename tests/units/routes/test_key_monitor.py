from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.auth import ApiKeyRecord, Keys, Terms, new_key
from proxy.errors import StoreUnavailable, Unauthorized
from proxy.routes.key_monitor import KeyMonitor
from tests.fakes.store.api_keys import MemoryKeys


class Store(MemoryKeys):
    """Counts lookups, and fails while it ``is_down``; ``looked_up`` is set by each lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.is_down = False
        self.looked_up = asyncio.Event()

    async def find(self, key_id: str) -> ApiKeyRecord | None:
        self.count += 1
        self.looked_up.set()
        if self.is_down:
            raise StoreUnavailable
        return await super().find(key_id)

    async def next_lookup(self) -> None:
        self.looked_up.clear()
        async with asyncio.timeout(5):
            await self.looked_up.wait()
            await asyncio.sleep(0)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def keys(store: Store) -> Keys:
    # A clock that jumps, so that no record is cached.
    times = iter(range(0, 1_000_000, 10))
    return Keys((), store, clock=lambda: 1.0, monotonic=lambda: float(next(times)))


@pytest.fixture
async def monitor(keys: Keys) -> AsyncIterator[KeyMonitor]:
    monitor = KeyMonitor(keys, interval=0.001)
    task = asyncio.create_task(monitor.run())
    yield monitor
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def add(store: Store, keys: Keys) -> tuple[str, str, str]:
    """Return the header, the caller and the public part of a new key."""
    key, record = new_key("desk", Terms(), now=1.0)
    await store.add(record)
    await keys.prepare(f"Bearer {key}")
    return f"Bearer {key}", keys.caller(f"Bearer {key}"), record.id


def collect(into: list[str], name: str, event: asyncio.Event) -> Callable[[Unauthorized], None]:
    def on_invalid(error: Unauthorized) -> None:
        into.append(name)
        event.set()

    return on_invalid


async def test_every_connection_of_a_revoked_key_is_reported_once(
    store: Store, keys: Keys, monitor: KeyMonitor
) -> None:
    header, caller, key_id = await add(store, keys)
    other, other_caller, _ = await add(store, keys)
    invalid: list[str] = []
    event = asyncio.Event()
    with (
        monitor.watch(header, caller, collect(invalid, "one", event)),
        monitor.watch(header, caller, collect(invalid, "two", event)),
        monitor.watch(other, other_caller, collect(invalid, "other", event)),
    ):
        await store.next_lookup()
        assert invalid == []
        await store.revoke(key_id, now=2.0)
        async with asyncio.timeout(5):
            await event.wait()
        await store.next_lookup()
        await store.next_lookup()
    assert invalid == ["one", "two"]


async def test_an_unavailable_store_closes_no_connection(
    store: Store, keys: Keys, monitor: KeyMonitor
) -> None:
    header, caller, key_id = await add(store, keys)
    invalid: list[str] = []
    event = asyncio.Event()
    with monitor.watch(header, caller, collect(invalid, "one", event)):
        store.is_down = True
        await store.next_lookup()
        await store.next_lookup()
        assert invalid == []
        await store.revoke(key_id, now=2.0)
        store.is_down = False
        async with asyncio.timeout(5):
            await event.wait()
    assert invalid == ["one"]


async def test_a_failing_callback_does_not_end_the_checks(
    store: Store, keys: Keys, monitor: KeyMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    header, caller, key_id = await add(store, keys)
    other, other_caller, other_id = await add(store, keys)
    invalid: list[str] = []
    event = asyncio.Event()

    def fail(error: Unauthorized) -> None:
        raise ValueError

    with (
        monitor.watch(header, caller, fail),
        monitor.watch(other, other_caller, collect(invalid, "other", event)),
    ):
        await store.revoke(key_id, now=2.0)
        await store.revoke(other_id, now=2.0)
        async with asyncio.timeout(5):
            await event.wait()
    assert invalid == ["other"]
    assert "failed to check the API key of open connections" in caplog.text
