"""The one writer of a process: it takes everything that waits and commits it together.

A commit costs a wait for the disk and some hundred microseconds, whether it holds one turn or a hundred. So while
one is under way the next group gathers, and each waiter is told when its own commit is durable.

Everything can be written twice without harm (a begin is found by its id, an end is compared with what is there), so
a group whose outcome is not known is simply written again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from proxy.approvals.repository import ApprovalsMoved
from proxy.errors import ProxyError, StoreUnavailable
from proxy.store.engine.errors import Unavailable, cause_of
from proxy.store.engine.group_commit import Lost, Work, Writing
from proxy.store.sql.begin_turn import Begin
from proxy.store.sql.finish_turn import Close, Finish
from proxy.turns.repository import IdempotencyKeyTaken

logger = logging.getLogger(__name__)

R = TypeVar("R")

GROUP_SIZE = 256
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0


class Writable(Protocol):
    """A database, as the writer needs it."""

    async def write(self, work: Callable[[Connection], R], *, outlives_power: bool = True) -> R:
        """Run ``work`` in one transaction and return what it gives when the commit is durable.

        Without ``outlives_power`` it may be lost when this machine stops at once.

        Raises:
            Unavailable: The database did not do it. Any other error is the work's own; nothing is written then.
        """
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    """A piece of work until it is settled: written, or given up.

    ``done`` may be done earlier than that, when the waiter went away or its time was over.
    """

    work: Work
    done: asyncio.Future[Any]
    deadline: float
    is_in_doubt: bool = False
    is_settled: bool = False

    def give(self, result: Any) -> None:
        self.is_settled = True
        if not self.done.done():
            self.done.set_result(result)

    def refuse(self, error: Exception) -> None:
        self.is_settled = True
        self.time_out(error)

    def time_out(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Writer:
    """Takes work from any task of the event loop that it was made in."""

    def __init__(self, database: Writable, writing: Writing, *, time_limit: float) -> None:
        self._database = database
        self._writing = writing
        self._time_limit = time_limit
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._is_closing = False
        self._task = asyncio.create_task(self._run(), name="store writer")

    async def write(self, work: Work) -> Any:
        """Hand in a piece of work; return what it gives when it is durable.

        A Begin whose waiter is cancelled or told that it failed leaves no running turn behind; neither does a Finish
        that is told to have failed. A cancelled waiter of anything but a Begin does not stop it.

        Raises:
            StoreUnavailable: It was not written within the time limit, or cannot be written.
        """
        if self._is_closing:
            raise StoreUnavailable
        waiting = self._hand_in(work, self._loop.time() + self._time_limit)
        timer = self._loop.call_later(self._time_limit, waiting.time_out, StoreUnavailable())
        try:
            return await (waiting.done if isinstance(work, Begin) else asyncio.shield(waiting.done))
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Write what was handed in, and stop."""
        self._is_closing = True
        self._wake.set()
        await self._task

    def _hand_in(self, work: Work, deadline: float) -> _Waiting:
        waiting = _Waiting(work, self._loop.create_future(), deadline)
        self._queue.append(waiting)
        self._wake.set()
        return waiting

    async def _run(self) -> None:
        pause = 0.0
        while True:
            group = self._take()
            if not group:
                if self._is_closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._commit(group)
            except Unavailable as error:
                if not pause:
                    logger.warning("database not available", extra={"cause": str(error)})
                self._put_back(group, error)
                if self._is_closing and all(isinstance(waiting.work, Close) for waiting in self._queue):
                    # Their leases run out.
                    return
                pause = min(2 * pause, LONGEST_PAUSE) or FIRST_PAUSE
                await asyncio.sleep(pause)
            else:
                if pause:
                    logger.warning("database is back")
                pause = 0.0

    def _take(self) -> list[_Waiting]:
        """Return the next group; what nobody waits for any more is given up."""
        group: list[_Waiting] = []
        while self._queue and len(group) < GROUP_SIZE:
            waiting = self._queue.popleft()
            if waiting.done.done():
                self._give_up(waiting)
            else:
                group.append(waiting)
        return group

    def _put_back(self, group: Sequence[_Waiting], error: Unavailable) -> None:
        now = self._loop.time()
        for waiting in reversed(group):
            if waiting.is_settled:
                continue
            waiting.is_in_doubt |= error.is_in_doubt
            if isinstance(waiting.work, Close) or (waiting.deadline > now and not error.is_lasting):
                self._queue.appendleft(waiting)
            else:
                self._give_up(waiting)

    async def _commit(self, group: Sequence[_Waiting]) -> None:
        works = [waiting.work for waiting in group]
        lost: frozenset[Work] = frozenset()
        try:
            given = await self._database.write(
                lambda connection: self._writing.together(connection, works),
                # A turn that was only begun ends with the machine: nobody will have had an answer.
                outlives_power=not all(isinstance(work, Begin) for work in works),
            )
        except Unavailable:
            raise
        except Lost as error:
            lost = error.members
        except Exception as error:  # noqa: BLE001 - the one that is at fault is told and logged alone
            logger.warning("a group of writes failed", extra={"size": len(group), "cause": cause_of(error)})
            lost = frozenset(works)
        else:
            for waiting in group:
                self._tell(waiting, given[waiting.work])
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
        except (ProxyError, IdempotencyKeyTaken, ApprovalsMoved) as refusal:
            waiting.refuse(refusal)
        except SQLAlchemyError as error:
            logger.error(
                "a write failed", extra={"work": type(waiting.work).__name__, "cause": cause_of(error)}
            )
            self._give_up(waiting)
        except Exception:
            logger.exception("a write failed", extra={"work": type(waiting.work).__name__})
            self._give_up(waiting)
        else:
            self._tell(waiting, given)

    def _tell(self, waiting: _Waiting, given: Any) -> None:
        if isinstance(waiting.work, Begin) and waiting.done.done():
            self._close_left_over(waiting)
        waiting.give(given)

    def _give_up(self, waiting: _Waiting) -> None:
        if isinstance(waiting.work, Finish) or (isinstance(waiting.work, Begin) and waiting.is_in_doubt):
            self._close_left_over(waiting)
        waiting.refuse(StoreUnavailable())

    def _close_left_over(self, waiting: _Waiting) -> None:
        """See to it that a turn without an owner does not keep its conversation busy."""
        work = waiting.work
        if isinstance(work, Begin):
            close = Close(work.turn["id"], None, "abandoned", work.turn["created_at"])
        else:
            assert isinstance(work, Finish)
            close = Close(None, work.end.turn, "storage_unavailable", work.end.finished_at)
        self._hand_in(close, math.inf)
