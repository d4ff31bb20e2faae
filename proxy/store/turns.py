"""``TurnRepository`` in a SQL database."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

from sqlalchemy.engine import URL

from proxy.errors import StoreUnavailable
from proxy.messages import Item
from proxy.store.api_keys import SqlKeys
from proxy.store.approvals import SqlApprovals
from proxy.store.checkpoints import SqlCheckpoints
from proxy.store.conversations import SqlLibrary
from proxy.store.custom_agents import SqlCustomAgents
from proxy.store.engine.database import Database, database_url, is_pooled, open_database
from proxy.store.engine.group_commit import OtherWrite, WriteStatements
from proxy.store.engine.writer import Writer
from proxy.store.messages.channel import MessageChannel
from proxy.store.messages.table import POLL_SECONDS, TableMessages
from proxy.store.sql import rows, stored_items
from proxy.store.sql.attendance import AttendanceStatements
from proxy.store.sql.begin_turn import begin_behind, begin_of
from proxy.store.sql.dialects import statements
from proxy.store.sql.finish_turn import Finish
from proxy.store.sql.leases import LeaseStatements
from proxy.store.sql.turn_polling import TurnPolling
from proxy.store.sql.turn_queries import TurnQueries
from proxy.turns.records import (
    Attendance,
    Begun,
    Branch,
    ChainTurn,
    CompletedTurn,
    Conversation,
    InputMatch,
    LongestMatch,
    NewTurn,
    PollResult,
    Progress,
    TurnEnd,
    TurnMatch,
    TurnRecord,
)

TIME_LIMIT = 10.0
READY_WITHIN = 2.0
# Compress larger journals in a thread: in the event loop it would delay other requests.
_LARGE_BYTES = 256 * 1024


class SqlHistory:
    """``TurnRepository`` in a SQL database. Create it in the event loop that uses it.

    ``time_limit`` (seconds) limits how long a call waits for a locked or unreachable database. ``library``,
    ``approvals``, ``creations`` and ``keys`` are the other repositories of the same database.
    """

    def __init__(self, database: Database, url: URL | None = None, *, time_limit: float = TIME_LIMIT) -> None:
        self._database = database
        self._url = url
        self._writer = Writer(database, statements(WriteStatements, database.dialect), time_limit=time_limit)
        self._reading = statements(TurnQueries, database.dialect)
        self._leases = statements(LeaseStatements, database.dialect)
        self._polling = statements(TurnPolling, database.dialect)
        self._attendance = statements(AttendanceStatements, database.dialect)
        self._attendance_found: tuple[object, Sequence[int], Mapping[int, Attendance]] = (None, (), {})
        """The state of the database, the turns, and their attendance when it was read last."""
        self.library = SqlLibrary(database, self._writer)
        self.approvals = SqlApprovals(database, self._writer)
        self.creations = SqlCustomAgents(database, self._writer)
        self.checkpoints = SqlCheckpoints(database, self._writer)
        self.keys = SqlKeys(database, self._writer)
        self._large_ends: set[asyncio.Task[bool]] = set()

    @property
    def writer_task(self) -> asyncio.Task[None]:
        """The task that writes."""
        return self._writer.task

    async def find_conversation(self, caller: str, conversation_id: str) -> Conversation | None:
        return await self._database.read(lambda on: self._reading.conversation(on, caller, conversation_id))

    async def begin(self, turn: NewTurn, *, parent: CompletedTurn | None = None) -> Begun:
        """Begin a turn. If the call is cancelled during the write, the turn does not remain running."""
        begin = begin_of(turn)
        if parent is not None:
            # The journal of a part can be as large as that of the turn.
            journal = await asyncio.to_thread(rows.pack, parent.end.journal)
            begin = begin_behind(begin, parent, journal)
        begun: Begun = await self._writer.write(begin)
        return begun

    async def finish(self, end: TurnEnd) -> bool:
        """Implement ``TurnRepository.finish``.

        A cancelled call is completed. A turn whose end is rejected does not stay running.
        """
        if len(end.journal) < _LARGE_BYTES:
            is_finished: bool = await self._writer.write(_finish_of(end, rows.pack(end.journal)))
            return is_finished
        task = asyncio.create_task(self._finish_large(end), name="large end of a turn")
        self._large_ends.add(task)
        task.add_done_callback(self._large_ends.discard)
        return await asyncio.shield(task)

    async def chain(self, turn: int) -> Sequence[ChainTurn]:
        return await self._database.read(lambda on: self._reading.chain(on, turn))

    async def branch(self, turn: int) -> Branch | None:
        return await self._database.read(lambda on: self._reading.branch(on, turn))

    async def last_items(self, turn: int, *, limit: int) -> Sequence[Item]:
        return await self._database.read(lambda on: self._reading.last_items(on, turn, limit))

    async def compactions(self, conversation: int) -> Sequence[Item]:
        return await self._database.read(lambda on: self._reading.compactions(on, conversation))

    async def find_longest(
        self,
        boundaries: Sequence[tuple[int, bytes]],
        digest: bytes | None,
        *,
        conversation: int | None = None,
        with_branch: bool = True,
    ) -> LongestMatch:
        return await self._database.read(
            lambda on: self._reading.longest(on, boundaries, digest, conversation, with_branch=with_branch)
        )

    async def find_last_answer(self, digest: bytes, *, conversation: int | None = None) -> TurnMatch | None:
        return await self._database.read(lambda on: self._reading.last_answer(on, digest, conversation))

    async def find_pending(
        self, caller: str, call_ids: Sequence[str], *, conversation: int | None = None
    ) -> Sequence[tuple[str, int]]:
        """Return pairs of call id and turn key, at most the newest hundred per call id."""
        if not call_ids:
            return []
        return await self._database.read(lambda on: self._reading.pending(on, caller, call_ids, conversation))

    async def find_by_input(
        self, fingerprints: Sequence[bytes], *, conversation: int | None = None
    ) -> Sequence[InputMatch]:
        """Return at most the newest 32 matches."""
        if not fingerprints:
            return []
        return await self._database.read(lambda on: self._reading.by_input(on, fingerprints, conversation))

    async def turn(self, caller: str, turn_id: str) -> TurnRecord | None:
        return await self._database.read(lambda on: self._reading.by_id(on, caller, turn_id))

    async def turn_by_idempotency_key(self, caller: str, key: str) -> TurnRecord | None:
        return await self._database.read(lambda on: self._reading.by_idempotency_key(on, caller, key))

    async def turn_by_body(self, caller: str, digest: bytes, *, since: float) -> TurnRecord | None:
        return await self._database.read(lambda on: self._reading.by_body(on, caller, digest, since))

    async def renew(self, worker: str, *, lease_until: float) -> Sequence[str]:
        call = OtherWrite(lambda on: self._leases.renew(on, worker, lease_until))
        return cast(Sequence[str], await self._writer.write(call))

    async def request_cancel(self, caller: str, turn_id: str) -> bool:
        return cast(
            bool,
            await self._writer.write(
                OtherWrite(lambda on: self._leases.request_cancel(on, caller, turn_id), is_written_alone=True)
            ),
        )

    async def interrupt(self, *, now: float, dead_workers: Sequence[str] = ()) -> int:
        return cast(
            int,
            await self._writer.write(OtherWrite(lambda on: self._leases.interrupt(on, now, dead_workers))),
        )

    async def running_turn(self, caller: str, conversation_id: str) -> TurnRecord | None:
        return await self._database.read(lambda on: self._reading.running(on, caller, conversation_id))

    async def leave(self, turn: int, *, left_at: float | None, cancel_at: float | None) -> None:
        await self._writer.write(OtherWrite(lambda on: self._attendance.leave(on, turn, left_at, cancel_at)))

    async def attendance(self, turns: Sequence[int]) -> Mapping[int, Attendance]:
        # It is polled. Before the query: a commit in between changes the state for the next call.
        state, (known_state, known_turns, known) = self._database.state(), self._attendance_found
        if state is not None and state == known_state and turns == known_turns:
            return known
        found = await self._database.read(lambda on: self._attendance.attendance(on, turns))
        self._attendance_found = state, turns, found
        return found

    async def announce_reader(self, turn: int, *, until: float) -> None:
        await self._writer.write(
            OtherWrite(lambda on: self._attendance.announce(on, turn, until), is_written_alone=True)
        )

    async def end_unattended(self, turn: int, *, now: float) -> bool:
        return cast(
            bool,
            await self._writer.write(
                OtherWrite(lambda on: self._attendance.end(on, turn, now), is_written_alone=True)
            ),
        )

    async def store_progress(self, turn: int, progress: Progress) -> None:
        await self._writer.write(OtherWrite(lambda on: self._attendance.progress(on, turn, progress)))

    async def poll(self, *, turns: Sequence[int], conversations: Sequence[int]) -> PollResult:
        return await self._database.read(lambda on: self._polling.poll(on, turns, conversations))

    async def running_workers(self) -> Sequence[str]:
        return await self._database.read(self._reading.running_workers)

    async def is_ready(self) -> bool:
        """Whether the database accepts a write within two seconds: a database can serve reads while writes fail."""
        try:
            async with asyncio.timeout(READY_WITHIN):
                await self._writer.write(OtherWrite(self._reading.ask))
        except (StoreUnavailable, TimeoutError):
            return False
        return True

    def messages(self, redis_url: str | None, *, workers: int = 1) -> MessageChannel:
        """Return messages between workers: over Redis, else over the database.

        ``workers`` is how many this installation is known to have.

        Raises:
            ConfigurationError: The URL of Redis is invalid.
        """
        if redis_url is not None:
            # Imported on demand, like the driver of PostgreSQL.
            from proxy.store.messages.redis_streams import RedisMessages

            return RedisMessages(redis_url)
        if self._url is None or self._database.dialect == "sqlite" or is_pooled(self._url):
            return self.table_messages(is_alone=workers == 1)
        from proxy.store.messages.postgres import PostgresMessages

        return PostgresMessages(self._url)

    def table_messages(self, *, interval: float = POLL_SECONDS, is_alone: bool = True) -> TableMessages:
        """Return messages between workers through a table; see ``TableMessages``."""
        return TableMessages(self._database, self._writer, interval=interval, is_alone=is_alone)

    async def close(self) -> None:
        if self._large_ends:
            await asyncio.wait(self._large_ends)
        await self._writer.close()
        await self._database.close()

    async def _finish_large(self, end: TurnEnd) -> bool:
        finish = _finish_of(end, await asyncio.to_thread(rows.pack, end.journal))
        return cast(bool, await self._writer.write(finish))


def _finish_of(end: TurnEnd, journal: bytes | None) -> Finish:
    return Finish(end, stored_items.item_rows(end.items, is_input=False), journal)


def open_history(url: str, *, time_limit: float = TIME_LIMIT) -> SqlHistory:
    """Return the history in the database at the URL, whose schema must be current (see ``migrations``).

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    return SqlHistory(open_database(url, time_limit=time_limit), database_url(url), time_limit=time_limit)
