"""``CheckpointRepository`` in a SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from proxy.store.engine.database import Database
from proxy.store.engine.group_commit import OtherWrite
from proxy.store.engine.writer import Writer
from proxy.store.sql import rows, stored_items
from proxy.store.sql.checkpoints import CheckpointStatements
from proxy.store.sql.dialects import statements
from proxy.turns.checkpoints import Checkpoint, TakenOver


class SqlCheckpoints:
    """``CheckpointRepository`` over the writer of the process, so that checkpoints are part of its group commits."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._writer = writer
        self._statements = statements(CheckpointStatements, database.dialect)

    async def save(self, *checkpoints: Checkpoint) -> bool:
        stored = [(one, stored_items.items_json(one.items), rows.pack(one.journal)) for one in checkpoints]
        call = OtherWrite(lambda on: all(self._statements.save(on, *one) for one in stored))
        return cast(bool, await self._writer.write(call))

    async def take_over(
        self, worker: str, *, now: float, lease_until: float, dead_workers: Sequence[str] = ()
    ) -> Sequence[TakenOver]:
        call = OtherWrite(lambda on: self._statements.take_over(on, worker, now, lease_until, dead_workers))
        return cast(Sequence[TakenOver], await self._writer.write(call))

    async def interrupt(self, turn: int, *, fence: int, now: float) -> None:
        await self._writer.write(OtherWrite(lambda on: self._statements.interrupt(on, turn, fence, now)))

    async def discard(self, turn: int, *, fence: int) -> None:
        await self._writer.write(OtherWrite(lambda on: self._statements.discard(on, turn, fence)))
