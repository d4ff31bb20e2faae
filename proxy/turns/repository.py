"""Repository protocol of turns; its values are in ``turns.records``.

Every implementation passes ``tests/contracts/test_turn_repository.py``. Guarantees:

- A method is one transaction. Writes are durable when the call returns, except that a crash of the machine can lose the
  beginning of a turn, which is lost with it.
- Every query is limited to ``caller``. Rows of other callers do not exist for it.
- Only *history* is found by fingerprint, has following turns, or is a head: completed turns, turns cancelled on
  request, and unfinished turns whose tools ran. Other turns are stored for audit.
- At most one turn of a conversation is running in each ``slot``, across all workers.
- ``StoreUnavailable`` is raised if the database does not answer in time. No other error of the driver is raised.

Times are seconds since the epoch, passed by the caller of the method. The order is that of ``key``, a sequence, and not
of times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from proxy.auth import may_access
from proxy.messages import Item
from proxy.turns.records import (
    Attendance,
    Begun,
    Branch,
    ChainTurn,
    CompletedTurn,
    Conversation,
    InputMatch,
    LongestMatch,
    NewTurn,
    PollResult,
    Progress,
    TurnEnd,
    TurnMatch,
    TurnRecord,
)


async def accessible_turn(
    turns: TurnRepository, caller: str, turn_id: str, end_user: str
) -> TurnRecord | None:
    """Return a turn of the caller; None if there is none, or if the end user must not access it."""
    record = await turns.turn(caller, turn_id)
    return record if record is not None and may_access(end_user, record.end_user) else None


class IdempotencyKeyTaken(Exception):
    """The caller has used the key before. ``turn_by_idempotency_key`` returns that turn."""


MAX_COMPACTIONS = 100
"""Maximum number of compactions that ``compactions`` returns."""


class TurnRepository(Protocol):
    """The store of turns."""

    async def find_conversation(self, caller: str, conversation_id: str) -> Conversation | None:
        """Return the conversation; None if it does not exist."""
        ...

    async def begin(self, turn: NewTurn, *, parent: CompletedTurn | None = None) -> Begun:
        """Write the turn as running and lock its conversation.

        With ``parent``, that turn is stored first, in the same transaction, and ``turn`` follows it. The head of the
        conversation changes when ``turn`` completes, so that a failed branch leaves it as it was.

        A running turn whose lease expired before ``turn.created_at`` becomes ``interrupted`` and releases the lock.
        An ``end_user`` is written to a conversation that has none.

        Raises:
            ConversationBusy: Another turn of the conversation is running in the same slot.
            IdempotencyKeyTaken: Nothing was written.
            StoreUnavailable: The write may have been applied.
        """
        ...

    async def finish(self, end: TurnEnd) -> bool:
        """Write the end of a running turn in one transaction and release the lock.

        A repetition has no effect. Returns False if the turn was not running any more under this key. If its lease
        expired and it is ``interrupted``, its error code becomes ``turn_lease_lost``; nothing else is written then.
        """
        ...

    async def chain(self, turn: int) -> Sequence[ChainTurn]:
        """Return the turn and its ancestors, the root first.

        If only the last turn and the items are needed, ``branch`` costs less.
        """
        ...

    async def branch(self, turn: int) -> Branch | None:
        """Return the branch that ends with the turn; None if there is no such turn."""
        ...

    async def last_items(self, turn: int, *, limit: int) -> Sequence[Item]:
        """Return the last items of a turn, oldest first; empty if its content is not stored."""
        ...

    async def compactions(self, conversation: int) -> Sequence[Item]:
        """Return the newest items with a compaction on all branches of the conversation, oldest first.

        There are at most ``MAX_COMPACTIONS``.
        """
        ...

    async def find_longest(
        self,
        boundaries: Sequence[tuple[int, bytes]],
        digest: bytes | None,
        *,
        conversation: int | None = None,
        with_branch: bool = True,
    ) -> LongestMatch:
        """Return the turn with the last known fingerprint and its branch; else that of ``find_last_answer``.

        ``boundaries`` are indexes of messages and their fingerprints, in order. One read, which does not look up all of
        them if one of the last is known. Its cost does not grow with the number of turns that share a fingerprint.
        With ``conversation``, only its turns are searched. The branch is read if the turn is unique, and not without
        ``with_branch``.
        """
        ...

    async def find_last_answer(self, digest: bytes, *, conversation: int | None = None) -> TurnMatch | None:
        """Return the newest turn that is history and whose ``last_answer`` is ``digest``."""
        ...

    async def find_by_input(
        self, fingerprints: Sequence[bytes], *, conversation: int | None = None
    ) -> Sequence[InputMatch]:
        """Return the newest turns with these input fingerprints, newest first.

        Only running turns, and turns that ended with ``is_found_by_input`` or were interrupted after their tools ran.
        """
        ...

    async def find_pending(
        self, caller: str, call_ids: Sequence[str], *, conversation: int | None = None
    ) -> Sequence[tuple[str, int]]:
        """Return pairs of call id and turn key for calls of the caller's turns, newest first, answered or not."""
        ...

    async def turn(self, caller: str, turn_id: str) -> TurnRecord | None:
        """Return the turn with this public id; None if it does not exist."""
        ...

    async def turn_by_idempotency_key(self, caller: str, key: str) -> TurnRecord | None:
        """Return the turn that was begun with this key; None if there is none."""
        ...

    async def turn_by_body(self, caller: str, digest: bytes, *, since: float) -> TurnRecord | None:
        """Return the newest turn with this body, if an SDK retry can attach to it.

        The turn must be running or completed, or its content not stored and a tool with effects have run. It must be
        created at or after ``since``, and no turn that is history or running may follow it.
        """
        ...

    async def renew(self, worker: str, *, lease_until: float) -> Sequence[str]:
        """Extend the leases of the worker's running turns; return the ids of turns whose cancellation was requested."""
        ...

    async def request_cancel(self, caller: str, turn_id: str) -> bool:
        """Request the worker of a running turn to cancel it; return False if no such turn is running."""
        ...

    async def interrupt(self, *, now: float, dead_workers: Sequence[str] = ()) -> int:
        """Mark running turns as interrupted whose lease expired or whose worker is dead; return the count.

        A turn with a ``Progress`` becomes history with its items, and keeps its idempotency key if it ran effects.
        """
        ...

    # --- clients that leave, and progress ---

    async def running_turn(self, caller: str, conversation_id: str) -> TurnRecord | None:
        """Return the running turn of a conversation, of several the one with the lowest slot; None if there is none."""
        ...

    async def leave(self, turn: int, *, left_at: float | None, cancel_at: float | None) -> None:
        """Store that the clients of a running turn left, or with None that one returned.

        A completed turn has been left by a client that did not get its end, until a client reads it again.
        """
        ...

    async def attendance(self, turns: Sequence[int]) -> Mapping[int, Attendance]:
        """Return the attendance of those of the turns that are running, by key."""
        ...

    async def announce_reader(self, turn: int, *, until: float) -> None:
        """Store that a client of this worker reads a turn that runs in another worker; an earlier time withdraws it."""
        ...

    async def end_unattended(self, turn: int, *, now: float) -> bool:
        """Let the worker of a running turn cancel it now; return False if it has a reader or must finish."""
        ...

    async def store_progress(self, turn: int, progress: Progress) -> None:
        """Store the items of a running turn so far; no effect if the turn has ended."""
        ...

    async def poll(self, *, turns: Sequence[int], conversations: Sequence[int]) -> PollResult:
        """Return the state of turns and conversations. A turn that is missing has ended; a conversation was deleted."""
        ...

    async def running_workers(self) -> Sequence[str]:
        """Return the distinct workers of all running turns."""
        ...

    async def is_ready(self) -> bool:
        """Whether the database answers."""
        ...

    async def close(self) -> None:
        """Complete pending writes and close the database."""
        ...
