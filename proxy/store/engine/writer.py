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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from msgspec import Struct
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from proxy.approvals.repository import ApprovalsMoved
from proxy.errors import ProxyError, StoreUnavailable
from proxy.store.engine.errors import Settle, Unavailable, cause_of
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

    def commit(self, work: Callable[[Connection], Any], settle: Settle, *, is_durable: bool = True) -> None:
        """Do the same. ``settle`` gets the result or error, once, in a later iteration of the event loop."""
        ...


class _Waiting(Struct, eq=False):
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
    """Accepts writes from any task of the event loop in which it was created.

    Groups are committed without a task: the callback that gets the result of one starts the next one. The task of the
    writer handles failures.
    """

    def __init__(self, database: Writable, writing: WriteStatements, *, time_limit: float) -> None:
        self._database = database
        self._writing = writing
        self._time_limit = time_limit
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        """Not that of the request whose write begins a group."""
        self._queue: list[_Waiting] = []
        self._group: Sequence[_Waiting] = ()
        """The writes of the present commit, or of the last one if it is handled as failed."""
        self._is_busy = False
        """Whether a commit runs, is to begin in the next iteration of the event loop, or is handled as failed."""
        self._pause = 0.0
        """Seconds of the last pause while the database is not available."""
        self._failure: asyncio.Future[BaseException | None] = self._loop.create_future()
        """The error of a commit for the task, which ends with None."""
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
        if self._is_closing or self.task.done():
            raise StoreUnavailable
        deadline = self._loop.time() + self._time_limit
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)
        done: asyncio.Future[Any] = self._loop.create_future()
        self._queue.append(_Waiting(work, done, deadline))
        if not self._is_busy:
            self._is_busy = True
            # Not at once: other writes of this iteration can be part of the group.
            self._loop.call_soon(self._start_commit, context=self._context)
        return done

    async def close(self) -> None:
        """Write what is queued, and stop."""
        self._is_closing = True
        if not self._is_busy and not self._failure.done():
            self._failure.set_result(None)
        await self.task
        if self._timer is not None:
            self._timer.cancel()

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

    def _start_commit(self) -> None:
        """Commit the next group, if there is one."""
        if self._failure.done():
            # The task was cancelled.
            return
        try:
            while self._queue:
                if group := self._next_group():
                    self._group = group
                    works = [waiting.work for waiting in group]
                    self._database.commit(
                        partial(self._writing.together, group=works),
                        self._settle,
                        is_durable=any(map(_is_durable, works)),
                    )
                    return
        except Exception as defect:  # noqa: BLE001 - raised by the task, which is watched
            self._failure.set_exception(defect)
            return
        self._group = ()
        self._is_busy = False
        if self._is_closing:
            self._failure.set_result(None)

    def _settle(self, given: Any, error: BaseException | None) -> None:
        """Give the results of the group to its waiters, and commit the next one."""
        if error is None:
            try:
                self._resolve_waiters(self._group, given)
            except Exception as defect:  # noqa: BLE001 - raised by the task, which is watched
                self._failure.set_exception(defect)
                return
            if self._pause:
                self._end_pauses()
        elif not self._failure.done():
            self._failure.set_result(error)
            return
        else:
            # The task was cancelled: nothing repeats the commit.
            for waiting in self._group:
                waiting.reject(StoreUnavailable())
        self._start_commit()

    async def _run(self) -> None:
        while (failure := await self._failure) is not None:
            self._failure = self._loop.create_future()
            try:
                await self._commit_apart(self._group, failure)
            except Unavailable as error:
                if not self._pause:
                    logger.warning("database not available", extra={"cause": str(error)})
                self._requeue(self._group, error)
                if self._is_closing and all(isinstance(waiting.work, Close) for waiting in self._queue):
                    # The leases of these turns expire.
                    return
                self._pause = min(2 * self._pause, LONGEST_PAUSE) or FIRST_PAUSE
                await asyncio.sleep(self._pause)
            else:
                if self._pause:
                    self._end_pauses()
            self._start_commit()

    def _end_pauses(self) -> None:
        logger.warning("database available again")
        self._pause = 0.0

    def _next_group(self) -> list[_Waiting]:
        """Return the next group; drop writes whose waiter is gone."""
        group = self._queue[:GROUP_SIZE]
        if any(waiting.done.done() for waiting in group):
            self._drop_abandoned()
            group = self._queue[:GROUP_SIZE]
        del self._queue[: len(group)]
        return group

    def _drop_abandoned(self) -> None:
        # All of them: the group is filled up with writes from behind it.
        queue, self._queue = self._queue, []
        remaining: list[_Waiting] = []
        for waiting in queue:
            if waiting.is_abandoned:
                # This can queue a Close.
                self._abandon(waiting)
            else:
                remaining.append(waiting)
        self._queue[:0] = remaining

    def _requeue(self, group: Sequence[_Waiting], error: Unavailable) -> None:
        now = self._loop.time()
        repeated: list[_Waiting] = []
        for waiting in group:
            if waiting.is_settled:
                continue
            waiting.outcome_unknown |= error.outcome_unknown
            if isinstance(waiting.work, Close) or (waiting.deadline > now and not error.is_permanent):
                repeated.append(waiting)
            else:
                self._abandon(waiting)
        self._queue[:0] = repeated

    async def _commit_apart(self, group: Sequence[_Waiting], failure: BaseException) -> None:
        """Commit the writes of a failed group that did not cause the failure together, and then the others alone."""
        if isinstance(failure, Unavailable) or not isinstance(failure, Exception):
            raise failure
        works = [waiting.work for waiting in group]
        if isinstance(failure, Lost):
            lost = failure.members
        else:
            # The failing write is reported and logged when it runs alone.
            logger.warning("group commit failed", extra={"size": len(group), "cause": cause_of(failure)})
            lost = frozenset(works)
        if rest := [waiting for waiting in group if waiting.work not in lost]:
            await self._commit_together(rest)
        for waiting in group:
            if waiting.work in lost:
                await self._commit_alone(waiting)

    async def _commit_together(self, group: Sequence[_Waiting]) -> None:
        works = [waiting.work for waiting in group]
        try:
            given = await self._database.write(
                partial(self._writing.together, group=works), is_durable=any(map(_is_durable, works))
            )
        except Exception as error:  # noqa: BLE001 - reported by ``_commit_apart``
            await self._commit_apart(group, error)
        else:
            self._resolve_waiters(group, given)

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
            self._resolve_waiters([waiting], {waiting.work: given})

    def _resolve_waiters(self, group: Sequence[_Waiting], given: Mapping[Work, Any]) -> None:
        for waiting in group:
            waiting.is_settled = True
            if not waiting.done.done():
                waiting.done.set_result(given[waiting.work])
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
            close = Close(work.turn.id, None, "abandoned", work.turn.created_at)
        else:
            assert isinstance(work, Finish)
            close = Close(None, work.end.turn, "storage_unavailable", work.end.finished_at)
        # The next commit is to begin already: this is called while one is handled.
        self._queue.append(_Waiting(close, self._loop.create_future(), math.inf))
