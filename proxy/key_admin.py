"""Create, list and revoke API keys in the database, for the command line."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from proxy.auth import ApiKeyRecord, KeyStore, Terms, new_key
from proxy.errors import ConfigurationError, StoreUnavailable
from proxy.settings import Settings
from proxy.settings_check import create_data_dir
from proxy.store.engine.migrations import prepare_schema
from proxy.store.turns import open_history

R = TypeVar("R")

_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


def create_key(
    settings: Settings, name: str, terms: Terms, *, expires_days: float | None
) -> tuple[str, ApiKeyRecord]:
    """Create a key; return it and its stored record.

    Raises:
        ConfigurationError: The name is invalid, or the database is not available.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError("NAME: should be 1 to 100 characters in one line")
    now = round(time.time(), 3)
    expires_at = None if expires_days is None else now + expires_days * 86_400
    key, record = new_key(name, terms, now=now, expires_at=expires_at)
    _with_store(settings, lambda store: store.add(record))
    return key, record


def describe_keys(settings: Settings) -> list[str]:
    """Return a line for each key."""
    now = time.time()
    return [_line(key, now) for key in _with_store(settings, lambda store: store.all())]


def revoke_key(settings: Settings, key_id: str) -> bool:
    """Revoke a key; return False if there is no such key or it is already revoked."""
    return _with_store(settings, lambda store: store.revoke(key_id, now=time.time()))


def _with_store(settings: Settings, work: Callable[[KeyStore], Awaitable[R]]) -> R:
    create_data_dir(settings)

    async def run() -> R:
        await prepare_schema(settings.database)
        history = open_history(settings.database)
        try:
            return await work(history.keys)
        finally:
            await history.close()

    try:
        return asyncio.run(run())
    except StoreUnavailable:
        raise ConfigurationError("PROXY_DATABASE_URL: the database does not answer") from None


def _line(key: ApiKeyRecord, now: float) -> str:
    terms = key.terms
    state = "revoked" if key.revoked_at is not None else "active" if key.is_valid(now) else "expired"
    facts = [
        state,
        f"created {_day(key.created_at)}",
        key.expires_at is not None and f"expires {_day(key.expires_at)}",
        terms.events and f"events {terms.events}",
        terms.requests_per_minute and f"{terms.requests_per_minute} requests per minute",
        terms.tokens_per_minute and f"{terms.tokens_per_minute} tokens per minute",
        terms.models is not None and f"models {', '.join(terms.models)}",
    ]
    return f"{key.id}  {key.name}  ({'; '.join(fact for fact in facts if fact)})"


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()
