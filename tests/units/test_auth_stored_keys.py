"""Callers with stored keys, and how long a key record is cached."""

from __future__ import annotations

import pytest

from proxy.auth import KEY_CACHE_SECONDS, MAX_MISSING, NO_TERMS, Access, ApiKeyRecord, Keys, Terms, new_key
from proxy.errors import ApiKeyMissing, StoreUnavailable, Unauthorized
from tests.fakes.store.api_keys import MemoryKeys


class CountingStore(MemoryKeys):
    """Counts how often it is asked."""

    asked = 0

    async def find(self, key_id: str) -> ApiKeyRecord | None:
        self.asked += 1
        return await super().find(key_id)


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_stored_key_has_caller_and_terms(monotonic: Time) -> None:
    store = CountingStore()
    keys = Keys((), store, clock=lambda: 1.0, monotonic=monotonic)
    key, stored = new_key("desk", Terms("none"), now=1.0)
    await store.add(stored)

    for _ in range(3):
        await keys.prepare(f"Bearer {key}")

    caller = keys.caller(f"Bearer {key}")
    assert caller == f"kept-{stored.id}"
    assert key not in caller
    assert keys.access(f"Bearer {key}") == Access(caller, keys.terms_of(caller), "desk")
    assert keys.terms_of(caller) == Terms("none")
    assert store.asked == 1
    assert not keys.is_open


async def test_a_key_is_prepared_while_its_record_is_cached(monotonic: Time) -> None:
    store = CountingStore()
    keys = Keys((), store, clock=lambda: 1.0, monotonic=monotonic)
    key, stored = new_key("desk", NO_TERMS, now=1.0)
    await store.add(stored)
    prepared = [keys.is_prepared(None), keys.is_prepared(f"Bearer {key}")]

    await keys.prepare(f"Bearer {key}")
    prepared += [keys.is_prepared(None), keys.is_prepared(f"Bearer {key}")]
    monotonic.now += KEY_CACHE_SECONDS
    prepared += [keys.is_prepared(None), keys.is_prepared(f"Bearer {key}")]

    # Without a key, only whether the server is open has to be known, which it is not once there is a key.
    assert prepared == [False, False, True, True, True, False]


async def test_an_open_server_looks_for_keys_again_after_a_time(monotonic: Time) -> None:
    keys = Keys((), CountingStore(), clock=lambda: 1.0, monotonic=monotonic)

    await keys.prepare("Bearer any")
    assert keys.is_prepared("Bearer any")
    monotonic.now += KEY_CACHE_SECONDS

    assert not keys.is_prepared("Bearer any")


@pytest.mark.parametrize("change", ["last character", "other secret", "no secret", "unknown id"])
async def test_an_unknown_key_gets_the_same_error(change: str, monotonic: Time) -> None:
    store = MemoryKeys()
    keys = Keys((), store, clock=lambda: 1.0, monotonic=monotonic)
    key, stored = new_key("desk", NO_TERMS, now=1.0)
    other, _ = new_key("other", NO_TERMS, now=1.0)
    await store.add(stored)
    wrong = {
        "last character": key[:-1] + ("A" if key[-1] != "A" else "B"),
        "other secret": key[:20] + other[20:],
        "no secret": key[:20],
        "unknown id": other,
    }[change]

    await keys.prepare(f"Bearer {key}")
    await keys.prepare(f"Bearer {wrong}")

    with pytest.raises(Unauthorized) as refused:
        keys.caller(f"Bearer {wrong}")
    assert refused.value.message == Unauthorized().message
    with pytest.raises(ApiKeyMissing):
        keys.caller(None)


async def test_a_revoked_key_is_accepted_for_at_most_a_second(monotonic: Time) -> None:
    store = MemoryKeys()
    keys = Keys((), store, clock=lambda: 1.0, monotonic=monotonic)
    key, stored = new_key("desk", NO_TERMS, now=1.0)
    await store.add(stored)
    await keys.prepare(f"Bearer {key}")
    await store.revoke(stored.id, now=2.0)

    monotonic.now += 0.9
    await keys.prepare(f"Bearer {key}")
    assert keys.caller(f"Bearer {key}")
    monotonic.now += 0.1
    await keys.prepare(f"Bearer {key}")

    with pytest.raises(Unauthorized):
        keys.caller(f"Bearer {key}")


async def test_an_expired_key_is_none(monotonic: Time) -> None:
    store = MemoryKeys()
    clock = Time()
    keys = Keys((), store, clock=clock, monotonic=monotonic)
    key, stored = new_key("desk", NO_TERMS, now=1.0, expires_at=101.0)
    await store.add(stored)
    await keys.prepare(f"Bearer {key}")
    assert keys.caller(f"Bearer {key}")

    clock.now = 101.0

    with pytest.raises(Unauthorized):
        keys.caller(f"Bearer {key}")


async def test_an_open_server_closes_when_the_first_key_is_created(monotonic: Time) -> None:
    store = MemoryKeys()
    keys = Keys((), store, monotonic=monotonic)
    await keys.prepare(None)
    assert keys.is_open
    await store.add(new_key("desk", NO_TERMS, now=1.0)[1])

    monotonic.now += 1.0
    await keys.prepare(None)

    assert not keys.is_open


async def test_unknown_keys_do_not_evict_a_known_key(monotonic: Time) -> None:
    store = MemoryKeys()
    keys = Keys((), store, clock=lambda: 1.0, monotonic=monotonic)
    key, stored = new_key("desk", Terms(models=("acme",)), now=1.0)
    await store.add(stored)
    await keys.prepare(f"Bearer {key}")
    caller = keys.caller(f"Bearer {key}")

    for number in range(MAX_MISSING + 10):
        await keys.prepare(f"Bearer hp_{number:016x}_{'x' * 43}")

    assert keys.terms_of(caller) == Terms(models=("acme",))
    assert keys.caller(f"Bearer {key}") == caller


class GoneStore(MemoryKeys):
    """Does not answer."""

    async def find(self, key_id: str) -> ApiKeyRecord | None:
        raise StoreUnavailable

    async def has_any(self) -> bool:
        raise StoreUnavailable


async def test_without_a_store_an_open_server_stays_open_and_stored_keys_fail(
    monotonic: Time,
) -> None:
    keys = Keys((), GoneStore(), monotonic=monotonic)
    key, _ = new_key("desk", NO_TERMS, now=1.0)

    await keys.prepare("Bearer any")
    with pytest.raises(StoreUnavailable):
        await keys.prepare(f"Bearer {key}")

    assert keys.is_open


@pytest.mark.parametrize(
    ("models", "model", "is_allowed"),
    [
        (None, "anything", True),
        (("acme",), "acme", True),
        (("acme",), "acme/sales", True),
        (("acme",), "acme/side", True),
        (("acme",), "acme-two", False),
        ((), "acme", False),
    ],
)
def test_terms_name_models_with_all_that_is_below(
    models: tuple[str, ...] | None, model: str, is_allowed: bool
) -> None:
    assert Terms(models=models).allow(model) is is_allowed


@pytest.fixture
def monotonic() -> Time:
    return Time()
