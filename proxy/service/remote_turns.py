"""What other workers do: turns that end there, and conversations that go on there.

One look at the store serves everyone in this process who waits for that, and there is none while nobody waits.
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
    """Waits for a conversation to go on. ``after`` is the key of the newest turn that its reader knows."""

    def __init__(self, conversation: int) -> None:
        self.conversation = conversation
        self.after = 0
        self.is_gone = False
        """The conversation was deleted."""
        self._woken = asyncio.Event()

    async def wait(self) -> None:
        """Return at once if there was news since the last call, else when there is, or after ``wake``."""
        await self._woken.wait()
        self._woken.clear()

    def wake(self) -> None:
        """Let a waiting ``wait`` return, or the next one."""
        self._woken.set()

    def wake_in(self, seconds: float) -> None:
        """Do so a little later."""
        asyncio.get_running_loop().call_later(seconds, self.wake)


class RemoteTurns:
    """One for each process."""

    def __init__(self, history: TurnRepository, clock: Clock, *, follow: float, listen: float) -> None:
        """Seconds from one look to the next: while a turn is followed, and while conversations are listened to."""
        self._history = history
        self._clock = clock
        self._follow_interval = follow
        self._listen_interval = listen
        self._ends: dict[int, set[asyncio.Event]] = {}
        """By turn, who waits for its end."""
        self._listeners: dict[int, set[Listener]] = {}
        """By conversation."""
        self._looking: asyncio.Task[None] | None = None
        self._following: set[asyncio.Task[None]] = set()

    # --- conversations ---

    @contextmanager
    def listener(self, conversation: int) -> Iterator[Listener]:
        """Give a listener of the conversation with this key."""
        listener = Listener(conversation)
        self._listeners.setdefault(conversation, set()).add(listener)
        self._look()
        try:
            yield listener
        finally:
            _discard(self._listeners, conversation, listener)

    def notify_turn_started(self, conversation: int) -> None:
        """Tell those who listen that a turn began here."""
        for listener in self._listeners.get(conversation, ()):
            listener.wake()

    def wake_listeners(self) -> None:
        """Let everyone who listens look around, because the server is about to stop."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.wake()

    # --- turns ---

    def follow(
        self, record: TurnRecord, live: LiveTurn, *, steps: tuple[str, ...], is_observer: bool
    ) -> None:
        """Log the turn when it has ended, or its worker; an observer is told at once that it began.

        ``steps`` are those of its team.
        """
        began = Started(record.id, record.agent, steps)
        following = self._follow(record, live, began, is_observer=is_observer)
        task = asyncio.create_task(following, name=f"follow {record.id}")
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def close(self) -> None:
        """Follow nothing any more. The turns go on: whoever asks another worker for them finds them there."""
        tasks = [*self._following, *([self._looking] if self._looking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, record: TurnRecord, live: LiveTurn, began: Started, *, is_observer: bool) -> None:
        live.seal()
        if is_observer:
            live.emit(began, at=record.created_at)
        try:
            ended = await self._end_of(record)
        except asyncio.CancelledError:
            if is_observer:
                live.abandon()
            else:
                live.emit(began, at=record.created_at)
                live.emit(Cancelled("shutting_down", record.agent, Usage()), position=TERMINAL_POSITION)
            raise
        replay(ended, live, is_observer=is_observer)

    async def _end_of(self, record: TurnRecord) -> TurnRecord:
        """Return the turn when it no longer runs, as it was if it is no longer there either."""
        ended = asyncio.Event()
        self._ends.setdefault(record.turn, set()).add(ended)
        self._look()
        try:
            await ended.wait()
        finally:
            _discard(self._ends, record.turn, ended)
        while True:
            try:
                return await self._history.turn(record.caller, record.id) or record
            except StoreUnavailable:
                await asyncio.sleep(self._follow_interval)

    # --- looking ---

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_around(), name="looking elsewhere")

    async def _look_around(self) -> None:
        while self._ends or self._listeners:
            await asyncio.sleep(self._follow_interval if self._ends else self._listen_interval)
            try:
                await self._look_once()
            except StoreUnavailable:
                continue

    async def _look_once(self) -> None:
        turns, conversations = list(self._ends), list(self._listeners)
        seen = await self._history.poll(turns=turns, conversations=conversations)
        now = self._clock()
        if any(lease_until < now for lease_until in seen.running.values()):
            await self._history.interrupt(now=now)
        for turn in turns:
            if turn not in seen.running:
                for ended in self._ends.get(turn, ()):
                    ended.set()
        for conversation in conversations:
            newest = seen.newest.get(conversation)
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
