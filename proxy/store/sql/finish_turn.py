"""Finish a group of turns with four statements, whatever its size, or a single turn with three (PostgreSQL: one).

Turns that wait for calls, have checkpoints or ask for approval need a few more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import (
    BigInteger,
    Connection,
    bindparam,
    case,
    delete,
    null,
    or_,
    select,
    update,
)

from proxy.errors import TurnLeaseLost
from proxy.store.sql import rows
from proxy.store.sql.approvals import ApprovalStatements
from proxy.store.sql.dialects import IS_RUNNING, for_each, insert_into, listed, statements
from proxy.store.sql.item_insertion import Added, ItemInsertion
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.single_end import SingleEnd
from proxy.store.sql.stored_items import ItemRow
from proxy.store.sql.tables import checkpoints, conversations, encoded, indexable, pending_calls, turns
from proxy.turns.records import TurnEnd


class Finish(Struct, frozen=True, eq=False):
    """A turn to finish. ``items`` are rows that have no turn yet, ``journal`` is in the stored format.

    A turn that is history becomes the head of its conversation if ``moves_head`` is set.
    """

    end: TurnEnd
    items: Sequence[ItemRow]
    journal: bytes | None
    moves_head: bool = True

    is_durable: ClassVar[bool] = True
    is_written_alone: ClassVar[bool] = False


class Close(Struct, frozen=True, eq=False):
    """A turn that will not be finished, by id or key: if it is running, it is marked as failed, without a result."""

    turn_id: str | None
    turn: int | None
    error_code: str
    finished_at: float

    is_durable: ClassVar[bool] = True
    is_written_alone: ClassVar[bool] = False


class _Ending(NamedTuple):
    """The row of a turn before its end; the columns of ``Endings._ending``, of which ``Endings._end`` has the first."""

    key: int
    conversation: int
    caller: str
    is_stored: bool
    inputs: int
    status: str = "running"
    finished_at: float | None = None
    fence: int = 0


class Endings:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        self._approvals = statements(ApprovalStatements, dialect)
        of, keys = turns.c, listed(dialect, "keys", BigInteger)
        ending = select(of.key, of.conversation, of.caller, of.is_stored, of.inputs).add_columns(
            of.status, of.finished_at, of.fence
        )
        self._ending = PreparedStatement(
            for_each(dialect, keys.c.value, of.key, ending.with_for_update(of=turns)), ("keys",)
        )
        ends = {
            (keeps_key, keeps_input): _end(keeps_key=keeps_key, keeps_input=keeps_input)
            for keeps_key in (False, True)
            for keeps_input in (False, True)
        }
        self._ends = {keeps: PreparedStatement(end, rows.END_PARAMETERS) for keeps, end in ends.items()}
        self._end = {
            keeps: PreparedStatement(
                end.returning(of.key, of.conversation, of.caller, of.is_stored, of.inputs),
                rows.END_PARAMETERS,
            )
            for keeps, end in ends.items()
        }
        self._single = (
            {keeps: SingleEnd(end) for keeps, end in ends.items()} if dialect == "postgresql" else None
        )
        self._delete_checkpoints = PreparedStatement(
            delete(checkpoints).where(checkpoints.c.turn == bindparam("of_turn"))
        )
        self._add_items = ItemInsertion(dialect)
        self._add_pending = PreparedStatement(insert_into(dialect, pending_calls))
        self._move_head = PreparedStatement(
            update(conversations)
            .where(conversations.c.key == bindparam("of_conversation"))
            .where(or_(conversations.c.head.is_(None), conversations.c.head < bindparam("turn")))
            .values(head=bindparam("turn")),
            ("of_conversation", "turn"),
        )
        self._mark_lost = (
            update(turns)
            .where(turns.c.key == bindparam("turn"), turns.c.status == "interrupted")
            .values(error_code=TurnLeaseLost.code)
        )
        self._close = (
            update(turns)
            .where(or_(turns.c.id == bindparam("turn_id"), turns.c.key == bindparam("turn")), IS_RUNNING)
            .values(
                status="failed",
                idempotency_key=case((turns.c.ran_effects, turns.c.idempotency_key)),
                input_fingerprint=case((turns.c.ran_effects, turns.c.input_fingerprint)),
                progress=None,
                error_code=bindparam("error_code"),
                finished_at=bindparam("finished_at"),
            )
        )

    def finish(self, connection: Connection, finishes: Sequence[Finish]) -> dict[Finish, bool]:
        """Finish the running turns; return for each whether its stored result is the given one.

        A turn that already has this result counts as finished: the write is a retry. For an interrupted turn, only
        the error code is written.
        """
        if len(finishes) == 1 and self._end_running(connection, finishes[0]):
            return {finishes[0]: True}
        # Locked in key order, so that two workers cannot deadlock.
        keys = sorted([finish.end.turn for finish in finishes])
        found = {row[0]: row for row in self._ending.run_once(connection, (keys,))}
        ends: dict[int, Finish] = {}
        results: dict[Finish, bool] = {}
        lost: list[dict[str, int]] = []
        for finish in finishes:
            end = finish.end
            row = found.get(end.turn)
            if row is None:
                results[finish] = False
                continue
            *_, status, finished_at, fence = row
            if status == "running" and fence == end.fence:
                first = ends.setdefault(end.turn, finish)
                results[finish] = first is finish or _is_same(end, first.end.status, first.end.finished_at)
            else:
                results[finish] = _is_same(end, status, finished_at)
                if status == "interrupted":
                    lost.append({"turn": end.turn})
        if lost:
            connection.execute(self._mark_lost, lost)
        if ends:
            self._end_all(connection, ends.values())
            self._add_results(connection, ends.values(), found)
        return results

    def close(self, connection: Connection, close: Close) -> None:
        """Mark a turn as failed, if it is running."""
        connection.execute(self._close, asdict(close))

    def _end_running(self, connection: Connection, finish: Finish) -> bool:
        """End a turn with all that it adds; False if it is not running, or another worker has taken it over."""
        end = finish.end
        keeps, row = _keeps(end), rows.end_row(end, finish.journal)
        if self._single is None:
            found = self._end[keeps].run_once(connection, row)
            if found:
                self._add_result(connection, finish, found[0])
            return bool(found)
        moves_head = end.is_history and finish.moves_head
        ended = self._single[keeps].run(connection, row, finish.items, moves_head=moves_head)
        if ended is not None and _has_calls(end):
            self._add_calls(connection, [(finish, _Ending(*ended))])
        return ended is not None

    def _end_all(self, connection: Connection, finishes: Iterable[Finish]) -> None:
        """End the rows of turns, which are running and locked."""
        alike: dict[tuple[bool, bool], list[Sequence[Any]]] = defaultdict(list)
        for finish in finishes:
            alike[_keeps(finish.end)].append(rows.end_row(finish.end, finish.journal))
        for keeps, values in alike.items():
            self._ends[keeps].run(connection, values)

    def _add_result(self, connection: Connection, finish: Finish, row: Sequence[Any]) -> None:
        """Write what is stored of one turn in other tables than that of turns."""
        key, conversation, _, is_stored, inputs = row
        if is_stored:
            self._add_items.add(connection, key, inputs, finish.items)
        if finish.end.is_history and finish.moves_head:
            self._move_head.run_once(connection, (conversation, key))
        if _has_calls(finish.end):
            self._add_calls(connection, [(finish, _Ending(*row))])

    def _add_results(
        self, connection: Connection, finishes: Iterable[Finish], found: Mapping[int, Sequence[Any]]
    ) -> None:
        """Do the same for several turns, with a statement for each table; ``found`` has their rows by key."""
        added: list[Added] = []
        heads: list[tuple[int, int]] = []
        with_calls: list[tuple[Finish, _Ending]] = []
        for finish in finishes:
            end = finish.end
            key, conversation, _, is_stored, inputs, *_ = row = found[end.turn]
            if is_stored:
                added.append((key, inputs, finish.items))
            if end.is_history and finish.moves_head:
                heads.append((conversation, key))
            if _has_calls(end):
                with_calls.append((finish, _Ending(*row)))
        self._add_items.run(connection, added)
        self._move_head.run(connection, heads)
        if with_calls:
            self._add_calls(connection, with_calls)

    def _add_calls(self, connection: Connection, ends: Sequence[tuple[Finish, _Ending]]) -> None:
        """Write the calls that turns wait for, and delete their checkpoints."""
        # Models can repeat a call id.
        waited_for = [
            {"caller": row.caller, "call_id": call_id, "turn": row.key, "conversation": row.conversation}
            for finish, row in ends
            for call_id in dict.fromkeys(map(indexable, finish.end.pending))
        ]
        checkpointed = [{"of_turn": row.key} for finish, row in ends if finish.end.has_checkpoints]
        self._delete_checkpoints.run(connection, checkpointed)
        self._add_pending.run(connection, waited_for)
        # After the conversations: recording decisions locks conversations first, so this order avoids a deadlock.
        self._approvals.ask(connection, [(finish.end, row) for finish, row in ends if row.is_stored])
        for finish, row in ends:
            if finish.end.took_up is not None:
                self._approvals.ended(connection, row.key, finish.end.took_up)


def _end(*, keeps_key: bool, keeps_input: bool) -> Any:
    """Return the update of a running turn; SQLite writes the indexes of all columns in it, even of unchanged ones."""
    removed: dict[str, Any] = {"progress": null()}
    if not keeps_key:
        removed["idempotency_key"] = null()
    if not keeps_input:
        removed["input_fingerprint"] = null()
    changed = {name: bindparam(f"new_{name}", type_=encoded(turns.c[name])) for name in rows.END_COLUMNS}
    journal = case((turns.c.is_stored, changed.pop("journal")))
    return (
        update(turns)
        .where(turns.c.key == bindparam("of_turn"), turns.c.fence == bindparam("of_fence"), IS_RUNNING)
        .values(**changed, journal=journal, **removed)
    )


def _has_calls(end: TurnEnd) -> bool:
    """Whether a turn waits for calls or approvals, took up approvals, or has checkpoints."""
    return bool(end.pending or end.has_checkpoints or end.pause is not None or end.took_up is not None)


def _keeps(end: TurnEnd) -> tuple[bool, bool]:
    """Return whether a turn keeps its idempotency key and its input fingerprint."""
    return end.is_history if end.keeps_key is None else end.keeps_key, end.is_found_by_input


def _is_same(end: TurnEnd, status: str, finished_at: float | None) -> bool:
    return end.status == status and end.finished_at == finished_at
