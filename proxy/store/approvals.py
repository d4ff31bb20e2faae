"""``Approvals`` in a SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from proxy.approvals.repository import Approval, ApprovalQuery, ApprovalUpdate
from proxy.store.engine.database import Database
from proxy.store.engine.group_commit import OtherWrite
from proxy.store.engine.writer import Writer
from proxy.store.sql.approvals import ApprovalStatements
from proxy.store.sql.begin_turn import begin_of
from proxy.store.sql.dialects import statements
from proxy.turns.records import Begun, NewTurn, Page


class SqlApprovals:
    """``Approvals`` in a SQL database.

    It shares the database and the writer of a ``SqlHistory``, which closes them.
    """

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._approvals = statements(ApprovalStatements, database.dialect)

    async def find(self, caller: str, approval_id: str) -> Approval | None:
        return await self._database.read(lambda on: self._approvals.find(on, caller, approval_id))

    async def page(self, caller: str, query: ApprovalQuery) -> Page[Approval] | None:
        return await self._database.read(lambda on: self._approvals.page(on, caller, query))

    async def of_turn(self, turn: int) -> Sequence[Approval]:
        return await self._database.read(lambda on: self._approvals.of_turn(on, turn))

    async def circumstances(self, turn: int) -> bytes | None:
        return await self._database.read(lambda on: self._approvals.circumstances(on, turn))

    async def resume(self, turn: NewTurn, resume: ApprovalUpdate) -> Begun | None:
        """Store the decisions and begin a turn. If the call is cancelled, the turn does not remain running."""
        return cast(Begun | None, await self._writer.write(begin_of(turn, resume)))

    async def begin_run(self, approval_id: str, turn_id: str) -> bool:
        run = OtherWrite(lambda on: self._approvals.begin_run(on, approval_id, turn_id))
        return cast(bool, await self._writer.write(run))

    async def end_run(self, approval_id: str, turn_id: str, result: str) -> None:
        await self._writer.write(
            OtherWrite(lambda on: self._approvals.end_run(on, approval_id, turn_id, result))
        )

    async def lost(self) -> Sequence[tuple[str, str]]:
        return await self._database.read(self._approvals.lost)
