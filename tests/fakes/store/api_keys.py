"""``KeyStore`` in memory."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from proxy.auth import ApiKeyRecord


class MemoryKeys:
    """``KeyStore`` in memory."""

    def __init__(self) -> None:
        self._keys: dict[str, ApiKeyRecord] = {}

    async def find(self, key_id: str) -> ApiKeyRecord | None:
        return self._keys.get(key_id)

    async def has_any(self) -> bool:
        return any(key.revoked_at is None for key in self._keys.values())

    async def all(self) -> Sequence[ApiKeyRecord]:
        return sorted(self._keys.values(), key=lambda key: (key.created_at, key.id))

    async def add(self, key: ApiKeyRecord) -> None:
        self._keys.setdefault(key.id, key)

    async def revoke(self, key_id: str, *, now: float) -> bool:
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            return False
        self._keys[key_id] = replace(key, revoked_at=now)
        return True
