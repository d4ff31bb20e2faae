"""Queries for conversations and turns. The cost of a lookup does not grow with the number of equal matches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
)

from proxy.messages import Item
from proxy.store.sql import rows
from proxy.store.sql.dialects import IS_RUNNING, list_of, listed
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.tables import conversations, indexable, items, pending_calls, turns
from proxy.turns.repository import (
    MAX_COMPACTIONS,
    ChainTurn,
    Conversation,
    InputMatch,
    PollResult,
    TurnMatch,
    TurnRecord,
)

BY_INPUT = 32
"""Maximum number of turns returned by input fingerprint."""
PENDING_PER_ID = 100
"""Maximum number of turns returned for one pending call id; some models number their calls from 0 in every turn."""
MAX_EQUAL = 100
"""Number of older turns with the same fingerprint that are read; with more, none of them is unique."""


class TurnQueries:
    """Statements for one dialect, built once so that each is compiled once."""

    def __init__(self, dialect: str) -> None:
        is_running = exists().where(turns.c.conversation == conversations.c.key, IS_RUNNING)
        self._conversation = select(conversations, is_running.label("is_running")).where(
            _is("caller", conversations), _is("id", conversations)
        )
        self._chain = PreparedStatement(_chain())
        self._chain_items = PreparedStatement(_items_of(dialect))
        self._last_items = PreparedStatement(
            select(items.c.message, items.c.agent, items.c.visible)
            .where(items.c.turn == bindparam("turn"))
            .order_by(items.c.position.desc())
            .limit(bindparam("at_most"))
        )
        self._compactions = (
            select(items.c.message, items.c.agent, items.c.visible)
            .join(turns, turns.c.key == items.c.turn)
            .where(
                turns.c.conversation == bindparam("conversation"),
                items.c.visible.is_(False),
                items.c.message.contains(rows.COMPACTION_MEMBER, autoescape=True),
            )
            .order_by(items.c.turn.desc(), items.c.position.desc())
            .limit(MAX_COMPACTIONS)
        )
        self._places = {
            is_within: PreparedStatement(_places(dialect, is_within=is_within)) for is_within in (False, True)
        }
        self._last_answer = {
            is_within: PreparedStatement(_last_answer(is_within=is_within)) for is_within in (False, True)
        }
        self._pending = {is_within: _pending(dialect, is_within=is_within) for is_within in (False, True)}
        record = select(*turns.c, conversations.c.id.label("conversation_id")).join(
            conversations, conversations.c.key == turns.c.conversation
        )
        self._by_id = record.where(_is("caller", turns), _is("id", turns))
        self._by_key = record.where(_is("caller", turns), _is("idempotency_key", turns))
        of_conversation = conversations.c.id == bindparam("id", type_=conversations.c.id.type)
        self._running = (
            record.where(IS_RUNNING, _is("caller", turns), of_conversation).order_by(turns.c.slot).limit(1)
        )
        self._by_input = {is_within: _by_input(dialect, is_within=is_within) for is_within in (False, True)}
        self._by_body = _by_body(record)
        self._items = select(items).where(items.c.turn == bindparam("turn")).order_by(items.c.position)
        self._nothing: Select[Any] = select(literal_column("1"))
        self._workers = select(turns.c.worker).where(IS_RUNNING).distinct()

    def conversation(self, connection: Connection, caller: str, conversation_id: str) -> Conversation | None:
        """Return the conversation, or None."""
        row = connection.execute(self._conversation, {"caller": caller, "id": conversation_id}).first()
        return None if row is None else rows.to_conversation(row, is_running=row.is_running)

    def chain(self, connection: Connection, turn: int) -> list[ChainTurn]:
        """Return the turn and its ancestors, the root first; a parent's key is always the smaller."""
        turn_rows = self._chain.run(connection, [{"turn": turn}])
        item_rows = self._chain_items.run(connection, [{"turns": [row[0] for row in turn_rows]}])
        said: dict[int, list[Item]] = {row[0]: [] for row in turn_rows}
        for row, item in zip(item_rows, rows.to_items([row[1:] for row in item_rows]), strict=True):
            said[row[0]].append(item)
        return [rows.to_chain_turn(row[0], said[row[0]], *row[1:]) for row in turn_rows]

    def last_items(self, connection: Connection, turn: int, limit: int) -> list[Item]:
        """Return the last items of a turn, oldest first."""
        found = self._last_items.run(connection, [{"turn": turn, "at_most": limit}])
        return rows.to_items(found)[::-1]

    def compactions(self, connection: Connection, conversation: int) -> list[Item]:
        """Return the newest items with a compaction of the conversation, oldest first."""
        found = connection.execute(self._compactions, {"conversation": conversation}).all()
        return rows.to_items([tuple(row) for row in reversed(found)])

    def places(
        self, connection: Connection, fingerprints: Sequence[bytes], conversation: int | None
    ) -> list[TurnMatch]:
        """Return the newest place for every fingerprint that is known."""
        wanted = [fingerprint.hex() for fingerprint in dict.fromkeys(fingerprints)]
        statement = self._places[conversation is not None]
        found = statement.run(connection, [{"wanted": wanted} | _within(conversation)])
        return [TurnMatch(*row) for row in found]

    def last_answer(
        self, connection: Connection, digest: bytes, conversation: int | None
    ) -> TurnMatch | None:
        """Return the newest turn with this last answer, or None."""
        statement = self._last_answer[conversation is not None]
        found = statement.run(connection, [{"digest": digest} | _within(conversation)])
        return TurnMatch(*found[0]) if found else None

    def pending(
        self, connection: Connection, caller: str, call_ids: Sequence[str], conversation: int | None
    ) -> list[tuple[str, int]]:
        """Return (call id, turn) for the ids that are known, the newest first."""
        wanted = {indexable(call_id): call_id for call_id in call_ids}
        found = connection.execute(
            self._pending[conversation is not None],
            {"caller": caller, "wanted": list(wanted)} | _within(conversation),
        )
        pairs = [(wanted[call_id], turn) for call_id, waiting in found for turn in waiting or ()]
        return sorted(pairs, key=lambda pair: -pair[1])

    def by_id(self, connection: Connection, caller: str, turn_id: str) -> TurnRecord | None:
        """Return the turn, or None."""
        return self._record(connection, self._by_id, {"caller": caller, "id": turn_id})

    def by_idempotency_key(self, connection: Connection, caller: str, key: str) -> TurnRecord | None:
        """Return the turn that was begun with the key, or None."""
        return self._record(connection, self._by_key, {"caller": caller, "idempotency_key": key})

    def running(self, connection: Connection, caller: str, conversation_id: str) -> TurnRecord | None:
        """Return the running turn of the conversation, or None."""
        return self._record(connection, self._running, {"caller": caller, "id": conversation_id})

    def by_input(
        self, connection: Connection, fingerprints: Sequence[bytes], conversation: int | None
    ) -> list[InputMatch]:
        """Return the newest turns that have these input fingerprints, newest first."""
        wanted = [fingerprint.hex() for fingerprint in fingerprints]
        found = connection.execute(
            self._by_input[conversation is not None], {"wanted": wanted} | _within(conversation)
        )
        return [rows.to_input_match(row) for row in found]

    def by_body(self, connection: Connection, caller: str, digest: bytes, since: float) -> TurnRecord | None:
        """Return the newest turn with the body, or None; also None if it failed or has a later turn."""
        return self._record(
            connection, self._by_body, {"caller": caller, "body_digest": digest, "since": since}
        )

    def running_workers(self, connection: Connection) -> list[str]:
        """Return the workers that running turns name."""
        return list(connection.scalars(self._workers))

    def ask(self, connection: Connection) -> None:
        """Execute a trivial query to check that the database answers."""
        connection.execute(self._nothing)

    def _record(self, connection: Connection, query: Select[Any], given: dict[str, Any]) -> TurnRecord | None:
        row = connection.execute(query, given).first()
        if row is None:
            return None
        return rows.to_record(row, connection.execute(self._items, {"turn": row.key}).all())


