"""Repository protocol for custom agents and teams, which callers create over HTTP.

Every implementation passes ``tests/contracts/test_custom_agents.py``. Agents of one caller do not exist for another.
A name belongs to one agent or team of a caller. Each change creates a new version: 1, 2, 3 …
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

Kind = Literal["agent", "team"]
Revision = tuple[int, int]
"""Unchanged while none of the caller's agents and teams changes; ``(0, 0)`` if there are none."""


class CustomAgentVersion(Struct, frozen=True):
    """One version of an agent or team; ``body`` is JSON, which the store does not read. Times are Unix times."""

    kind: Kind
    name: str
    version: int
    body: bytes
    created_at: float
    """The time of the first version."""
    updated_at: float


class CustomAgentRepository(Protocol):
    """Stores custom agents and teams, and the snapshots of them with which conversations began."""

    async def revision(self, caller: str) -> Revision:
        """Return a value that changes with every change of the caller's agents and teams."""
        ...

    async def newest(self, caller: str) -> Sequence[CustomAgentVersion]:
        """Return the newest version of each of the caller's agents and teams, in the order of creation."""
        ...

    async def find(
        self, caller: str, kind: Kind, name: str, version: int | None = None
    ) -> CustomAgentVersion | None:
        """Return a version, by default the newest; None if there is none."""
        ...

    async def put(
        self, caller: str, kind: Kind, name: str, body: bytes, *, now: float, max_count: int
    ) -> CustomAgentVersion:
        """Store a new version, or a new agent or team if the caller has fewer than ``max_count``.

        Raises:
            AgentNameTaken: The name belongs to the other kind. Nothing was written.
            TooManyAgents: The caller has ``max_count`` agents and teams. Nothing was written.
        """
        ...

    async def delete(self, caller: str, kind: Kind, name: str) -> bool:
        """Delete all versions, and the snapshots of conversations; False if there is none."""
        ...

    async def store_snapshot(self, caller: str, name: str, digest: str, body: bytes) -> None:
        """Store the definition with which a conversation begins. Idempotent."""
        ...

    async def snapshot(self, caller: str, digest: str) -> bytes | None:
        """Return the definition with this digest."""
        ...

    async def count_snapshots(self, caller: str, name: str) -> int:
        """Return the number of stored definitions of a team or agent."""
        ...

    async def pinned(self, caller: str, conversation_id: str, team: str) -> str | None:
        """Return the digest of the definition with which the first turn of this team in the conversation began."""
        ...
