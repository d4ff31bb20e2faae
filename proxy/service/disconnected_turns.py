"""Turns whose client has left: they wait for a client that returns, at this worker or at another one, or are cancelled.

A turn that waits starts neither a model call nor a tool call. A tool call that is running is not interrupted before its
end if it has effects. A turn with an idempotency key that has run a tool with effects does not wait: it finishes.

Workers inform each other through the store. It is polled only while a client has left a turn that runs here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from proxy.errors import StoreUnavailable
from proxy.service.disconnect_rules import DisconnectRules
from proxy.service.remote_turns import RemoteTurns
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from proxy.turns.records import Attendance, TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock
from proxy.turns.turn import Turn

logger = logging.getLogger(__name__)

READER_LEASE, READER_INTERVAL = 5.0, 1.0
"""Seconds for which a reader at another worker counts, and interval at which it is stored."""
END_TIMEOUT, END_INTERVAL = 5.0, 0.05
"""Seconds to wait for another worker to end a turn, and polling interval."""


class TurnWatch(Struct, eq=False):
    """Applies the rules to a turn of this worker when its clients leave; ``live.watcher`` is this object."""

    owner: DisconnectedTurns
    live: LiveTurn
    turn: Turn
    key: int
    rules: DisconnectRules
    waits_from: float | None = None
    """Time of the event loop at which the last reader left; None while the turn has a reader."""
    left_at: float | None = None
    """The stored times, to recognise changes by other workers."""
    cancel_at: float | None = None
    check_at: float = 0.0
    """Time of the event loop before which only a change of its attendance changes anything for it."""

    def left(self, *, can_return: bool) -> None:
        """Handle that the last client left."""
        self.owner.on_left(self, can_return=can_return)

    def returned(self) -> None:
        """Handle that a client returned."""
        self.owner.on_returned(self)

    async def store_departure(self) -> None:
        """Write that the client left, if a repetition of the request would repeat effects."""
        if self.turn.ran_effects:
            await self.owner.write_departure(self)

    def missed_end(self) -> None:
        """Store that the answer was not read, if a repetition of the request would repeat effects."""
        if self.turn.ran_effects:
            self.owner.withdraw_end(self.key)


class _RemoteWatch(Struct, eq=False):
    """The readers here of a turn of another worker; ``live.watcher`` is this object."""

    owner: DisconnectedTurns
    record: TurnRecord
    live: LiveTurn
    remote: RemoteTurns
    has_left: bool = False

    def left(self, *, can_return: bool) -> None:
        """Inform the worker of the turn that the last client left."""
        self.has_left = True
        self.remote.pause(self.record.id)
        self.owner.withdraw_reader(self.record)

    def returned(self) -> None:
        """Inform the worker of the turn that a client reads it again."""
        if self.has_left:
            self.has_left = False
            self.remote.resume(self.record.id)
            self.owner.announce_reader(self.record, self.live)

    async def store_departure(self) -> None:
        """Do nothing: the turn ends at another worker."""

    def missed_end(self) -> None:
        """Store that the answer was not read."""
        self.owner.withdraw_end(self.record.turn)


class _ReplayWatch(Struct, eq=False):
    """The readers of a completed turn whose answer was not read before; ``live.watcher`` is this object."""

    owner: DisconnectedTurns
    key: int

    def left(self, *, can_return: bool) -> None:
        """Do nothing: the turn has ended."""

    def returned(self) -> None:
        """Do nothing: the turn has ended."""

    async def store_departure(self) -> None:
        """Do nothing: the turn has ended."""

    def missed_end(self) -> None:
        """Store that the answer was not read this time either."""
        self.owner.withdraw_end(self.key)


@dataclass(slots=True)
class DisconnectedTurns:
    """The turns of this worker whose clients left, and the readers here of turns of other workers."""

    history: TurnRepository
    lives: LiveTurns
    clock: Clock
    interval: float
    """Polling interval in seconds."""
    _left: dict[int, TurnWatch] = field(default_factory=dict)
    """By the key of the turn in the store."""
    _check_at: float = 0.0
    """The earliest ``check_at`` of these."""
    _unwritten: set[TurnWatch] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _watching: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _announced: set[int] = field(default_factory=set)
    _attendance: Mapping[int, Attendance] | None = None
    """The attendance at the last check; None if it could not be read."""
    _is_closing: bool = False

    def __len__(self) -> int:
        return len(self._left)

    def watch_remote(self, record: TurnRecord, live: LiveTurn, remote: RemoteTurns) -> None:
        """Inform the other workers of the readers here of a turn that runs in another worker."""
        if live.watcher is None:
            live.watcher = _RemoteWatch(self, record, live, remote)
        self.announce_reader(record, live)

    def announce_reader(self, record: TurnRecord, live: LiveTurn) -> None:
        """Store that a client here reads a turn that runs in another worker, as long as ``live`` has a reader."""
        if record.turn not in self._announced:
            self._announced.add(record.turn)
            self._start(self._announce(record.turn, live), f"reader of {record.id}")

    def withdraw_reader(self, record: TurnRecord) -> None:
        """Store that the clients here have left."""
        self._start(self._write_reader(record.turn, self.clock()), f"no reader of {record.id}")

    def watch_replay(self, record: TurnRecord, live: LiveTurn) -> None:
        """Store that a client reads the answer of a completed turn, which none has read before."""
        if live.watcher is None:
            live.watcher = _ReplayWatch(self, record.turn)
        self._start(self._write_end(record.turn, None), "answer that is read")

    async def write_departure(self, watch: TurnWatch) -> None:
        """Write that the client of a turn left, if that is waiting to be written."""
        if watch not in self._unwritten or watch.left_at is None:
            return
        self._unwritten.discard(watch)
        try:
            await self._write_all([watch])
        except StoreUnavailable:
            logger.warning("failed to store that clients left turns")
            if not self._is_closing:
                self._write(watch)

    def withdraw_end(self, turn: int) -> None:
        """Store that no client has read the answer of a turn to its end."""
        self._start(self._write_end(turn, self.clock()), "answer that was not read")

    def _start(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def is_unattended(self, record: TurnRecord) -> bool:
        """Whether a running turn has no readers at any worker, and is cancelled if none returns."""
        live = self.lives.get(record.id)
        if live is None or live.task is None:
            return record.is_unattended(self.clock())
        is_read_at_another_worker = record.reader_until is not None and record.reader_until >= self.clock()
        return self._is_left(live) and not live.clients and not is_read_at_another_worker

    def ran_effects(self, record: TurnRecord) -> bool:
        """Whether a running turn has started a tool with effects."""
        live = self.lives.get(record.id)
        watch = live.watcher if live is not None else None
        return record.ran_effects or (isinstance(watch, TurnWatch) and watch.turn.ran_effects)

    def finishes_without_client(self, record: TurnRecord) -> bool:
        """Whether the client of a running turn has left, none reads it, and the turn finishes nevertheless."""
        if record.left_at is None or record.cancel_at is not None:
            return False
        live = self.lives.get(record.id)
        has_remote_reader = record.reader_until is not None and record.reader_until >= self.clock()
        return not has_remote_reader and (live is None or not live.clients)

    async def end(self, record: TurnRecord) -> bool:
        """End a running turn if it is unattended, and wait for its end; return whether it has ended."""
        if not self.is_unattended(record):
            return False
        live = self.lives.get(record.id)
        if live is None or live.task is None:
            now = self.clock()
            return await self.history.end_unattended(record.turn, now=now) and await self._has_ended(
                record.turn
            )
        live.stop("client_left")
        await asyncio.wait([live.task])
        return True

    async def close(self) -> None:
        """Cancel the turns that wait, and stop. Turns whose clients leave later are cancelled immediately."""
        self._is_closing = True
        for watch in self._left.values():
            if not watch.rules.finishes(watch.turn):
                watch.live.stop("client_left")
        tasks = [*self._tasks, *([self._watching] if self._watching is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- callbacks of turns ---

    def on_left(self, watch: TurnWatch, *, can_return: bool) -> None:
        """Start to wait for a client."""
        if self._is_closing or not can_return:
            if not watch.rules.finishes(watch.turn):
                watch.live.stop("client_left")
            return
        now = self.clock()
        watch.waits_from = asyncio.get_running_loop().time()
        watch.check_at = self._check_at = 0.0
        watch.left_at = now
        watch.cancel_at = None if watch.rules.grace is None else now + watch.rules.grace_of(watch.turn)
        if not watch.rules.finishes(watch.turn):
            watch.live.pause()
        self._left[watch.key] = watch
        self._write(watch)

    def on_returned(self, watch: TurnWatch) -> None:
        """Continue, because a client reads the turn again."""
        watch.live.resume()
        if watch.left_at is not None:
            watch.waits_from = watch.left_at = watch.cancel_at = None
            self._left.pop(watch.key, None)
            self._write(watch)

    def _is_left(self, live: LiveTurn) -> bool:
        watch = live.watcher
        return isinstance(watch, TurnWatch) and watch.waits_from is not None and watch.rules.grace is not None

    # --- watching ---

    def _write(self, watch: TurnWatch) -> None:
        self._unwritten.add(watch)
        self._wake.set()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch_left(), name="turns without clients")

    async def _watch_left(self) -> None:
        while self._left or self._unwritten:
            self._wake.clear()
            try:
                await self._check()
            except Exception:
                # Without this task, turns would wait for ever.
                logger.exception("failed to check turns without clients")
            if (self._left or self._unwritten) and not self._wake.is_set():
                asyncio.get_running_loop().call_later(self.interval, self._wake.set)
                await self._wake.wait()

    async def _check(self) -> None:
        attendance: Mapping[int, Attendance] | None = None
        try:
            while self._unwritten:
                changed = [*self._unwritten]
                self._unwritten.clear()
                # Together: one after the other would take a commit each.
                await self._write_all(changed)
            keys = [*self._left]
            attendance = await self.history.attendance(keys) if keys else {}
        except StoreUnavailable:
            logger.warning("failed to store that clients left turns")
        now = asyncio.get_running_loop().time()
        if attendance is not None and attendance == self._attendance and now < self._check_at:
            # The usual result: hundreds of turns can wait, and nothing has changed for any of them.
            return
        for watch in [*self._left.values()]:
            found = attendance.get(watch.key) if attendance is not None else None
            if watch.live.is_finished or not self._waits(watch, found):
                self._left.pop(watch.key, None)
        self._check_at = min([watch.check_at for watch in self._left.values()], default=0.0)
        # Last: after a failure, the next check applies the rules to all of them.
        self._attendance = attendance

    async def _write_all(self, watches: Sequence[TurnWatch]) -> None:
        """Write who left turns, or returned to them. What was not written is written later.

        Raises:
            StoreUnavailable: Some of it was not written.
        """
        writes = [
            self.history.leave(watch.key, left_at=watch.left_at, cancel_at=watch.cancel_at)
            for watch in watches
        ]
        results = await asyncio.gather(*writes, return_exceptions=True)
        self._unwritten.update(
            watch
            for watch, result in zip(watches, results, strict=True)
            if isinstance(result, StoreUnavailable)
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _waits(self, watch: TurnWatch, attendance: Attendance | None) -> bool:
        """Apply the rules to a turn without local readers; return whether it still waits."""
        live, rules, turn = watch.live, watch.rules, watch.turn
        now = asyncio.get_running_loop().time()
        if rules.grace is None or watch.waits_from is None:
            return False
        if attendance is not None:
            if attendance.reader_until is not None and attendance.reader_until >= self.clock():
                watch.waits_from, watch.check_at = now, 0.0
                live.resume()
                return True
            if attendance.is_cancel_requested:
                live.stop("requested")
                return False
            # A time that was being written while the client left again is not a request.
            if watch not in self._unwritten and attendance.cancel_at not in (None, watch.cancel_at):
                live.stop("client_left")
                return False
        if rules.finishes(turn):
            live.resume()
            return True
        over_at = watch.waits_from + rules.grace_of(turn)
        if now >= over_at and (rules.is_immediate or not turn.running_effects):
            live.stop("client_left")
            return False
        # A turn with a key finishes as soon as it has run effects.
        watch.check_at = now if rules.has_key else over_at
        live.pause()
        return True

    # --- other workers ---

    async def _announce(self, turn: int, live: LiveTurn) -> None:
        try:
            while not live.is_over:
                await self._write_reader(turn, self.clock() + READER_LEASE)
                await asyncio.sleep(READER_INTERVAL)
                if not live.clients:
                    return
        finally:
            self._announced.discard(turn)

    async def _write_reader(self, turn: int, until: float) -> None:
        try:
            await self.history.announce_reader(turn, until=until)
        except StoreUnavailable:
            logger.warning("failed to store the reader of a turn")

    async def _write_end(self, turn: int, left_at: float | None) -> None:
        try:
            await self.history.leave(turn, left_at=left_at, cancel_at=None)
        except StoreUnavailable:
            logger.warning("failed to store whether an answer was read")

    async def _has_ended(self, turn: int) -> bool:
        for _ in range(round(END_TIMEOUT / END_INTERVAL)):
            if not await self.history.attendance([turn]):
                return True
            await asyncio.sleep(END_INTERVAL)
        return False