def _by_body(record: Select[Any]) -> Select[Any]:
    newest, later = turns.alias("newest"), turns.alias("later")
    newest_key = (
        select(newest.c.key)
        .where(_is("caller", newest), _is("body_digest", newest))
        .order_by(newest.c.key.desc())
        .limit(1)
        .scalar_subquery()
    )
    # The head and the running turns, not all turns of the conversation. One whose parent is older than this turn is on
    # another branch: several models can answer in one conversation at the same time.
    is_followed = exists().where(
        or_(
            later.c.key == conversations.c.head,
            and_(
                later.c.conversation == turns.c.conversation,
                later.c.status == literal_column("'running'"),
            ),
        ),
        later.c.key > turns.c.key,
        later.c.parent >= turns.c.key,
    )
    return (
        record.where(turns.c.key == newest_key, turns.c.created_at >= bindparam("since"))
        .where(
            or_(
                turns.c.status.in_(["running", "completed"]),
                and_(turns.c.ran_effects, ~turns.c.is_stored),
            )
        )
        .where(~is_followed)
    )


def _is(column: str, table: Any) -> ColumnElement[bool]:
    of: ColumnElement[Any] = table.c[column]
    return of == bindparam(column, type_=of.type)


def _within(conversation: int | None) -> dict[str, int]:
    return {} if conversation is None else {"conversation": conversation}


