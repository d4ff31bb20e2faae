"""``CheckpointRepository`` in memory, over what a ``MemoryHistory`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from proxy.turns.checkpoints import Checkpoint, TakenOver
from tests.fakes.store.turns import MemoryHistory, StoredTurn, is_lost


class MemoryCheckpoints:
    """``CheckpointRepository`` in memory."""

    def __init__(self, history: MemoryHistory) -> None:
        self._history = history

    async def save(self, *checkpoints: Checkpoint) -> bool:
        is_saved = True
        for checkpoint in checkpoints:
            kept = self._owned(checkpoint.turn, checkpoint.fence)
            is_saved = is_saved and kept is not None
            if kept is not None:
                kept.checkpoints[checkpoint.number] = checkpoint
        return is_saved

    async def take_over(
        self, worker: str, *, now: float, lease_until: float, dead_workers: Sequence[str] = ()
    ) -> Sequence[TakenOver]:
        taken = []
        for kept in self._history.turns.values():
            if kept.record.status != "running" or not kept.can_be_taken_over:
                continue
            if not is_lost(kept.record, now, dead_workers):
                continue
            kept.fence += 1
            kept.record = replace(kept.record, worker=worker, lease_until=lease_until)
            saved = [
                replace(one, fence=kept.fence, items=list(one.items))
                for _, one in sorted(kept.checkpoints.items())
            ]
            taken.append(TakenOver(kept.record, kept.conversation.key, kept.fence, saved))
        return taken

    async def interrupt(self, turn: int, *, fence: int, now: float) -> None:
        kept = self._owned(turn, fence)
        if kept is not None:
            kept.checkpoints = {}
            kept.record = replace(kept.record, lease_until=now - 1)
            await self._history.interrupt(now=now)

    async def discard(self, turn: int, *, fence: int) -> None:
        kept = self._owned(turn, fence)
        if kept is not None:
            kept.checkpoints = {}

    def _owned(self, turn: int, fence: int) -> StoredTurn | None:
        kept = self._history.turns.get(turn)
        is_owned = kept is not None and kept.record.status == "running" and kept.fence == fence
        return kept if is_owned else None
