"""Requests for a conversation that has a running turn: run in parallel, queue, or interrupt the running turn.

Requests of one process that queue for a conversation begin in the order of their arrival.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from proxy.conversations.fingerprints import user_text
from proxy.conversations.resolver import ResolvedTurn
from proxy.errors import ConversationBusy
from proxy.messages import Item, UserMessage, text_of
from proxy.turns.contract import ServedTeam
from proxy.turns.live_turns import LiveTurns
from proxy.turns.records import TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import TurnRequest

ClientLeft = Callable[[], Awaitable[None]]
"""Waits until the client of a request disconnects, and raises an exception then."""
CancelTurn = Callable[[str, str], Awaitable[object]]
"""Cancels a turn, by caller and id."""
EndLeftTurn = Callable[[TurnRecord], Awaitable[bool]]
"""Ends a turn whose client has left; False if it has a client."""


class ConversationHeld(ConversationBusy):
    """A turn of this conversation is running, and the request can wait for its end."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__()
        self.conversation_id = conversation_id


def parallel_slot(request: TurnRequest, team: ServedTeam, resolved: ResolvedTurn, running: TurnRecord) -> int:
    """Return the slot in which the turn can run at the same time as the running one; 0 if it has to wait.

    A frontend sends the whole list to each of several models that answer in one chat, and each answer is a branch. Only
    a list that continues behind the messages of the running turn is a new message to it.
    """
    if request.id_source != "frontend-header" or resolved.is_paused or resolved.step is not None:
        return 0
    if running.team == team.name and _follows(resolved, running):
        return 0
    return secrets.randbelow(2**31 - 1) + 1


def is_repetition(request: TurnRequest, record: TurnRecord) -> bool:
    """Whether a request is marked as the same as that of the turn: by its idempotency key, or as a retry."""
    if request.body_digest is None or record.body_digest != request.body_digest:
        return False
    return request.is_retry or (
        request.idempotency_key is not None and record.idempotency_key == request.idempotency_key
    )


def has_same_input(resolved: ResolvedTurn, running: TurnRecord) -> bool:
    """Whether the new messages are those of the running turn, or begin with them."""
    if resolved.parent != running.parent:
        return False
    new, before = _user_texts(resolved.new_messages), _user_texts(running.input)
    return new[: len(before)] == before


def _follows(resolved: ResolvedTurn, running: TurnRecord) -> bool:
    """Whether the new messages begin with those of the running turn, and have more."""
    more = len(_user_texts(resolved.new_messages)) > len(_user_texts(running.input))
    return more and has_same_input(resolved, running)


def _user_texts(items: Sequence[Item]) -> list[bytes]:
    return [user_text(text_of(item.message)) for item in items if isinstance(item.message, UserMessage)]


class ConversationQueues:
    """The queues of this process. ``poll`` and ``time_limit`` are in seconds."""

    def __init__(
        self,
        history: TurnRepository,
        lives: LiveTurns,
        cancel: CancelTurn,
        end_left: EndLeftTurn,
        *,
        poll: float,
        time_limit: float,
    ) -> None:
        self._history = history
        self._lives = lives
        self._cancel = cancel
        self._end_left = end_left
        self._poll = poll
        self._time_limit = time_limit
        self._queues: dict[tuple[str, str], list[asyncio.Event]] = {}
        """The events of the waiting requests in order; the first one is set."""

    def __len__(self) -> int:
        """The number of requests in the queues."""
        return sum(map(len, self._queues.values()))

    def has_queue(self, caller: str, conversation_id: str | None) -> bool:
        """Whether requests wait for this conversation, so that another one has to queue behind them."""
        return conversation_id is not None and (caller, conversation_id) in self._queues

    @asynccontextmanager
    async def place(self, caller: str, conversation_id: str, left: ClientLeft | None) -> AsyncIterator[None]:
        """Wait for the earlier requests of the queue; the next one waits until the block ends."""
        key, mine = (caller, conversation_id), asyncio.Event()
        queue = self._queues.setdefault(key, [])
        queue.append(mine)
        queue[0].set()
        try:
            await _while_connected(mine.wait, left)
            yield
        finally:
            queue.remove(mine)
            if queue:
                queue[0].set()
            else:
                del self._queues[key]

    async def wait(
        self, request: TurnRequest, conversation_id: str, left: ClientLeft | None, *, interrupts: bool
    ) -> None:
        """Wait until no turn of the conversation is running; with ``interrupts``, cancel it before.

        The wait also ends when the running turn is that of the same request, which arrived twice.

        Raises:
            ConversationBusy: The turn is still running after the time limit.
        """
        caller = request.caller

        async def ended() -> None:
            while (record := await self._history.running_turn(caller, conversation_id)) is not None:
                if is_repetition(request, record):
                    return
                if interrupts:
                    await self._cancel(caller, record.id)
                elif await self._end_left(record):
                    continue
                live = self._lives.get(record.id)
                if live is not None and live.task is not None:
                    await asyncio.wait([live.task], timeout=self._poll)
                else:
                    await asyncio.sleep(self._poll)

        try:
            async with asyncio.timeout(self._time_limit):
                await _while_connected(ended, left)
        except TimeoutError:
            raise ConversationBusy from None


async def _while_connected(work: Callable[[], Awaitable[object]], left: ClientLeft | None) -> None:
    """Wait for the work; if the client disconnects before, cancel it and raise the exception of ``left``."""
    tasks = [asyncio.ensure_future(one()) for one in (work, left) if one is not None]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