def _conditions(of: Any, *conditions: ColumnElement[bool], is_within: bool) -> list[ColumnElement[bool]]:
    return [*conditions, of.conversation == bindparam("conversation")] if is_within else [*conditions]


def _conversation_id() -> ColumnElement[str]:
    # Not a join: whatever a database believes of the sizes of its tables, it cannot begin with all conversations.
    return (
        select(conversations.c.id)
        .where(conversations.c.key == turns.c.conversation)
        .scalar_subquery()
        .label("conversation_id")
    )


def _chain() -> Select[Any]:
    of = turns.c
    chain = _keys_of_chain()
    head = select(conversations.c.head).where(conversations.c.key == of.conversation).scalar_subquery()
    is_complete = or_(of.status == "running", of.status == "completed")
    return (
        select(of.key, of.agent, of.is_stored, of.pending, _conversation_id(), of.end_user, of.fingerprint)
        .add_columns(of.circumstances.is_not(None), of.id, is_complete)
        .add_columns(func.coalesce(head, 0) == of.key)
        .join(chain, of.key == chain.c.key)
        .order_by(of.key)
    )


def _items_of(dialect: str) -> Select[Any]:
    # Apart from their turns: a join would repeat the turn columns for every item. By a list of keys, SQLite reads them
    # in order; by a recursive query, it sorts them.
    of, wanted = items.c, listed(dialect, "turns", BigInteger)
    return (
        select(of.turn, of.message, of.agent, of.visible)
        .where(of.turn.in_(select(wanted.c.value)))
        .order_by(of.turn, of.position)
    )


def _keys_of_chain() -> CTE:
    of = turns.c
    chain = select(of.key, of.parent).where(of.key == bindparam("turn")).cte("chain", recursive=True)
    return chain.union_all(select(of.key, of.parent).join(chain, of.key == chain.c.parent))


def _place(is_unique: ColumnElement[bool]) -> Select[Any]:
    """Select the fields of ``TurnMatch`` in its order."""
    return select(
        turns.c.key, turns.c.conversation, _conversation_id(), turns.c.agent, turns.c.fingerprint, is_unique
    )


def _places(dialect: str, *, is_within: bool) -> Select[Any]:
    # A subselect that stops at its first row: its cost does not depend on how many turns have the fingerprint.
    wanted, newest = listed(dialect, "wanted"), turns.alias("newest")
    newest_key = (
        select(newest.c.key)
        .where(*_conditions(newest.c, newest.c.fingerprint == wanted.c.value, is_within=is_within))
        .order_by(newest.c.key.desc())
        .limit(1)
        .scalar_subquery()
    )
    is_unique = _is_unique(turns.c.fingerprint, is_within=is_within)
    return _place(is_unique).select_from(wanted.join(turns, turns.c.key == newest_key))


def _by_input(dialect: str, *, is_within: bool) -> Select[Any]:
    of, wanted = turns.c, listed(dialect, "wanted")
    return (
        select(of.key.label("turn"), of.id, of.conversation, _conversation_id(), of.parent, of.agent)
        .add_columns(of.status, of.is_history, of.is_stored, of.ran_effects, of.body_digest)
        .add_columns(of.input_fingerprint, of.left_at, of.cancel_at, of.reader_until, of.created_at)
        .add_columns(of.first_attempt)
        .where(of.input_fingerprint.in_(select(wanted.c.value)))
        .where(*_conditions(of, is_within=is_within))
        .order_by(of.key.desc())
        .limit(BY_INPUT)
    )


def _last_answer(*, is_within: bool) -> Select[Any]:
    return (
        _place(_is_unique(turns.c.last_answer, is_within=is_within))
        .where(turns.c.last_answer == bindparam("digest", type_=turns.c.last_answer.type))
        .where(*_conditions(turns.c, is_within=is_within))
        .order_by(turns.c.key.desc())
        .limit(1)
    )


