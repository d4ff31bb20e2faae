"""Execute a group of writes in one transaction, or a single write in its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from proxy.store.sql.begin_turn import Begin, Beginnings
from proxy.store.sql.finish_turn import Close, Endings, Finish


class OtherWrite(Struct, frozen=True, eq=False):
    """A write other than beginning or finishing a turn. Without ``is_durable``, a power failure can lose it.

    ``is_written_alone`` is for changes of another worker's turn. A transaction that locks several of them could
    deadlock with one of that worker, which PostgreSQL detects only after a second.
    """

    function: Callable[[Connection], Any]
    is_durable: bool = True
    is_written_alone: bool = False


_is_written_alone = attrgetter("is_written_alone")
Work = Begin | Finish | Close | OtherWrite


class Lost(Exception):
    """Some writes of a group cannot be applied with it. Roll back the group and retry these writes alone."""

    def __init__(self, members: frozenset[Work]) -> None:
        super().__init__(members)
        self.members = members


class WriteStatements:
    """Executes writes. Results: ``Begun`` for Begin (or None, see ``ApprovalUpdate``), whether the turn was finished
    for Finish, None for Close.
    """

    def __init__(self, dialect: str) -> None:
        self._beginnings = Beginnings(dialect)
        self._endings = Endings(dialect)

    def together(self, connection: Connection, group: Sequence[Work]) -> dict[Work, Any]:
        """Execute a group. Turns are finished first, so that a turn begun in the same group can use the conversation.

        Raises:
            Lost: Some turns cannot be begun, or some writes must be executed alone.
        """
        if len(group) == 1:
            return {group[0]: self._single(connection, group[0])}
        if lone := frozenset(filter(_is_written_alone, group)):
            raise Lost(lone)
        begins: list[Begin] = []
        finishes: list[Finish] = []
        others: list[Close | OtherWrite] = []
        of_type: dict[type[Work], list[Any]] = {
            Begin: begins,
            Finish: finishes,
            Close: others,
            OtherWrite: others,
        }
        for work in group:
            of_type[type(work)].append(work)
        given: dict[Any, Any] = {}
        if finishes:
            given = self._endings.finish(connection, finishes)
        for other in others:
            given[other] = self._single(connection, other)
        if begins:
            begun = self._beginnings.together(connection, begins)
            if len(begun) < len(begins):
                raise Lost(frozenset(begins) - begun.keys())
            given |= begun
        return given

    def _single(self, connection: Connection, work: Work) -> Any:
        """Execute one write.

        Raises:
            Lost: The turn cannot be begun, or what it needs is part of ``alone``.
        """
        if isinstance(work, Begin):
            begun = None if work.is_written_alone else self._beginnings.single(connection, work)
            if begun is None:
                raise Lost(frozenset((work,)))
            return begun
        if isinstance(work, Finish):
            return self._endings.finish(connection, [work])[work]
        if isinstance(work, Close):
            return self._endings.close(connection, work)
        return work.function(connection)

    def alone(self, connection: Connection, work: Work) -> Any:
        """Execute one write.

        Raises:
            ConversationBusy: Another turn of the conversation is running.
            IdempotencyKeyTaken: Another turn of the caller has the key.
            ApprovalsMoved: The approvals changed after they were read.
        """
        if isinstance(work, Begin):
            return self._beginnings.alone(connection, work)
        return self._single(connection, work)
