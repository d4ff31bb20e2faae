"""Statements that find turns. The cost of a lookup does not grow with the number of equal matches."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
)

from proxy.store.sql.dialects import IS_RUNNING, for_each, joined, lateral, list_of, listed
from proxy.store.sql.tables import conversations, items, newest_turns, other_turns, pending_calls, turns

BY_INPUT = 32
"""Maximum number of turns returned by input fingerprint."""
PENDING_PER_ID = 100
"""Maximum number of turns returned for one pending call id; some models number their calls from 0 in every turn."""
MAX_EQUAL = 100
"""Number of turns with the same fingerprint that are compared: those of the newest conversations."""


def by_body(record: Select[Any]) -> Select[Any]:
    """Select the newest turn with a body from ``record``, if it can be repeated and no turn follows it."""
    newest, later = newest_turns, other_turns
    newest_key = (
        select(newest.c.key)
        .where(equals("caller", newest), equals("body_digest", newest))
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


def equals(column: str, table: Any) -> ColumnElement[bool]:
    """Compare a column with the parameter of the same name."""
    of: ColumnElement[Any] = table.c[column]
    return of == bindparam(column, type_=of.type)


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


def conversation() -> Select[Any]:
    """Select the fields of a ``Conversation`` in its order."""
    of = conversations.c
    is_running = exists().where(turns.c.conversation == of.key, IS_RUNNING)
    return (
        select(of.key, of.id, of.caller, of.end_user, of.team, of.head, of.created_at, of.metadata)
        .add_columns(is_running.label("is_running"))
        .where(equals("caller", conversations), equals("id", conversations))
    )


def chain(dialect: str) -> Select[Any]:
    """Select a turn and its ancestors, the root first."""
    # Not a join: SQLite reads the turns of a list in the order of their keys, and would sort those of a join.
    found = for_each(dialect, _chain(dialect).c.key, turns.c.key, _chain_turn())
    return found.order_by(found.selected_columns[0])


def _chain_turn() -> Select[Any]:
    """Select the fields of a ``ChainTurn`` without its items."""
    of, head = turns.c, func.coalesce(conversations.c.head, 0)
    is_complete = or_(of.status == "running", of.status == "completed")
    return (
        select(of.key, of.agent, of.is_stored, of.pending, conversations.c.id, of.end_user, of.fingerprint)
        .add_columns(of.circumstances.is_not(None), of.id, is_complete, head == of.key)
        # An outer join, although each turn has a conversation: SQLite then always begins with the turns.
        .outerjoin(conversations, conversations.c.key == of.conversation)
    )


def branch(dialect: str) -> Select[Any]:
    """Select a turn like ``chain``, and of it and its ancestors: the keys, whether all are stored, and the newest turn
    with a fingerprint: its key (None if there is none) and the fingerprint.
    """
    # One row: for each row of a result, SQLite's driver releases the interpreter lock and takes it again.
    path, newest = _chain(dialect).c, newest_turns.c
    unstored = func.count().filter(~path.is_stored)
    known = func.max(path.key).filter(path.fingerprint.is_not(None))
    ancestors = select(list_of(dialect, path.key).label("keys"), unstored == 0, known.label("known"))
    of_all = ancestors.subquery("of_all")
    fingerprint = select(newest.fingerprint).where(newest.key == of_all.c.known).scalar_subquery()
    return (
        _chain_turn()
        .join(of_all, true())
        .where(turns.c.key == bindparam("turn"))
        .add_columns(*of_all.c, fingerprint)
    )


def items_of_turns(dialect: str) -> Select[Any]:
    """Select the messages of several turns: message, agent, visible (0 or 1 on SQLite), turn and position."""
    # Apart from their turns: a join would repeat the turn columns for every item. By a list of keys, SQLite reads them
    # in order; by a recursive query, it sorts them.
    of, wanted = items.c, listed(dialect, "turns", BigInteger)
    messages = select(of.message, of.agent, type_coerce(of.visible, Integer), of.turn, of.position)
    found = for_each(dialect, wanted.c.value, of.turn, messages)
    return found.order_by(*found.selected_columns[3:])


def items_of_branch(dialect: str) -> Select[Any]:
    """Select, in one row, what ``items_of_turns`` does: the messages joined with commas, lists of agents and visible;
    then the number of items of the turn ``last``, and of those behind the turn ``known``.
    """
    # The order of the subquery is that of the aggregates: https://www.postgresql.org/docs/current/functions-aggregate.html.
    # SQLite leaves it away only for aggregates that do not depend on it (select.c, "Omit ORDER BY on subquery").
    of = items_of_turns(dialect).subquery("ordered").c
    return select(
        joined(dialect, of.message),
        list_of(dialect, of.agent),
        list_of(dialect, of.visible),
        func.count().filter(of.turn == bindparam("last", type_=BigInteger)),
        func.count().filter(of.turn > bindparam("known", type_=BigInteger)),
    )


def _chain(dialect: str) -> CTE:
    of = turns.c
    columns = (of.key, of.parent, of.is_stored, of.fingerprint)
    chain = select(*columns).where(of.key == bindparam("turn")).cte("chain", recursive=True)
    return chain.union_all(of_each(dialect, chain, of.key == chain.c.parent, select(*columns)))


def of_each(dialect: str, found: CTE, condition: ColumnElement[bool], query: Select[Any]) -> Select[Any]:
    """Return the query for the rows that fulfil the condition with a row of ``found``, such as the parents of turns.

    A query that selects columns of ``found`` too names its own table with ``select_from``.
    """
    return query.join(found, condition) if dialect == "sqlite" else lateral(found, query.where(condition))


def _place(column: Column[Any], *, is_within: bool) -> Select[Any]:
    """Select the fields of ``TurnMatch`` in its order, of turns that are found by this column."""
    is_unique = true() if is_within else _is_unique(column)
    return select(
        turns.c.key, turns.c.conversation, _conversation_id(), turns.c.agent, turns.c.fingerprint, is_unique
    )


def _newest_key(column: str, value: ColumnElement[Any], *, is_within: bool, outside: Any) -> Any:
    """Select the key of the newest turn with this value of a column, which is indexed with conversation and key.

    Without a conversation, it is the newest of ``MAX_EQUAL`` turns, which are read from the index alone. ``outside`` is
    the table of ``value``.
    """
    of = newest_turns.c
    found = (
        select(of.key).where(*_conditions(of, of[column] == value, is_within=is_within)).correlate(outside)
    )
    if is_within:
        return found.order_by(of.key.desc()).limit(1).scalar_subquery()
    newest = found.order_by(of.conversation.desc(), of.key.desc()).limit(MAX_EQUAL)
    return select(func.max(newest.subquery("newest_keys").c.key)).scalar_subquery()


def places(dialect: str, *, is_within: bool) -> Select[Any]:
    """Select the newest ``TurnMatch`` of each fingerprint."""
    # A subselect that stops at its first rows: its cost does not depend on how many turns have the fingerprint.
    wanted = listed(dialect, "wanted")
    newest_key = _newest_key("fingerprint", wanted.c.value, is_within=is_within, outside=wanted)
    place, is_newest = _place(turns.c.fingerprint, is_within=is_within), turns.c.key == newest_key
    if dialect == "sqlite":
        return place.select_from(wanted.join(turns, is_newest))
    return lateral(wanted, place.where(is_newest))


def by_input(dialect: str, *, is_within: bool) -> Select[Any]:
    """Select the fields of the newest ``InputMatch`` values of input fingerprints, in its order."""
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


def last_answer(*, is_within: bool) -> Select[Any]:
    """Select the newest ``TurnMatch`` with a last answer."""
    digest = bindparam("digest", type_=turns.c.last_answer.type)
    newest_key = _newest_key("last_answer", digest, is_within=is_within, outside=None)
    return _place(turns.c.last_answer, is_within=is_within).where(turns.c.key == newest_key)


def _is_unique(column: Column[Any]) -> ColumnElement[bool]:
    """Return whether no other conversation has a turn with this value of the column."""
    of = other_turns.c
    has_value = of[column.name] == column
    # Two ranges of the index; a condition with <> would read all turns with the value.
    older = exists().where(has_value, of.conversation < turns.c.conversation)
    newer = exists().where(has_value, of.conversation > turns.c.conversation)
    return and_(~older, ~newer)


def pending(dialect: str, *, is_within: bool) -> Select[Any]:
    """Select, for each call id that is pending, the id and its newest turns."""
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
