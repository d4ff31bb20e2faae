"""What is written, many things in one transaction or one thing in its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from proxy.store.sql.begin_turn import Begin, Beginnings
from proxy.store.sql.finish_turn import Close, Endings, Finish


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Anything but the beginnings and ends of turns."""

    function: Callable[[Connection], Any]


Work = Begin | Finish | Close | Call


class Lost(Exception):
    """Some of a group cannot be written as things stand; nothing of it may be committed."""

    def __init__(self, members: frozenset[Work]) -> None:
        super().__init__(members)
        self.members = members


class Writing:
    """Writes work and returns what it gives: ``Begun`` for Begin (or None, see ``Resume``), whether it is done for
    Finish, None for Close.
    """

    def __init__(self, dialect: str) -> None:
        self._beginnings = Beginnings(dialect)
        self._endings = Endings(dialect)

    def together(self, connection: Connection, group: Sequence[Work]) -> dict[Work, Any]:
        """Write a group. Ends come first: who begins in the same group finds the conversation free.

        Raises:
            Lost: Some turns cannot be begun, or not in a group.
        """
        if lone := frozenset(work for work in group if isinstance(work, Begin) and work.resume is not None):
            raise Lost(lone)
        given: dict[Any, Any] = {}
        if finishes := [work for work in group if isinstance(work, Finish)]:
            given |= self._endings.finish(connection, finishes)
        for work in group:
            if isinstance(work, Close):
                self._endings.close(connection, work)
                given[work] = None
        for work in group:
            if isinstance(work, Call):
                given[work] = work.function(connection)
        if begins := [work for work in group if isinstance(work, Begin)]:
            begun = self._beginnings.together(connection, begins)
            if len(begun) < len(begins):
                raise Lost(frozenset(begins) - begun.keys())
            given |= begun
        return given

    def alone(self, connection: Connection, work: Work) -> Any:
        """Write one piece of work.

        Raises:
            ConversationBusy: Another turn of the conversation is running.
            IdempotencyKeyTaken: The caller used the key for another turn.
            ApprovalsMoved: What is to be decided no longer stands as it was read.
        """
        if isinstance(work, Begin):
            return self._beginnings.alone(connection, work)
        return self.together(connection, [work])[work]
