"""``KeyStore`` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from proxy.auth import KeptKey


class MemoryKeys:
    """See ``KeyStore``."""

    def __init__(self) -> None:
        self._keys: dict[str, KeptKey] = {}

    async def find(self, key_id: str) -> KeptKey | None:
        """See ``KeyStore``."""
        return self._keys.get(key_id)

    async def has_any(self) -> bool:
        """See ``KeyStore``."""
        return any(key.revoked_at is None for key in self._keys.values())

    async def all(self) -> Sequence[KeptKey]:
        """See ``KeyStore``."""
        return sorted(self._keys.values(), key=lambda key: (key.created_at, key.id))

    async def add(self, key: KeptKey) -> None:
        """See ``KeyStore``."""
        self._keys.setdefault(key.id, key)

    async def revoke(self, key_id: str, *, now: float) -> bool:
        """See ``KeyStore``."""
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            return False
        self._keys[key_id] = replace(key, revoked_at=now)
        return True
