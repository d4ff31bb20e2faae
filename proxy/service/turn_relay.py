"""Forward the events of this worker's turns to other workers that have readers of them.

A worker with a reader sends ``FollowTurn`` and repeats it. Here it is one more reader of the log, so a turn whose
clients are all connected to other workers has a reader. Without such messages nothing is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from proxy.events import Entry, is_closing
from proxy.service.turn_messages import FollowTurn, ForwardedEvents, ListenToConversations, TurnBegan, encode
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from proxy.turns.log_reader import without_handover
from proxy.turns.worker_messages import MAX_MESSAGE_BYTES, WorkerMessages

COLLECT_SECONDS = 0.02
"""Events of this time are one message."""
FOLLOW_SECONDS = 6.0
"""A worker that has not repeated ``FollowTurn`` for so long has no reader any more."""
LISTEN_SECONDS = 15.0
"""The same for ``ListenToConversations``."""

_Key = tuple[str, str, bool]
"""Turn, worker, and whether its readers are observers."""


class _Follower:
    """A worker that follows a turn of this one."""

    def __init__(self, live: LiveTurn, worker: str, *, after: int, is_observer: bool) -> None:
        self.live = live
        self.worker = worker
        self.after = after
        self.is_observer = is_observer
        self.until = _now() + FOLLOW_SECONDS
        self.has_left = False
        self.task: asyncio.Task[None] | None = None


class TurnRelay:
    """The followers of this worker's turns, and the listeners of conversations, in other workers."""

    def __init__(self, lives: LiveTurns, messages: WorkerMessages) -> None:
        self._lives = lives
        self._messages = messages
        self._followers: dict[_Key, _Follower] = {}
        self._listeners: dict[int, dict[str, float]] = {}
        """By conversation: workers, and until when they listen."""
        self._next_drop = 0.0

    # --- turns ---

    def follow(self, message: FollowTurn) -> None:
        """Forward a turn to a worker. Ignored if the turn is not here: the worker reads its end from the store."""
        live = self._lives.get(message.turn_id)
        if live is None:
            return
        live.is_followed = True
        key = message.turn_id, message.worker, message.is_observer
        follower = self._followers.get(key)
        if follower is not None and message.is_renewal:
            follower.until = _now() + FOLLOW_SECONDS
            return
        if follower is not None and follower.task is not None:
            follower.task.cancel()
        follower = _Follower(live, message.worker, after=message.after, is_observer=message.is_observer)
        self._followers[key] = follower
        follower.task = asyncio.create_task(self._forward(key, follower), name=f"forward {message.turn_id}")

    def unfollow(self, turn_id: str, worker: str, *, is_observer: bool) -> None:
        """Stop to forward a turn to a worker."""
        follower = self._followers.pop((turn_id, worker, is_observer), None)
        if follower is not None and follower.task is not None:
            follower.has_left = True
            follower.task.cancel()

    def is_followed(self, turn_id: str) -> bool:
        """Whether another worker has a reader of the turn."""
        return any(key[0] == turn_id for key in self._followers)

    async def close(self) -> None:
        """Send the ends of turns that are not sent yet, and stop."""
        tasks = [one.task for one in self._followers.values() if one.task is not None]
        ending = [one.task for one in self._followers.values() if one.task is not None and one.live.is_over]
        if ending:
            await asyncio.wait(ending, timeout=1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, key: _Key, follower: _Follower) -> None:
        expiry = asyncio.get_running_loop().call_later(FOLLOW_SECONDS, self._expire, key, follower)
        try:
            await self._send_all(follower)
        finally:
            expiry.cancel()
            if self._followers.get(key) is follower:
                del self._followers[key]
            if follower.has_left and not follower.is_observer:
                follower.live.on_client_disconnect()

    async def _send_all(self, follower: _Follower) -> None:
        live, is_observer = follower.live, follower.is_observer
        start = _index_after(live, follower.after)
        with live.reader(start, is_observer=is_observer) as reader:
            before = live.log.position_before(start)
            after = follower.after if before is None else before
            while True:
                entries = without_handover(await reader.next())
                self._send(follower.worker, live.turn_id, after, entries)
                after = entries[-1].position if entries else after
                if is_closing(entries[-1].event) if entries else live.is_over:
                    return
                await asyncio.sleep(COLLECT_SECONDS)

    def _send(self, worker: str, turn_id: str, after: int, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        message = encode(ForwardedEvents(turn_id, after, list(entries)))
        half = len(entries) // 2
        if len(message) <= MAX_MESSAGE_BYTES // 2 or not half:
            self._messages.send(worker, message)
            return
        self._send(worker, turn_id, after, entries[:half])
        self._send(worker, turn_id, entries[half - 1].position, entries[half:])

    def _expire(self, key: _Key, follower: _Follower) -> None:
        """Stop to forward if the worker has not repeated its message, else check again later."""
        if follower is not self._followers.get(key):
            return
        left = follower.until - _now()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._expire, key, follower)
        else:
            self.unfollow(*key[:2], is_observer=key[2])

    # --- conversations ---

    def listen(self, message: ListenToConversations) -> None:
        """Inform a worker of new turns of these conversations, and of those that run."""
        self._drop_expired_listeners()
        until = _now() + LISTEN_SECONDS
        for conversation in message.conversations:
            self._listeners.setdefault(conversation, {})[message.worker] = until
        running = {live.conversation_key for live in self._lives.running()}
        for begun in running.intersection(message.conversations):
            assert begun is not None
            self._messages.send(message.worker, encode(TurnBegan(begun)))

    def turn_began(self, live: LiveTurn, conversation: int) -> None:
        """Handle that a turn began in this worker."""
        live.conversation_key = conversation
        if not self._listeners:
            return
        self._drop_expired_listeners()
        for worker in self._listeners.get(conversation, ()):
            self._messages.send(worker, encode(TurnBegan(conversation)))

    def _drop_expired_listeners(self) -> None:
        if self._listeners and self._next_drop < (now := _now()):
            self._next_drop = now + 1.0
            alive = {
                conversation: {worker: until for worker, until in workers.items() if until >= now}
                for conversation, workers in self._listeners.items()
            }
            self._listeners = {conversation: workers for conversation, workers in alive.items() if workers}


def _index_after(live: LiveTurn, position: int) -> int:
    """Return the number of entries up to a position."""
    # First: reading the entries can add some.
    entries = live.entries
    return live.length - sum(entry.position > position for entry in entries)


def _now() -> float:
    return asyncio.get_running_loop().time()
