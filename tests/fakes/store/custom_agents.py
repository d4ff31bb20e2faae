"""``CustomAgentRepository`` in memory, over what a ``MemoryHistory`` holds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from msgspec.structs import replace

from proxy.agents.custom_agent_repository import CustomAgentVersion, Kind, Revision
from proxy.request_errors import AgentNameTaken, TooManyAgents
from tests.fakes.store.turns import MemoryHistory


class MemoryCustomAgents:
    """``CustomAgentRepository`` in memory."""

    def __init__(self, history: MemoryHistory) -> None:
        self._history = history
        self._versions: dict[tuple[str, str], list[CustomAgentVersion]] = {}
        self._snapshots: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._changes = itertools.count(1)
        self._revisions: dict[str, Revision] = {}

    async def revision(self, caller: str) -> Revision:
        return self._revisions.get(caller, (0, 0))

    async def newest(self, caller: str) -> Sequence[CustomAgentVersion]:
        return [versions[-1] for (owner, _), versions in self._versions.items() if owner == caller]

    async def find(
        self, caller: str, kind: Kind, name: str, version: int | None = None
    ) -> CustomAgentVersion | None:
        versions = self._versions.get((caller, name), [])
        if not versions or versions[0].kind != kind:
            return None
        if version is None:
            return versions[-1]
        return next((one for one in versions if one.version == version), None)

    async def put(
        self, caller: str, kind: Kind, name: str, body: bytes, *, now: float, max_count: int
    ) -> CustomAgentVersion:
        versions = self._versions.get((caller, name), [])
        if versions and versions[0].kind != kind:
            raise AgentNameTaken(name)
        if not versions and sum(owner == caller for owner, _ in self._versions) >= max_count:
            raise TooManyAgents(max_count)
        created = CustomAgentVersion(kind, name, len(versions) + 1, body, now, now)
        if versions:
            created = replace(created, created_at=versions[0].created_at)
        self._versions[caller, name] = [*versions, created]
        self._changed(caller)
        return created

    async def delete(self, caller: str, kind: Kind, name: str) -> bool:
        if await self.find(caller, kind, name) is None:
            return False
        del self._versions[caller, name]
        stored = self._snapshots
        self._snapshots = {
            place: one for place, one in stored.items() if (place[0], one[0]) != (caller, name)
        }
        self._changed(caller)
        return True

    async def store_snapshot(self, caller: str, name: str, digest: str, body: bytes) -> None:
        self._snapshots.setdefault((caller, digest), (name, body))

    async def snapshot(self, caller: str, digest: str) -> bytes | None:
        found = self._snapshots.get((caller, digest))
        return None if found is None else found[1]

    async def count_snapshots(self, caller: str, name: str) -> int:
        return sum(owner == caller and found[0] == name for (owner, _), found in self._snapshots.items())

    async def pinned(self, caller: str, conversation_id: str, team: str) -> str | None:
        turns = sorted(self._history.turns.items())
        return next(
            (
                stored.snapshot
                for _, stored in turns
                if (stored.conversation.caller, stored.conversation.id) == (caller, conversation_id)
                and stored.snapshot is not None
                and stored.record.team == team
            ),
            None,
        )

    def _changed(self, caller: str) -> None:
        self._revisions[caller] = (next(self._changes), 0)