def _is_unique(column: Column[Any], *, is_within: bool) -> ColumnElement[bool]:
    """Return whether no other conversation has an older turn with this value of the column.

    Of one conversation, the newest turn counts (regenerated answers can be equal). Only ``MAX_EQUAL`` turns are read.
    """
    if is_within:
        return true()
    other = turns.alias("other")
    older = (
        select(other.c.conversation)
        .where(other.c[column.name] == column, other.c.key < turns.c.key)
        .order_by(other.c.key.desc())
        .limit(MAX_EQUAL)
        .correlate(turns)
        .subquery("older")
    )
    is_same = older.c.conversation == turns.c.conversation
    found = func.coalesce(func.sum(case((is_same, 1), else_=MAX_EQUAL)), 0)
    return select(found).select_from(older).scalar_subquery() < MAX_EQUAL


def _pending(dialect: str, *, is_within: bool) -> Select[Any]:
    # One row for each call id, with a list of turns: a subselect that no plan can turn into a scan of all calls.
    wanted, call = listed(dialect, "wanted"), pending_calls.c
    newest = (
        select(call.turn)
        .where(
            *_conditions(
                call,
                call.caller == bindparam("caller", type_=call.caller.type),
                call.call_id == wanted.c.value,
                is_within=is_within,
            )
        )
        .order_by(call.turn.desc())
        .limit(PENDING_PER_ID)
        .correlate(wanted)
        .subquery("newest")
    )
    return select(wanted.c.value, select(list_of(dialect, newest.c.turn)).scalar_subquery())


_HAS_EVENTS = (turns.c.worker != "", turns.c.caller != "")


class TurnPolling:
    """Polling queries of event readers, for one dialect: running turns, newest turns, and later turns."""

    def __init__(self, dialect: str) -> None:
        of, wanted = turns.c, listed(dialect, "wanted", BigInteger)
        self._running = select(of.key, of.lease_until, of.worker).where(
            of.key.in_(select(wanted.c.value)), IS_RUNNING
        )
        self._there = select(conversations.c.key).where(conversations.c.key.in_(select(wanted.c.value)))
        # Not one by one: a database may look for the largest key of one conversation among those of all.
        self._newest = (
            select(of.conversation, func.max(of.key))
            .where(of.conversation.in_(select(wanted.c.value)), *_HAS_EVENTS)
            .group_by(of.conversation)
        )
        self._behind: Select[Any] = (
            _of_conversation(of.key, of.id)
            .where(of.key > bindparam("after"), *_HAS_EVENTS)
            .order_by(of.key)
            .limit(bindparam("at_most"))
        )
        self._key = _of_conversation(of.key).where(of.id == bindparam("turn_id", type_=of.id.type))

    def poll(
        self, connection: Connection, turn_keys: Sequence[int], conversation_keys: Sequence[int]
    ) -> PollResult:
        """Return which of the turns run, and the newest turn of each conversation that exists."""
        running: dict[int, float] = {}
        newest: dict[int, int] = {}
        workers: dict[int, str] = {}
        if turn_keys:
            found = connection.execute(self._running, {"wanted": turn_keys}).all()
            running = {row[0]: row[1] for row in found}
            workers = {row[0]: row[2] for row in found}
        if conversation_keys:
            wanted = {"wanted": conversation_keys}
            newest = dict.fromkeys(connection.scalars(self._there, wanted), 0)
            newest |= {row[0]: row[1] for row in connection.execute(self._newest, wanted)}
        return PollResult(running, newest, workers)

    def behind(
        self, connection: Connection, caller: str, conversation_id: str, after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (key, id) of the turns of a conversation that began after the turn ``after``."""
        given = {"of_caller": caller, "of_conversation": conversation_id, "after": after, "at_most": limit}
        return [(row.key, row.id) for row in connection.execute(self._behind, given)]

    def key(self, connection: Connection, caller: str, conversation_id: str, turn_id: str) -> int | None:
        """Return the key of a turn, or None."""
        given = {"of_caller": caller, "of_conversation": conversation_id, "turn_id": turn_id}
        found: int | None = connection.scalar(self._key, given)
        return found


def _of_conversation(*columns: Any) -> Select[Any]:
    of = conversations.c
    key = (
        select(of.key)
        .where(of.caller == bindparam("of_caller", type_=of.caller.type))
        .where(of.id == bindparam("of_conversation", type_=of.id.type))
        .scalar_subquery()
    )
    return select(*columns).where(turns.c.conversation == key)
