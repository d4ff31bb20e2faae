"""Queries for approvals: requested when a turn ends, decided when another begins, executed once.

Only the decision is stored. Whether an approval is pending or expired follows from the head of its conversation, so
that a new turn of the conversation writes nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from proxy.approvals.repository import (
    MAX_ATTEMPTS,
    Approval,
    ApprovalQuery,
    ApprovalsMoved,
    ApprovalUpdate,
    DecisionRecord,
)
from proxy.store.sql.dialects import is_given
from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.stored_completions import visible_to
from proxy.store.sql.tables import approvals, conversations, other_turns, turns
from proxy.turns.records import Page, TurnEnd

_of = approvals.c
_IS_HEAD = func.coalesce(conversations.c.head, 0) == _of.turn
_IS_OPEN_OR_NOT_RESUMED = and_(
    _of.resumed_by.is_(None), or_(_of.decision.is_(None), _of.decision == "approve")
)
_STATUS = case(
    (and_(~_IS_HEAD, _IS_OPEN_OR_NOT_RESUMED), "expired"),
    (_of.decision.is_(None), "pending"),
    (_of.decision == "approve", "approved"),
    else_="refused",
)


class ApprovalStatements:
    """SQL statements for one dialect."""

    def __init__(self, dialect: str) -> None:
        of_caller = is_given(_of.caller)
        of_id = is_given(_of.id)
        of_turn = _of.turn == bindparam("of_turn")
        in_turn = bindparam("in_turn", type_=_of.run_in.type)
        self._all: Select[Any] = (
            select(*_of, _STATUS.label("status"), _IS_HEAD.label("is_head"))
            .add_columns(conversations.c.id.label("conversation_id"), conversations.c.end_user)
            .add_columns(turns.c.id.label("turn_id"), turns.c.model)
            .join(turns, turns.c.key == _of.turn)
            .join(conversations, conversations.c.key == _of.conversation)
        )
        # A turn whose completion was deleted cannot be retrieved by id, but its conversation continues.
        self._of_caller = self._all.where(of_caller, turns.c.caller != "")
        self._by_id = self._of_caller.where(of_id)
        self._of_turn = self._all.where(of_turn).order_by(_of.key)
        self._key = select(_of.key).where(of_caller, of_id)
        self._circumstances = select(turns.c.circumstances).where(turns.c.key == bindparam("of_turn"))
        self._keep_circumstances = (
            update(turns)
            .where(turns.c.key == bindparam("of_turn"))
            .values(circumstances=bindparam("circumstances"))
        )
        conversation = conversations.c
        self._locked_head = (
            select(conversation.head)
            .where(is_given(conversation.caller))
            .where(conversation.id == bindparam("of_conversation", type_=conversation.id.type))
            # The lock of a new head: beginning a turn does not wait for it.
            .with_for_update(key_share=True)
        )
        self._asked = select(approvals).where(of_turn).order_by(_of.key)
        self._decide = update(approvals).where(of_id)
        self._resume = (
            update(approvals)
            .where(of_turn)
            .values(
                resumed_by=in_turn, attempts=_of.attempts + 1, is_unattended=bindparam("is_without_client")
            )
        )
        turn_id = select(turns.c.id).where(turns.c.key == bindparam("by_turn")).scalar_subquery()
        self._ended = update(approvals).where(of_turn, _of.resumed_by == turn_id).values(is_unattended=False)
        self._begin_run = (
            update(approvals)
            .where(of_id, _of.decision == "approve", _of.resumed_by == in_turn)
            .where(or_(_of.run_in.is_(None), _of.run_in == in_turn))
            .values(run_in=in_turn)
        )
        self._end_run = (
            update(approvals)
            .where(of_id, _of.run_in == in_turn)
            .values(result=bindparam("gave", type_=_of.result.type))
        )
        resuming = other_turns.c
        is_running = exists().where(resuming.id == _of.resumed_by, resuming.status == "running")
        self._lost = PreparedStatement(
            select(_of.turn, _of.caller, _of.id)
            .join(conversations, conversations.c.key == _of.conversation)
            # Written out: a partial index is used only where the database sees its condition.
            .where(literal_column("approvals.is_unattended"), _IS_HEAD, ~is_running)
            .where(_of.attempts < MAX_ATTEMPTS)
            .order_by(_of.key)
        )

    # --- reading ---

    def find(self, connection: Connection, caller: str, approval_id: str) -> Approval | None:
        """Return the approval, or None."""
        row = connection.execute(self._by_id, {"of_caller": caller, "of_id": approval_id}).first()
        return None if row is None else _approval(row)

    def page(self, connection: Connection, caller: str, wanted: ApprovalQuery) -> Page[Approval] | None:
        """Return a part of the list; None when no approval has the id ``page.after``."""
        after, limit, order = wanted.page.after, wanted.page.limit, wanted.page.order
        query = self._of_caller
        given: dict[str, Any] = {"of_caller": caller}
        if after is not None:
            key = connection.scalar(self._key, {"of_caller": caller, "of_id": after})
            if key is None:
                return None
            query = query.where(_of.key > key if order == "asc" else _of.key < key)
        if wanted.status is not None:
            query = query.where(_STATUS.in_([wanted.status]))
        if wanted.conversation_id is not None:
            query = query.where(conversations.c.id == wanted.conversation_id)
        query = query.where(visible_to(conversations.c.end_user, wanted.end_user))
        query = query.order_by(_of.key if order == "asc" else _of.key.desc()).limit(limit + 1)
        found = connection.execute(query, given).all()
        return Page([_approval(row) for row in found[:limit]], has_more=len(found) > limit)

    def of_turn(self, connection: Connection, turn: int) -> list[Approval]:
        """Return the approvals that the turn requested, in order."""
        return [_approval(row) for row in connection.execute(self._of_turn, {"of_turn": turn})]

    def circumstances(self, connection: Connection, turn: int) -> bytes | None:
        """Return the stored request context that a continuation of the turn needs, or None."""
        found: bytes | None = connection.scalar(self._circumstances, {"of_turn": turn})
        return found

    def lost(self, connection: Connection) -> list[tuple[str, str]]:
        """Return (caller, approval) for turns that died; one for each turn that had asked."""
        found: dict[int, tuple[str, str]] = {}
        for turn, caller, approval_id in self._lost.run_once(connection, {}):
            found.setdefault(turn, (caller, approval_id))
        return list(found.values())

    # --- writing ---

    def ask(self, connection: Connection, ends: Sequence[tuple[TurnEnd, Any]]) -> None:
        """Keep what ends of turns ask for; each with the row of its turn (key, conversation, caller)."""
        paused = [(end, end.pause, row) for end, row in ends if end.pause is not None]
        if not paused:
            return
        for _, pause, row in paused:
            given = {"of_turn": row.key, "circumstances": pause.circumstances}
            connection.execute(self._keep_circumstances, given)
        asked = [
            {
                "id": asked.id,
                "caller": row.caller,
                "conversation": row.conversation,
                "turn": row.key,
                "call_id": asked.call_id,
                "agent": end.agent,
                "tool": asked.tool,
                "arguments": asked.arguments,
                "created_at": end.finished_at,
                "attempts": 0,
                "is_unattended": False,
            }
            for end, pause, row in paused
            for asked in pause.approvals
        ]
        connection.execute(insert(approvals), asked)

    def ended(self, connection: Connection, turn: int, took_up: int) -> None:
        """Record that the continuation turn ended: the approvals it applied need no further continuation."""
        connection.execute(self._ended, {"of_turn": took_up, "by_turn": turn})

    def decide(
        self, connection: Connection, of_conversation: Mapping[str, str], turn_id: str, resume: ApprovalUpdate
    ) -> bool:
        """Write decisions; return whether the turn with this id is to begin. Doing it again changes nothing.

        Locks the conversation (``of_conversation``, and its ``of_caller``) as an end does before it comes to approvals.

        Raises:
            ApprovalsMoved: They do not stand as they were read; nothing may be committed.
        """
        head = connection.scalar(self._locked_head, of_conversation)
        asked = {row.id: row for row in connection.execute(self._asked, {"of_turn": resume.turn})}
        if asked and all(row.resumed_by == turn_id for row in asked.values()):
            return True
        if head != resume.turn or any(row.resumed_by != resume.expected_turn_id for row in asked.values()):
            raise ApprovalsMoved
        decided = {decision.approval_id: decision for decision in resume.decisions}
        written = {one for one in decided if one in asked and _is_same(asked[one], decided[one])}
        stands = {
            approval_id: row.decision for approval_id, row in asked.items() if approval_id not in written
        }
        if stands != {one: word for one, word in resume.expected.items() if one not in written}:
            raise ApprovalsMoved
        for decision in decided.values():
            self._write(connection, decision)
        waiting = [approval_id for approval_id, word in stands.items() if word is None]
        if resume.awaits_others and not decided.keys() >= set(waiting):
            return False
        given = {"of_turn": resume.turn, "in_turn": turn_id, "is_without_client": resume.is_unattended}
        return connection.execute(self._resume, given).rowcount > 0

    def begin_run(self, connection: Connection, approval_id: str, turn_id: str) -> bool:
        """Let the turn run the call, if that is its to do."""
        return connection.execute(self._begin_run, {"of_id": approval_id, "in_turn": turn_id}).rowcount > 0

    def end_run(self, connection: Connection, approval_id: str, turn_id: str, result: str) -> None:
        """Keep the result."""
        connection.execute(self._end_run, {"of_id": approval_id, "in_turn": turn_id, "gave": result})

    def _write(self, connection: Connection, decision: DecisionRecord) -> None:
        connection.execute(
            self._decide.values(
                decision=_word(decision),
                decided_by=decision.by,
                decided_at=decision.decided_at,
                reason=decision.reason,
            ),
            {"of_id": decision.approval_id},
        )


def _word(decision: DecisionRecord) -> str:
    return "approve" if decision.is_approved else "refuse"


def _is_same(row: Row[Any], decision: DecisionRecord) -> bool:
    return (row.decision, row.decided_at) == (_word(decision), decision.decided_at)


def _approval(row: Row[Any]) -> Approval:
    return Approval(
        id=row.id,
        conversation_id=row.conversation_id,
        end_user=row.end_user,
        turn=row.turn,
        turn_id=row.turn_id,
        model=row.model,
        agent=row.agent,
        call_id=row.call_id,
        tool=row.tool,
        arguments=row.arguments,
        status=row.status,
        is_head=row.is_head,
        created_at=row.created_at,
        decided_at=row.decided_at,
        reason=row.reason,
        by=row.decided_by,
        decision=row.decision,
        resumed_turn_id=row.resumed_by,
        run_in=row.run_in,
        result=row.result,
    )
