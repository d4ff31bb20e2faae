"""Store the progress of running turns: their items, before tools with effects start and after tools have ended.

If the worker dies, the turn is history with these items (see ``TurnRepository.interrupt``). A running turn also reads
the compactions of its conversation here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from msgspec import Struct

from proxy.errors import StoreUnavailable
from proxy.messages import Item
from proxy.turns.records import Progress
from proxy.turns.repository import TurnRepository

logger = logging.getLogger(__name__)


class ProgressStore:
    """Writes the progress of the turns of this process; one instance per process."""

    def __init__(self, history: TurnRepository) -> None:
        self.history = history
        self._tasks: set[asyncio.Task[None]] = set()

    def write_soon(self, turn: int, progress: Progress) -> None:
        """Write in the background. Progress of a turn that has ended by then has no effect."""
        task = asyncio.create_task(self._write(turn, progress), name="progress of a turn")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for the writes."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, turn: int, progress: Progress) -> None:
        try:
            await self.history.store_progress(turn, progress)
        except StoreUnavailable:
            logger.warning("failed to store the progress of a turn")


class StoredTurn(Struct):
    """``turns.turn.ProgressLog`` and ``StoredCompactions`` for the turn and the conversation with these keys.

    Without ``is_stored``, no items are written.
    """

    owner: ProgressStore
    turn: int
    conversation: int
    is_stored: bool
    ran_effects: bool = False

    async def store(self, agent: str, items: Sequence[Item]) -> None:
        """Write, and wait until it is durable."""
        self.ran_effects = True
        await self.owner.history.store_progress(self.turn, self._progress(agent, items))

    def note(self, agent: str, items: Sequence[Item]) -> None:
        """Write in the background."""
        if self.is_stored:
            self.owner.write_soon(self.turn, self._progress(agent, items))

    async def read(self) -> Sequence[Item]:
        """Return the newest items of the conversation with a compaction, oldest first."""
        return await self.owner.history.compactions(self.conversation)

    def _progress(self, agent: str, items: Sequence[Item]) -> Progress:
        return Progress(agent, items if self.is_stored else (), self.ran_effects)
