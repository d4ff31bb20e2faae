"""``CheckpointRepository`` in memory, over what a ``MemoryHistory`` holds."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from proxy.turns.checkpoints import Checkpoint, TakenOver
from tests.fakes.store.turns import MemoryHistory, StoredTurn, is_lost


class MemoryCheckpoints:
    """``CheckpointRepository`` in memory."""

    def __init__(self, history: MemoryHistory) -> None:
        self._history = history

    async def save(self, *checkpoints: Checkpoint) -> bool:
        is_saved = True
        for checkpoint in checkpoints:
            stored = self._owned(checkpoint.turn, checkpoint.fence)
            is_saved = is_saved and stored is not None
            if stored is not None:
                stored.checkpoints[checkpoint.number] = checkpoint
        return is_saved

    async def take_over(
        self, worker: str, *, now: float, lease_until: float, dead_workers: Sequence[str] = ()
    ) -> Sequence[TakenOver]:
        taken = []
        for stored in self._history.turns.values():
            if stored.record.status != "running" or not stored.can_be_taken_over:
                continue
            if not is_lost(stored.record, now, dead_workers):
                continue
            stored.fence += 1
            stored.record = replace(stored.record, worker=worker, lease_until=lease_until)
            saved = [
                replace(one, fence=stored.fence, items=list(one.items))
                for _, one in sorted(stored.checkpoints.items())
            ]
            taken.append(TakenOver(stored.record, stored.conversation.key, stored.fence, saved))
        return taken

    async def interrupt(self, turn: int, *, fence: int, now: float) -> None:
        stored = self._owned(turn, fence)
        if stored is not None:
            stored.checkpoints = {}
            stored.record = replace(stored.record, lease_until=now - 1)
            await self._history.interrupt(now=now)

    async def discard(self, turn: int, *, fence: int) -> None:
        stored = self._owned(turn, fence)
        if stored is not None:
            stored.checkpoints = {}

    def _owned(self, turn: int, fence: int) -> StoredTurn | None:
        stored = self._history.turns.get(turn)
        is_owned = stored is not None and stored.record.status == "running" and stored.fence == fence
        return stored if is_owned else None
