"""Group commit: the only writer of a process commits all queued writes in one transaction.

A commit costs one disk flush and some hundred microseconds, for one turn or a hundred. Writes that arrive during a
commit form the next group; each waiter resumes when its own commit is durable.

Every write is idempotent (a begun turn is found by its id, a result is compared with the stored one), so a group
whose commit outcome is unknown is retried.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from proxy.approvals.repository import ApprovalsMoved
from proxy.errors import ProxyError, StoreUnavailable
from proxy.store.engine.errors import Unavailable, cause_of
from proxy.store.engine.group_commit import Lost, Work, WriteStatements
from proxy.store.sql.begin_turn import Begin
from proxy.store.sql.finish_turn import Close, Finish
from proxy.turns.repository import IdempotencyKeyTaken

logger = logging.getLogger(__name__)

R = TypeVar("R")

_is_durable = attrgetter("is_durable")

GROUP_SIZE = 256
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0


class Writable(Protocol):
    """The write half of ``Database``."""

    def write(self, work: Callable[[Connection], R], *, is_durable: bool = True) -> Awaitable[R]:
        """Run ``work`` in one transaction; its result is available after the commit.

        Without ``is_durable``, a power failure can lose the commit.

        Raises:
            Unavailable: The database failed. Errors of ``work`` pass through; the transaction is rolled back.
        """
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    """A queued write until it is settled (written or abandoned).

    ``done`` can complete earlier: the waiter was cancelled or timed out.
    """

    work: Work
    done: asyncio.Future[Any]
    deadline: float
    outcome_unknown: bool = False
    is_settled: bool = False

    def reject(self, error: Exception) -> None:
        self.is_settled = True
        self.time_out(error)

    def time_out(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    @property
    def is_abandoned(self) -> bool:
        """Whether the waiter got an error, or that of a Begin is gone; other writes do not need their waiters."""
        return self.done.done() and (isinstance(self.work, Begin) or not self.done.cancelled())


class Writer:
    """Accepts writes from any task of the event loop in which it was created."""

    def __init__(self, database: Writable, writing: WriteStatements, *, time_limit: float) -> None:
        self._database = database
        self._writing = writing
        self._time_limit = time_limit
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._group: Sequence[_Waiting] = ()
        """The writes of the present commit."""
        self._wake: asyncio.Future[None] | None = None
        """Ends the wait for a write; None while there are some."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self.task = asyncio.create_task(self._run(), name="store writer")
        """Ends only when the writer is closed."""

    def write(self, work: Work) -> asyncio.Future[Any]:
        """Queue a write; its result is there when the commit is durable.

        If the waiter of a Begin is cancelled or gets an error, no running turn remains. The same holds for a failed
        Finish. Cancelling the waiter of any other write does not stop the write.

        Raises:
            StoreUnavailable: The writer is closed. The result is this error if it was not written within the time
                limit, or cannot be written.
        """
        if self._is_closing:
            raise StoreUnavailable
        deadline = self._loop.time() + self._time_limit
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)
        return self._enqueue(work, deadline)

    async def close(self) -> None:
        """Write what is queued, and stop."""
        self._is_closing = True
        self._end_wait()
        await self.task
        if self._timer is not None:
            self._timer.cancel()

    def _enqueue(self, work: Work, deadline: float) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = self._loop.create_future()
        self._queue.append(_Waiting(work, done, deadline))
        if self._wake is not None:
            self._end_wait()
        return done

    def _end_wait(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    def _expire(self) -> None:
        """Let all writes time out whose deadline has passed.

        One timer for all, because nearly every write is done long before its deadline.
        """
        self._timer = None
        now, next_deadline = self._loop.time(), math.inf
        for waiting in (*self._group, *self._queue):
            if waiting.deadline <= now:
                waiting.time_out(StoreUnavailable())
            elif not waiting.done.done():
                next_deadline = min(next_deadline, waiting.deadline)
        if next_deadline < math.inf:
            self._timer = self._loop.call_at(next_deadline, self._expire)

    async def _run(self) -> None:
        pause = 0.0
        while True:
            if not self._queue:
                self._group = ()
                if self._is_closing:
                    return
                self._wake = self._loop.create_future()
                await self._wake
            group = self._group = self._next_group()
            if not group:
                continue
            try:
                await self._commit(group)
            except Unavailable as error:
                if not pause:
                    logger.warning("database not available", extra={"cause": str(error)})
                self._requeue(group, error)
                if self._is_closing and all(isinstance(waiting.work, Close) for waiting in self._queue):
                    # The leases of these turns expire.
                    return
                pause = min(2 * pause, LONGEST_PAUSE) or FIRST_PAUSE
                await asyncio.sleep(pause)
            else:
                if pause:
                    logger.warning("database available again")
                pause = 0.0

    def _next_group(self) -> list[_Waiting]:
        """Return the next group; drop writes whose waiter is gone."""
        group: list[_Waiting] = []
        while self._queue and len(group) < GROUP_SIZE:
            waiting = self._queue.popleft()
            if waiting.done.done() and waiting.is_abandoned:
                self._abandon(waiting)
            else:
                group.append(waiting)
        return group

    def _requeue(self, group: Sequence[_Waiting], error: Unavailable) -> None:
        now = self._loop.time()
        for waiting in reversed(group):
            if waiting.is_settled:
                continue
            waiting.outcome_unknown |= error.outcome_unknown
            if isinstance(waiting.work, Close) or (waiting.deadline > now and not error.is_permanent):
                self._queue.appendleft(waiting)
            else:
                self._abandon(waiting)

    async def _commit(self, group: Sequence[_Waiting]) -> None:
        works = [waiting.work for waiting in group]
        lost: frozenset[Work] = frozenset()
        try:
            given = await self._database.write(
                partial(self._writing.together, group=works),
                is_durable=any(map(_is_durable, works)),
            )
        except Unavailable:
            raise
        except Lost as error:
            lost = error.members
        except Exception as error:  # noqa: BLE001 - the failing write is reported and logged when it runs alone
            logger.warning("group commit failed", extra={"size": len(group), "cause": cause_of(error)})
            lost = frozenset(works)
        else:
            for waiting in group:
                self._resolve_waiter(waiting, given[waiting.work])
            return
        if rest := [waiting for waiting in group if waiting.work not in lost]:
            await self._commit(rest)
        for waiting in group:
            if waiting.work in lost:
                await self._commit_alone(waiting)

    async def _commit_alone(self, waiting: _Waiting) -> None:
        try:
            given = await self._database.write(
                lambda connection: self._writing.alone(connection, waiting.work)
            )
        except Unavailable:
            raise
        except (ProxyError, IdempotencyKeyTaken, ApprovalsMoved) as error:
            waiting.reject(error)
        except (SQLAlchemyError, sqlite3.Error) as error:
            logger.error(
                "store write failed", extra={"work": type(waiting.work).__name__, "cause": cause_of(error)}
            )
            self._abandon(waiting)
        except Exception:
            logger.exception("store write failed", extra={"work": type(waiting.work).__name__})
            self._abandon(waiting)
        else:
            self._resolve_waiter(waiting, given)

    def _resolve_waiter(self, waiting: _Waiting, given: Any) -> None:
        waiting.is_settled = True
        if not waiting.done.done():
            waiting.done.set_result(given)
        elif isinstance(waiting.work, Begin):
            self._close_orphan(waiting)

    def _abandon(self, waiting: _Waiting) -> None:
        if isinstance(waiting.work, Finish) or (isinstance(waiting.work, Begin) and waiting.outcome_unknown):
            self._close_orphan(waiting)
        waiting.reject(StoreUnavailable())

    def _close_orphan(self, waiting: _Waiting) -> None:
        """Close a turn without an owner, so that it does not keep its conversation locked."""
        work = waiting.work
        if isinstance(work, Begin):
            close = Close(work.turn["id"], None, "abandoned", work.turn["created_at"])
        else:
            assert isinstance(work, Finish)
            close = Close(None, work.end.turn, "storage_unavailable", work.end.finished_at)
        self._enqueue(close, math.inf)
