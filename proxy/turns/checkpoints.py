"""Checkpoints of running turns, from which another worker continues a turn whose worker has died.

Every implementation passes ``tests/contracts/test_checkpoints.py``. A turn that was begun with ``NewTurn.checkpoint``,
or for which ``save`` was called, is taken over when its lease has expired, up to ``MAX_TAKEOVERS`` times. After that,
and without checkpoints, it is interrupted. The end of a turn deletes its checkpoints.

The fence of a turn counts how often it was taken over. A worker that was only suspended writes with an old fence:
neither its checkpoints nor its end are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from proxy.messages import Item
from proxy.turns.records import TurnRecord

MAX_TAKEOVERS = 3
"""A turn that ends its workers, for example by its memory, must not end all of them."""


class Checkpoint(Struct, frozen=True):
    """The state of a running turn after a step.

    ``number`` counts the checkpoints of a turn from 0. ``state`` is JSON of the service. ``items`` and ``journal`` are
    those since the previous checkpoint.
    """

    turn: int
    fence: int
    number: int
    state: bytes
    items: Sequence[Item] = ()
    journal: bytes = b""


class TakenOver(Struct, frozen=True):
    """A turn that belongs to this worker from now on, and its checkpoints in order, with the fence of this worker."""

    record: TurnRecord
    conversation: int
    fence: int
    checkpoints: Sequence[Checkpoint]


class CheckpointRepository(Protocol):
    """The store of checkpoints."""

    async def save(self, *checkpoints: Checkpoint) -> bool:
        """Store checkpoints of one turn, all or none; a repetition has no effect.

        Returns False if the turn is not running with this fence.

        Raises:
            StoreUnavailable: They may have been stored.
        """
        ...

    async def take_over(
        self, worker: str, *, now: float, lease_until: float, dead_workers: Sequence[str] = ()
    ) -> Sequence[TakenOver]:
        """Give turns with checkpoints whose lease expired, or whose worker is dead, to ``worker``; a few at a time."""
        ...

    async def interrupt(self, turn: int, *, fence: int, now: float) -> None:
        """Interrupt a turn that cannot be continued, like one without checkpoints."""
        ...

    async def discard(self, turn: int, *, fence: int) -> None:
        """Delete the checkpoints of a turn: it is not taken over any more."""
        ...
