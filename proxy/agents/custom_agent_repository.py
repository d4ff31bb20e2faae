"""What is needed of a store for agents and teams that callers make.

Every implementation passes ``tests/contracts/test_creations.py``. What belongs to another caller does not exist. A name
is that of one thing, an agent or a team, and each change of it is a new version: 1, 2, 3 …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["agent", "team"]
Revision = tuple[int, int]
"""Equal as long as nothing of a caller's changed."""


@dataclass(frozen=True, slots=True)
class Creation:
    """One version of an agent or team; ``body`` is JSON that is opaque here, times are seconds since the epoch."""

    kind: Kind
    name: str
    version: int
    body: bytes
    created_at: float
    """When its first version was made."""
    updated_at: float


class NameTaken(Exception):
    """The name is that of a thing of the other kind."""


class TooManyCreations(Exception):
    """The caller has as many as it may."""


class Creations(Protocol):
    """The store, as far as agents and teams of callers are concerned."""

    async def revision(self, caller: str) -> Revision:
        """Return what changes whenever something of the caller's does."""
        ...

    async def newest(self, caller: str) -> Sequence[Creation]:
        """Return the newest version of everything of the caller's, in the order in which they were first made."""
        ...

    async def find(self, caller: str, kind: Kind, name: str, version: int | None = None) -> Creation | None:
        """Return a version, the newest one for None; None when there is none."""
        ...

    async def put(
        self, caller: str, kind: Kind, name: str, body: bytes, *, now: float, most: int
    ) -> Creation:
        """Keep a new version of a thing, or a new thing, if the caller has fewer than ``most``.

        Raises:
            NameTaken: Nothing was written.
            TooManyCreations: Nothing was written.
        """
        ...

    async def delete(self, caller: str, kind: Kind, name: str) -> bool:
        """Delete all versions of a thing, and what conversations kept of it; False when there is none."""
        ...

    async def keep_snapshot(self, caller: str, name: str, digest: str, body: bytes) -> None:
        """Keep what a conversation begins with under its digest; doing it again changes nothing."""
        ...

    async def snapshot(self, caller: str, digest: str) -> bytes | None:
        """Return what was kept under the digest."""
        ...

    async def pinned(self, caller: str, conversation_id: str, team: str) -> str | None:
        """Return the digest with which the first turn of this team in the conversation was begun."""
        ...
