"""``CustomAgentRepository`` in a SQL database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

from sqlalchemy import Connection, Row, bindparam, delete, func, select

from proxy.agents.custom_agent_repository import CustomAgentVersion, Kind, Revision
from proxy.request_errors import AgentNameTaken, TooManyAgents
from proxy.store.engine.database import Database
from proxy.store.engine.group_commit import OtherWrite
from proxy.store.engine.writer import Writer
from proxy.store.sql.dialects import insert_into, is_given, statements
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.tables import conversations, creations, snapshots, turns

R = TypeVar("R")
Refusal = Literal["taken", "many"]


class SqlCustomAgents:
    """``CustomAgentRepository`` in a SQL database.

    It shares the database and the writer of a ``SqlHistory``, which closes them.
    """

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._agents = statements(CustomAgentStatements, database.dialect)

    async def revision(self, caller: str) -> Revision:
        return await self._database.read(lambda on: self._agents.revision(on, caller))

    async def newest(self, caller: str) -> Sequence[CustomAgentVersion]:
        return await self._database.read(lambda on: self._agents.newest(on, caller))

    async def find(
        self, caller: str, kind: Kind, name: str, version: int | None = None
    ) -> CustomAgentVersion | None:
        return await self._database.read(lambda on: self._agents.find(on, caller, kind, name, version))

    async def put(
        self, caller: str, kind: Kind, name: str, body: bytes, *, now: float, max_count: int
    ) -> CustomAgentVersion:
        done = await self._write(lambda on: self._agents.put(on, caller, kind, name, body, now, max_count))
        match done:
            case "taken":
                raise AgentNameTaken(name)
            case "many":
                raise TooManyAgents(max_count)
            case _:
                return done

    async def delete(self, caller: str, kind: Kind, name: str) -> bool:
        return await self._write(lambda on: self._agents.delete(on, caller, kind, name))

    async def store_snapshot(self, caller: str, name: str, digest: str, body: bytes) -> None:
        await self._write(lambda on: self._agents.keep(on, caller, name, digest, body))

    async def snapshot(self, caller: str, digest: str) -> bytes | None:
        return await self._database.read(lambda on: self._agents.snapshot(on, caller, digest))

    async def count_snapshots(self, caller: str, name: str) -> int:
        return await self._database.read(lambda on: self._agents.count_snapshots(on, caller, name))

    async def pinned(self, caller: str, conversation_id: str, team: str) -> str | None:
        return await self._database.read(lambda on: self._agents.pinned(on, caller, conversation_id, team))

    async def _write(self, function: Callable[[Connection], R]) -> R:
        return cast(R, await self._writer.write(OtherWrite(function)))


class CustomAgentStatements:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        of = creations.c
        is_of_caller = is_given(of.caller)
        is_named = is_given(of.name)
        self._revision = select(func.coalesce(func.max(of.key), 0), func.count()).where(is_of_caller)
        self._all = select(creations).where(is_of_caller).order_by(of.key)
        self._versions = select(creations).where(is_of_caller, is_named).order_by(of.version)
        self._add = insert_into(dialect, creations).on_conflict_do_nothing()
        self._delete = delete(creations).where(is_of_caller, is_named)
        self._names = select(func.count(of.name.distinct())).where(is_of_caller)
        of_snapshot = snapshots.c
        self._is_callers = is_given(of_snapshot.caller)
        self._forget = delete(snapshots).where(self._is_callers, is_given(of_snapshot.name))
        self._count_snapshots = (
            select(func.count()).select_from(snapshots).where(self._is_callers, is_given(of_snapshot.name))
        )
        self._snapshot = select(of_snapshot.body).where(
            self._is_callers, of_snapshot.digest == bindparam("of_digest")
        )
        self._keep = PreparedStatement(insert_into(dialect, snapshots).on_conflict_do_nothing())
        of_conversation = conversations.c
        conversation = (
            select(of_conversation.key)
            .where(is_given(of_conversation.caller))
            .where(of_conversation.id == bindparam("of_conversation", type_=of_conversation.id.type))
            .scalar_subquery()
        )
        self._pinned = (
            select(turns.c.snapshot)
            .where(turns.c.conversation == conversation, turns.c.snapshot.is_not(None))
            .where(is_given(turns.c.team))
            .order_by(turns.c.key)
            .limit(1)
        )

    def revision(self, connection: Connection, caller: str) -> Revision:
        """Return the newest key and the count of rows."""
        newest, count = connection.execute(self._revision, {"of_caller": caller}).one()
        return newest, count

    def newest(self, connection: Connection, caller: str) -> list[CustomAgentVersion]:
        """Return the newest versions."""
        by_name: dict[str, list[Row[Any]]] = {}
        for row in connection.execute(self._all, {"of_caller": caller}):
            by_name.setdefault(row.name, []).append(row)
        return [_creation(rows, rows[-1]) for rows in by_name.values()]

    def find(
        self, connection: Connection, caller: str, kind: Kind, name: str, version: int | None
    ) -> CustomAgentVersion | None:
        """Return a version, or None."""
        rows = connection.execute(self._versions, {"of_caller": caller, "of_name": name}).all()
        if not rows or rows[0].kind != kind:
            return None
        wanted = rows[-1] if version is None else next((row for row in rows if row.version == version), None)
        return None if wanted is None else _creation(rows, wanted)

    def put(
        self,
        connection: Connection,
        caller: str,
        kind: Kind,
        name: str,
        body: bytes,
        now: float,
        max_count: int,
    ) -> CustomAgentVersion | Refusal:
        """Add a version."""
        while True:
            rows = connection.execute(self._versions, {"of_caller": caller, "of_name": name}).all()
            if rows and rows[0].kind != kind:
                return "taken"
            if not rows and (connection.scalar(self._names, {"of_caller": caller}) or 0) >= max_count:
                return "many"
            if rows and (rows[-1].made_at, rows[-1].body) == (now, body):
                # Already stored. The writer retries when the outcome of a commit is unknown.
                return _creation(rows, rows[-1])
            version = rows[-1].version + 1 if rows else 1
            new = {"caller": caller, "kind": kind, "name": name, "version": version}
            # Another worker may have taken the number; then there is one more to be seen.
            connection.execute(self._add, {**new, "body": body, "made_at": now})

    def delete(self, connection: Connection, caller: str, kind: Kind, name: str) -> bool:
        """Delete all versions and snapshots."""
        given = {"of_caller": caller, "of_name": name}
        row = connection.execute(self._versions, given).first()
        if row is None or row.kind != kind:
            return False
        connection.execute(self._delete, given)
        connection.execute(self._forget, given)
        return True

    def keep(self, connection: Connection, caller: str, name: str, digest: str, body: bytes) -> None:
        """Keep a snapshot."""
        self._keep.run_once(connection, {"caller": caller, "name": name, "digest": digest, "body": body})

    def snapshot(self, connection: Connection, caller: str, digest: str) -> bytes | None:
        """Return a snapshot, or None."""
        found: bytes | None = connection.scalar(self._snapshot, {"of_caller": caller, "of_digest": digest})
        return found

    def count_snapshots(self, connection: Connection, caller: str, name: str) -> int:
        """Return the number of snapshots."""
        return connection.scalar(self._count_snapshots, {"of_caller": caller, "of_name": name}) or 0

    def pinned(self, connection: Connection, caller: str, conversation_id: str, team: str) -> str | None:
        """Return the digest of the first turn of the team."""
        given = {"of_caller": caller, "of_conversation": conversation_id, "of_team": team}
        found: str | None = connection.scalar(self._pinned, given)
        return found


def _creation(rows: Sequence[Row[Any]], row: Row[Any]) -> CustomAgentVersion:
    return CustomAgentVersion(row.kind, row.name, row.version, row.body, rows[0].made_at, row.made_at)
