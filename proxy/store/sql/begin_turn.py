"""Begin a group of turns with four statements, whatever its size, or a single turn with three.

Conflicts do not raise an error in a group: ``ON CONFLICT DO NOTHING`` skips the turn, and it is missing in the
result. The writer then retries it alone, which determines the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    and_,
    bindparam,
    delete,
    false,
    literal_column,
    or_,
    select,
    update,
)

from proxy.approvals.repository import ApprovalUpdate
from proxy.errors import ConversationBusy
from proxy.store.sql import rows, stored_items
from proxy.store.sql.approvals import ApprovalStatements
from proxy.store.sql.checkpoints import CheckpointStatements
from proxy.store.sql.dialects import IS_RUNNING, for_each, insert_into, listed, statements
from proxy.store.sql.finish_turn import Endings, Finish
from proxy.store.sql.interruption import Interruption
from proxy.store.sql.item_insertion import ItemInsertion
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.stored_items import StoredItems
from proxy.store.sql.tables import conversations, encoded, storable, turns
from proxy.turns.records import Begun, CompletedTurn, NewTurn
from proxy.turns.repository import IdempotencyKeyTaken

_ENCODED = ("metadata", "body_digest", "input_fingerprint")
"""The columns whose values ``rows.turn_row`` gives as they are stored."""


class Begin(Struct, frozen=True, eq=False):
    """A turn to begin. ``input`` are rows that have no turn yet.

    With ``resume`` it also records approval decisions. With ``parent`` and its end, it adds the turn that it follows.
    Both are written alone.
    """

    turn: NewTurn
    input: StoredItems
    resume: ApprovalUpdate | None = None
    parent: Begin | None = None
    parent_end: Finish | None = None
    is_written_alone: bool = False
    """Whether it cannot be part of a group; as ``begin_of`` and ``begin_behind`` say."""

    is_durable: ClassVar[bool] = False
    """A begun turn does not survive a power failure, and no client has its response yet."""


def begin_of(turn: NewTurn, resume: ApprovalUpdate | None = None) -> Begin:
    """Return the turn with its input in the stored format."""
    said = stored_items.input_items(turn.input) if turn.is_stored else []
    return Begin(turn, said, resume, is_written_alone=resume is not None)


def begin_behind(begin: Begin, parent: CompletedTurn, journal: bytes | None) -> Begin:
    """Return the turn with the one that it follows; ``journal`` is in the stored format."""
    end = Finish(
        parent.end, stored_items.item_rows(parent.end.items, is_input=False), journal, moves_head=False
    )
    return replace(begin, parent=begin_of(parent.turn), parent_end=end, is_written_alone=True)


class Beginnings:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        self._approvals = statements(ApprovalStatements, dialect)
        self._checkpoints = statements(CheckpointStatements, dialect)
        self._endings = statements(Endings, dialect)
        # An existing conversation is not touched: its row would stay locked for a turn that has to wait for the end
        # of another, and that end moves the conversation's head.
        self._add_conversation = PreparedStatement(
            insert_into(dialect, conversations)
            .values(metadata=literal_column("'{}'", JSON))
            .on_conflict_do_nothing(),
            rows.CONVERSATION_PARAMETERS,
        )
        self._name_end_user = PreparedStatement(
            update(conversations)
            .where(
                conversations.c.caller == bindparam("of_caller"),
                conversations.c.id == bindparam("of_conversation"),
            )
            .where(conversations.c.end_user == literal_column("''"))
            .values(end_user=bindparam("named")),
            ("named", "of_caller", "of_conversation"),
        )
        conversation = (
            select(conversations.c.key)
            .where(
                conversations.c.caller == bindparam("of_caller"),
                conversations.c.id == bindparam("of_conversation"),
            )
            .scalar_subquery()
        )
        add_turn = (
            insert_into(dialect, turns)
            .values({name: bindparam(name, type_=encoded(turns.c[name])) for name in _ENCODED})
            .values(conversation=conversation, status=literal_column("'running'"), is_history=false())
            .on_conflict_do_nothing()
        )
        self._add_turns = PreparedStatement(add_turn, rows.TURN_PARAMETERS)
        self._add_turn = PreparedStatement(
            add_turn.returning(turns.c.key, turns.c.conversation), rows.TURN_PARAMETERS
        )
        ids = listed(dialect, "ids")
        self._begun = PreparedStatement(
            select(turns.c.id, turns.c.key, turns.c.conversation, turns.c.worker).where(
                turns.c.id.in_(select(ids.c.value)), IS_RUNNING
            ),
            ("ids",),
        )
        keys = listed(dialect, "keys", BigInteger)
        self._heads = PreparedStatement(
            for_each(
                dialect,
                keys.c.value,
                conversations.c.key,
                select(conversations.c.key, conversations.c.head),
            )
        )
        self._remove_turn = PreparedStatement(delete(turns).where(turns.c.key == bindparam("of_turn")))
        self._add_items = ItemInsertion(dialect, skips_existing=True)
        is_in_the_way = or_(
            turns.c.conversation == conversation,
            and_(
                turns.c.caller == bindparam("of_caller"),
                turns.c.idempotency_key == bindparam("of_key"),
            ),
        )
        self._interruption = Interruption(
            dialect, and_(is_in_the_way, turns.c.lease_until < bindparam("now"))
        )
        self._running = select(turns.c.id).where(
            turns.c.conversation == conversation, turns.c.slot == bindparam("of_slot"), IS_RUNNING
        )
        self._has_key = select(turns.c.key).where(
            turns.c.caller == bindparam("of_caller"), turns.c.idempotency_key == bindparam("of_key")
        )

    def together(self, connection: Connection, begins: Sequence[Begin]) -> dict[Begin, Begun]:
        """Begin the turns that have no conflict.

        A turn that is already running under this id for this worker counts as begun: the write is a retry.
        """
        if len(begins) == 1:
            place = self.single(connection, begins[0])
            return {} if place is None else {begins[0]: place}
        # Insert in the same order in all workers, so that they cannot deadlock.
        begins = sorted(begins, key=lambda begin: (begin.turn.caller, begin.turn.conversation_id))
        given = [begin.turn for begin in begins]
        self._add_conversation.run(connection, list(map(rows.conversation_row, given)))
        self._name_end_user.run(connection, [_named(turn) for turn in given if turn.end_user])
        self._add_turns.run(connection, list(map(rows.turn_row, given)))
        begun = self._without_old_heads(connection, self._running_now(connection, begins))
        self._add_items.run(connection, [(place.turn, 0, begin.input) for begin, place in begun.items()])
        for begin, place in begun.items():
            if begin.turn.checkpoint is not None:
                self._checkpoints.add(connection, place.turn, 0, begin.turn.checkpoint)
        return begun

    def single(self, connection: Connection, begin: Begin) -> Begun | None:
        """Begin a turn like ``together``; None if it has a conflict."""
        turn = begin.turn
        self._add_conversation.run_once(connection, rows.conversation_row(turn))
        if turn.end_user:
            self._name_end_user.run_once(connection, _named(turn))
        if added := self._add_turn.run_once(connection, rows.turn_row(turn)):
            begun = Begun(*added[0])
        elif (found := self._running_now(connection, [begin]).get(begin)) is not None:
            begun = found
        else:
            return None
        if turn.is_at_head and not self._without_old_heads(connection, {begin: begun}):
            return None
        self._add_items.add(connection, begun.turn, 0, begin.input)
        if turn.checkpoint is not None:
            self._checkpoints.add(connection, begun.turn, 0, turn.checkpoint)
        return begun

    def _running_now(self, connection: Connection, begins: Sequence[Begin]) -> dict[Begin, Begun]:
        """Return the turns that are running under their ids for their workers."""
        # The ids are stored as they are: they are made by ``new_turn_id``.
        found = self._begun.run_once(connection, ([begin.turn.id for begin in begins],))
        running = {row[0]: row for row in found}
        begun: dict[Begin, Begun] = {}
        for begin in begins:
            row = running.get(begin.turn.id)
            if row is not None and row[3] == storable(begin.turn.worker):
                begun[begin] = Begun(row[1], row[2])
        return begun

    def _without_old_heads(self, connection: Connection, begun: dict[Begin, Begun]) -> dict[Begin, Begun]:
        """Remove the turns that should follow the head of their conversation and do not any more.

        Another worker's turn has ended since the head was read, possibly while the insertion waited for that end. A
        statement that waits reads what was committed before it, so the head is read by another one.
        """
        at_head = {begin: place for begin, place in begun.items() if begin.turn.is_at_head}
        if not at_head:
            return begun
        keys = [place.conversation for place in at_head.values()]
        found = self._heads.run_once(connection, {"keys": keys})
        heads = {row[0]: row[1] for row in found}
        late = [begin for begin, place in at_head.items() if begin.turn.parent != heads[place.conversation]]
        self._remove_turn.run(connection, [{"of_turn": begun[begin].turn} for begin in late])
        return {begin: place for begin, place in begun.items() if begin not in late}

    def alone(self, connection: Connection, begin: Begin) -> Begun | None:
        """Begin a turn. A turn with an expired lease that holds the conversation or the key is interrupted first.

        None if the paused turn still has pending approvals after this decision.

        Raises:
            ApprovalsMoved: The approvals changed after they were read; roll back.
            ConversationBusy: Another turn of the conversation is running in this slot, or the conversation has another
                head; roll back.
            IdempotencyKeyTaken: Another turn of the caller has the key; roll back.
        """
        turn = begin.turn
        # Only what the statement names: SQLAlchemy sets every column that it finds a value for.
        of_conversation = {"of_caller": turn.caller, "of_conversation": turn.conversation_id}
        given = {**of_conversation, "of_key": turn.idempotency_key, "now": turn.created_at}
        self._interruption.run(connection, given, turn.created_at)
        if begin.resume is not None:
            if not self._approvals.decide(connection, of_conversation, turn.id, begin.resume):
                return None
            # Before a turn is added: that would wait for the end of a running one, which waits for the conversation.
            others = connection.scalars(self._running, of_conversation | {"of_slot": turn.slot})
            if any(running != turn.id for running in others):
                raise ConversationBusy
        begun = self._begin_behind(connection, begin) if begin.parent else self.single(connection, begin)
        if begun is not None:
            return begun
        of_key = {"of_caller": turn.caller, "of_key": turn.idempotency_key}
        if turn.idempotency_key is not None and connection.scalar(self._has_key, of_key):
            raise IdempotencyKeyTaken
        raise ConversationBusy

    def _begin_behind(self, connection: Connection, begin: Begin) -> Begun | None:
        """Add the parent and begin the turn; None on a conflict."""
        assert begin.parent is not None
        assert begin.parent_end is not None
        turn = begin.turn
        for _, key, conversation, worker in self._begun.run_once(connection, ([turn.id],)):
            # The write is a retry.
            return Begun(key, conversation) if worker == storable(turn.worker) else None
        parent = self.single(connection, begin.parent)
        if parent is None:
            return None
        end = begin.parent_end
        self._endings.finish(connection, [replace(end, end=replace(end.end, turn=parent.turn))])
        return self.single(connection, replace(begin, turn=replace(turn, parent=parent.turn)))


def _named(turn: NewTurn) -> tuple[str, str, str]:
    return turn.end_user, turn.caller, turn.conversation_id
