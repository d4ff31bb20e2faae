"""Follow turns and conversations of other workers by polling the store.

One query serves all waiters of this process; without waiters there is no polling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from proxy.errors import StoreUnavailable
from proxy.events import Cancelled, Started
from proxy.messages import Usage
from proxy.service.recording import replay
from proxy.turns.live import TERMINAL_POSITION, LiveTurn
from proxy.turns.repository import TurnRecord, TurnRepository
from proxy.turns.request import Clock

W = TypeVar("W")


class Listener:
    """Waits for new turns of a conversation. ``after`` is the key of the newest turn that its reader has."""

    def __init__(self, conversation: int) -> None:
        self.conversation = conversation
        self.after = 0
        self.is_gone = False
        """The conversation was deleted."""
        self._woken = asyncio.Event()

    async def wait(self) -> None:
        """Wait until there is a turn after ``after``, the conversation is deleted, or ``wake`` is called.

        Returns immediately if that happened since the last call.
        """
        await self._woken.wait()
        self._woken.clear()

    def wake(self) -> None:
        """Let the current call of ``wait``, or the next one, return."""
        self._woken.set()

    def wake_in(self, seconds: float) -> None:
        """Call ``wake`` after ``seconds``."""
        asyncio.get_running_loop().call_later(seconds, self.wake)


class RemoteTurns:
    """The polling of this process; one instance per process."""

    def __init__(self, history: TurnRepository, clock: Clock, *, follow: float, listen: float) -> None:
        """Polling intervals in seconds: ``follow`` while a turn is followed, else ``listen``."""
        self._history = history
        self._clock = clock
        self._follow_interval = follow
        self._listen_interval = listen
        self._ends: dict[int, set[asyncio.Event]] = {}
        """The waiters for the end of a turn, by turn."""
        self._listeners: dict[int, set[Listener]] = {}
        """By conversation."""
        self._polling: asyncio.Task[None] | None = None
        self._follow_tasks: set[asyncio.Task[None]] = set()

    # --- conversations ---

    @contextmanager
    def listener(self, conversation: int) -> Iterator[Listener]:
        """Return a listener for the conversation with this key."""
        listener = Listener(conversation)
        self._listeners.setdefault(conversation, set()).add(listener)
        self._start_polling()
        try:
            yield listener
        finally:
            _discard(self._listeners, conversation, listener)

    def notify_turn_started(self, conversation: int) -> None:
        """Wake the listeners of a conversation, because a turn of it started in this worker."""
        for listener in self._listeners.get(conversation, ()):
            listener.wake()

    def wake_listeners(self) -> None:
        """Wake all listeners, because the server is about to stop."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.wake()

    # --- turns ---

    def follow(
        self, record: TurnRecord, live: LiveTurn, *, steps: tuple[str, ...], is_observer: bool
    ) -> None:
        """Fill ``live`` when the turn has ended or its worker has died.

        An observer gets ``Started`` immediately. ``steps`` are those of the team.
        """
        started = Started(record.id, record.agent, steps)
        follow = self._follow(record, live, started, is_observer=is_observer)
        task = asyncio.create_task(follow, name=f"follow {record.id}")
        self._follow_tasks.add(task)
        task.add_done_callback(self._follow_tasks.discard)

    async def close(self) -> None:
        """Stop follow. The turns continue, and requests to another worker can attach to them."""
        tasks = [*self._follow_tasks, *([self._polling] if self._polling is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(
        self, record: TurnRecord, live: LiveTurn, started: Started, *, is_observer: bool
    ) -> None:
        live.seal()
        if is_observer:
            live.emit(started, at=record.created_at)
        try:
            ended = await self._end_of(record)
        except asyncio.CancelledError:
            if is_observer:
                live.abandon()
            else:
                live.emit(started, at=record.created_at)
                live.emit(Cancelled("shutting_down", record.agent, Usage()), position=TERMINAL_POSITION)
            raise
        replay(ended, live, is_observer=is_observer)

    async def _end_of(self, record: TurnRecord) -> TurnRecord:
        """Return the turn when it has ended; if it was deleted meanwhile, as it was."""
        ended = asyncio.Event()
        self._ends.setdefault(record.turn, set()).add(ended)
        self._start_polling()
        try:
            await ended.wait()
        finally:
            _discard(self._ends, record.turn, ended)
        while True:
            try:
                return await self._history.turn(record.caller, record.id) or record
            except StoreUnavailable:
                await asyncio.sleep(self._follow_interval)

    # --- polling ---

    def _start_polling(self) -> None:
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._run_polling(), name="poll remote turns")

    async def _run_polling(self) -> None:
        while self._ends or self._listeners:
            await asyncio.sleep(self._follow_interval if self._ends else self._listen_interval)
            try:
                await self._poll()
            except StoreUnavailable:
                continue

    async def _poll(self) -> None:
        turns, conversations = list(self._ends), list(self._listeners)
        result = await self._history.poll(turns=turns, conversations=conversations)
        now = self._clock()
        if any(lease_until < now for lease_until in result.running.values()):
            await self._history.interrupt(now=now)
        for turn in turns:
            if turn not in result.running:
                for ended in self._ends.get(turn, ()):
                    ended.set()
        for conversation in conversations:
            newest = result.newest.get(conversation)
            for listener in self._listeners.get(conversation, ()):
                if newest is None:
                    listener.is_gone = True
                if newest is None or newest > listener.after:
                    listener.wake()


def _discard(waiting: dict[int, set[W]], key: int, one: W) -> None:
    of_key = waiting[key]
    of_key.discard(one)
    if not of_key:
        del waiting[key]
