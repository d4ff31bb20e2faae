"""Follow turns and conversations of other workers.

Their events arrive as messages. The store is polled too, by one query for all waiters of this process: it says which
turns have ended, whose worker has died, and which conversations have new turns if a message was lost. Without waiters
nothing is polled or sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from msgspec.structs import replace

from proxy.errors import StoreUnavailable, TurnTakenOver
from proxy.events import Cancelled, Entry, Started
from proxy.messages import Usage
from proxy.service.leases import is_dead
from proxy.service.recording import entries_of, replay, stored_log
from proxy.service.turn_messages import (
    CancelTurn,
    FollowTurn,
    ForwardedEvents,
    ListenToConversations,
    UnfollowTurn,
    encode,
)
from proxy.turns.live import LiveTurn
from proxy.turns.log_memory import LogMemory
from proxy.turns.log_reader import TERMINAL_POSITION
from proxy.turns.records import TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock
from proxy.turns.worker_messages import WorkerMessages
from proxy.wire.errors import failed_event

RENEW_SECONDS = 1.0
"""Between two messages that a turn still has readers here."""
LISTEN_AGAIN_SECONDS = 5.0
"""Between two messages that conversations still have listeners here."""
LAST_EVENTS_SECONDS = 1.0
"""How long the last events of a turn may take to arrive after its end is stored."""


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


class _Followed:
    """A turn of another worker that has readers here."""

    def __init__(self, record: TurnRecord, live: LiveTurn, started: Started, *, is_observer: bool) -> None:
        self.record = record
        self.live = live
        self.started = started
        self.is_observer = is_observer
        self.last = 0
        """Position of the last event that has arrived."""
        self.has_events = False
        """Whether its worker sends its events."""
        self.is_over = asyncio.Event()
        """The last event has arrived, or the store says that the turn has ended."""
        self.passes_without_reader = 0
        self.task: asyncio.Task[None] | None = None


def _add(followed: _Followed, before: int, entries: Sequence[Entry]) -> None:
    """Add those of the entries that are new; ``before`` is the position of the entry before them."""
    live = followed.live
    for entry in entries:
        if entry.position > followed.last:
            if before != followed.last and not followed.is_observer:
                # Another worker continues from a checkpoint before the last event that readers have.
                failed = failed_event(TurnTakenOver(), Usage(), ran_effects=True)
                live.emit(failed, position=TERMINAL_POSITION)
                break
            live.emit(entry.event, at=entry.time, position=entry.position)
            followed.last = entry.position
        before = entry.position
    if live.is_finished:
        followed.is_over.set()


class RemoteTurns:
    """The readers and listeners of this process; one instance per process."""

    def __init__(
        self,
        history: TurnRepository,
        clock: Clock,
        *,
        worker: str,
        messages: WorkerMessages,
        memory: LogMemory,
        follow: float,
        listen: float,
    ) -> None:
        """Polling intervals in seconds: ``follow`` while a turn is followed, else ``listen``."""
        self._history = history
        self._clock = clock
        self._worker = worker
        self._messages = messages
        self._memory = memory
        self._follow_interval = follow
        self._listen_interval = listen
        self._followed: dict[tuple[str, bool], _Followed] = {}
        """By the id of the turn, and whether the readers are observers."""
        self._listeners: dict[int, set[Listener]] = {}
        """By conversation."""
        self._polling: asyncio.Task[None] | None = None
        self._next_renewal = self._next_listen = 0.0

    @property
    def is_active(self) -> bool:
        """Whether there are readers or listeners."""
        return bool(self._followed or self._listeners)

    # --- conversations ---

    @contextmanager
    def listener(self, conversation: int) -> Iterator[Listener]:
        """Return a listener for the conversation with this key."""
        listener = Listener(conversation)
        self._listeners.setdefault(conversation, set()).add(listener)
        self._messages.broadcast(encode(ListenToConversations(self._worker, [conversation])))
        self._start_polling()
        try:
            yield listener
        finally:
            listeners = self._listeners[conversation]
            listeners.discard(listener)
            if not listeners:
                del self._listeners[conversation]

    def notify_turn_started(self, conversation: int) -> None:
        """Wake the listeners of a conversation, because a turn of it started in any worker."""
        for listener in self._listeners.get(conversation, ()):
            listener.wake()

    def wake_listeners(self) -> None:
        """Wake all listeners, because the server is about to stop."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.wake()

    # --- turns ---

    def follow(self, record: TurnRecord, *, steps: tuple[str, ...], is_observer: bool) -> LiveTurn:
        """Return the log of a turn that runs in another worker. It grows while the turn runs.

        An observer gets ``Started`` immediately. ``steps`` are those of the team.
        """
        key = record.id, is_observer
        followed = self._followed.get(key)
        if followed is not None and not followed.live.is_over:
            followed.passes_without_reader = 0
            return followed.live
        live = LiveTurn(record.id, conversation_id=record.conversation_id, memory=self._memory)
        live.seal()
        started = Started(record.id, record.agent, steps)
        followed = self._followed[key] = _Followed(record, live, started, is_observer=is_observer)
        if is_observer:
            live.emit(started, at=record.created_at)
            followed.last = 1
        followed.task = asyncio.create_task(self._follow(followed), name=f"follow {record.id}")
        self._send_follow(followed)
        self._start_polling()
        return live

    def pause(self, turn_id: str) -> None:
        """Inform the worker of a turn at once that its readers here have left."""
        followed = self._followed.get((turn_id, False))
        if followed is not None and not followed.live.is_over:
            message = UnfollowTurn(self._worker, turn_id, is_observer=False)
            self._messages.send(followed.record.worker, encode(message))

    def resume(self, turn_id: str) -> None:
        """Follow a turn again after ``pause``."""
        followed = self._followed.get((turn_id, False))
        if followed is not None and not followed.live.is_over:
            self._send_follow(followed)

    def receive(self, events: ForwardedEvents) -> None:
        """Take events of a turn from its worker."""
        for is_observer in (False, True):
            followed = self._followed.get((events.turn_id, is_observer))
            if followed is None or followed.live.is_over:
                continue
            followed.has_events = True
            if events.after > followed.last:
                # A message was lost.
                self._send_follow(followed)
            else:
                _add(followed, events.after, events.entries)

    def cancel(self, record: TurnRecord) -> None:
        """Let the worker of a turn cancel it now; the caller stores the request too."""
        self._messages.send(record.worker, encode(CancelTurn(record.id)))

    async def close(self) -> None:
        """Stop. The turns continue, and requests to another worker can attach to them."""
        followed = list(self._followed.values())
        tasks = [one.task for one in followed if one.task is not None]
        for task in (*tasks, *([self._polling] if self._polling is not None else [])):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in followed:
            self._leave(one)

    def _leave(self, followed: _Followed) -> None:
        """End the log of a turn that continues in its worker."""
        record, live = followed.record, followed.live
        self._forget(followed)
        if live.is_over:
            return
        if followed.is_observer:
            live.abandon()
            return
        if not live.length:
            live.emit(followed.started, at=record.created_at)
        live.emit(Cancelled("shutting_down", record.agent, Usage()), position=TERMINAL_POSITION)

    def _forget(self, followed: _Followed) -> None:
        key = followed.record.id, followed.is_observer
        if self._followed.get(key) is not followed:
            return
        del self._followed[key]
        if not followed.live.is_finished:
            message = UnfollowTurn(self._worker, followed.record.id, is_observer=followed.is_observer)
            self._messages.send(followed.record.worker, encode(message))

    async def _follow(self, followed: _Followed) -> None:
        live = followed.live
        ended = await self._end_of(followed)
        record = followed.record
        self._forget(followed)
        if ended is not None and ended.journal:
            _add(followed, 0, entries_of(ended))
        elif ended is not None:
            replay(ended, live, is_observer=followed.is_observer)
        if record.is_stored:
            live.load = partial(stored_log, self._history, record.caller, record.id)

    async def _end_of(self, followed: _Followed) -> TurnRecord | None:
        """Wait for the end of a turn and return it as it is stored; None if all events have arrived.

        If the turn was deleted meanwhile, it is returned as it was.
        """
        record, live = followed.record, followed.live
        await followed.is_over.wait()
        if followed.has_events and not live.is_finished:
            followed.is_over.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_EVENTS_SECONDS):
                    while not live.is_finished:
                        await followed.is_over.wait()
                        followed.is_over.clear()
        if live.is_finished:
            return None
        while True:
            try:
                return await self._history.turn(record.caller, record.id) or record
            except StoreUnavailable:
                await asyncio.sleep(self._follow_interval)

    def _send_follow(self, followed: _Followed, *, is_renewal: bool = False) -> None:
        record = followed.record
        message = FollowTurn(
            self._worker,
            record.id,
            after=followed.last,
            is_observer=followed.is_observer,
            is_renewal=is_renewal,
        )
        self._messages.send(record.worker, encode(message))

    # --- polling ---

    def _start_polling(self) -> None:
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._run_polling(), name="poll remote turns")

    async def _run_polling(self) -> None:
        while self.is_active:
            await asyncio.sleep(self._follow_interval if self._followed else self._listen_interval)
            self._renew()
            with suppress(StoreUnavailable):
                await self._poll()

    def _renew(self) -> None:
        """Repeat what the readers and listeners here need, and drop turns without readers."""
        now = asyncio.get_running_loop().time()
        if self._listeners and now >= self._next_listen:
            self._next_listen = now + LISTEN_AGAIN_SECONDS
            self._messages.broadcast(encode(ListenToConversations(self._worker, list(self._listeners))))
        if now < self._next_renewal:
            return
        self._next_renewal = now + RENEW_SECONDS
        for followed in list(self._followed.values()):
            has_reader = followed.live.is_read
            followed.passes_without_reader = 0 if has_reader else followed.passes_without_reader + 1
            if followed.passes_without_reader > 1 and followed.task is not None:
                # Not at the first pass: a request may be about to read.
                followed.task.cancel()
                self._leave(followed)
            elif has_reader:
                self._send_follow(followed, is_renewal=True)

    async def _poll(self) -> None:
        followed, conversations = list(self._followed.values()), list(self._listeners)
        turns = list({one.record.turn for one in followed})
        result = await self._history.poll(turns=turns, conversations=conversations)
        now = self._clock()
        dead = [worker for worker in set(result.workers.values()) if is_dead(worker)]
        if dead or any(lease_until < now for lease_until in result.running.values()):
            await self._history.interrupt(now=now, dead_workers=dead)
        for one in followed:
            if one.record.turn not in result.running:
                one.is_over.set()
            elif (worker := result.workers[one.record.turn]) != one.record.worker:
                one.record, one.has_events = replace(one.record, worker=worker), False
                self._send_follow(one)
        for conversation in conversations:
            newest = result.newest.get(conversation)
            for listener in self._listeners.get(conversation, ()):
                if newest is None:
                    listener.is_gone = True
                if newest is None or newest > listener.after:
                    listener.wake()
