"""Repository protocol and values of turns: conversations are trees of turns.

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
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from msgspec import Struct

from proxy.auth import may_access
from proxy.messages import FinishReason, Item, Usage

TurnStatus = Literal["running", "completed", "failed", "cancelled", "interrupted"]


Order = Literal["asc", "desc"]
Listed = TypeVar("Listed")


@dataclass(frozen=True, slots=True)
class Page(Generic[Listed]):
    """A part of a list; ``has_more``: more rows follow in the requested order."""

    data: Sequence[Listed]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation; ``key`` is internal to the store, ``head`` is the key of its newest turn that is history."""

    key: int
    id: str
    caller: str
    end_user: str
    team: str
    head: int | None
    created_at: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_running: bool = False
    """Whether a turn of the conversation is running at any worker; set by ``find_conversation`` only."""


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn that is about to run.

    The conversation ``(caller, conversation_id)`` is created if it does not exist. ``parent`` is the key of the turn
    that this one follows; None for a turn at the root. ``input`` are the messages that are not in the chain of the
    parent. If ``is_stored`` is false, input, items and events are not stored.
    """

    id: str
    caller: str
    end_user: str
    conversation_id: str
    team: str
    model: str
    parent: int | None
    agent: str
    input: Sequence[Item]
    is_stored: bool
    is_listed: bool
    """Requested with ``store: true``: included in the list of stored completions."""
    metadata: Mapping[str, str]
    options: bytes
    """Options for encoding the response again, as JSON."""
    worker: str
    lease_until: float
    created_at: float
    idempotency_key: str | None = None
    body_digest: bytes | None = None
    snapshot: str | None = None
    """Digest of the definition of the team; None if it has no versions."""
    input_fingerprint: bytes | None = None
    """Digest of the transcript with the input, before the answer."""
    first_attempt: str | None = None
    """Public id of an earlier attempt at the same request, whose call keys this turn uses."""
    slot: int = 0
    """Turns of a conversation with different slots can run at the same time."""
    checkpoint: bytes | None = None
    """The first checkpoint (``turns.checkpoints``), if another worker continues the turn when this one dies."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Keys of a turn that holds the lock of its conversation."""

    turn: int
    conversation: int


@dataclass(frozen=True, slots=True)
class ModelUse:
    """Usage of one model by one agent during a turn."""

    agent: str
    model: str
    calls: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class NewApproval:
    """A call for which a turn requests approval. ``arguments`` is the JSON text of the model."""

    id: str
    call_id: str
    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Pause:
    """The approvals that a turn requests when it ends.

    ``circumstances`` are the request options that a decision without a request needs, as JSON.
    """

    approvals: Sequence[NewApproval]
    circumstances: bytes


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The end of a turn.

    If ``is_history`` is set, the turn becomes the head of its conversation and is found by ``fingerprint`` and
    ``last_answer``. ``items`` are the messages of the agents in order; if it is not history, those so far, for audit.
    ``pending`` are the ids of calls of client tools that have no result yet.
    """

    turn: int
    status: TurnStatus
    is_history: bool
    agent: str
    items: Sequence[Item]
    uses: Sequence[ModelUse]
    finished_at: float
    fingerprint: bytes | None = None
    last_answer: bytes | None = None
    pending: Sequence[str] = ()
    finish_reason: FinishReason | None = None
    error_code: str | None = None
    """Code of the failure, or reason of the cancellation."""
    journal: bytes = b""
    """The events, as JSON."""
    pause: Pause | None = None
    """The approvals that the turn requests."""
    fence: int = 0
    """How often the turn was taken over. Nothing is stored if another worker has taken it over since."""
    has_checkpoints: bool = False
    took_up: int | None = None
    """The key of the turn whose approvals this turn resumed."""
    keeps_key: bool | None = None
    """Whether the turn keeps its idempotency key; otherwise a retry runs again. None: if it is history."""
    ran_effects: bool = False
    """Whether a tool with effects was started."""
    is_found_by_input: bool = False
    """Whether ``find_by_input`` finds the turn from now on."""


@dataclass(frozen=True, slots=True)
class CompletedTurn:
    """A turn that is stored with its end, without being run; the store sets the key in ``end``."""

    turn: NewTurn
    end: TurnEnd


@dataclass(frozen=True, slots=True)
class TurnMatch:
    """A turn that is history, found by a fingerprint or an answer in a request."""

    turn: int
    conversation: int
    conversation_id: str
    agent: str
    fingerprint: bytes
    is_unique: bool
    """All turns in the search with this fingerprint are in one conversation; this turn is the newest of them. If false,
    another conversation has one too."""


class ChainTurn(Struct, frozen=True, gc=False):
    """One turn of a chain, with the messages that the agents get of it: its input, then its items."""

    turn: int
    agent: str
    is_stored: bool
    items: Sequence[Item]
    pending: Sequence[str]
    conversation_id: str = ""
    end_user: str = ""
    fingerprint: bytes | None = None
    is_paused: bool = False
    """Whether it ended with a question for approval."""
    id: str = ""
    is_complete: bool = True
    """Whether it was not cancelled, failed or interrupted."""
    is_head: bool = False
    """Whether it is the newest turn of its conversation that is history."""


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A stored turn."""

    turn: int
    id: str
    caller: str
    end_user: str
    conversation_id: str
    team: str
    model: str
    parent: int | None
    status: TurnStatus
    is_history: bool
    agent: str
    is_stored: bool
    is_listed: bool
    metadata: Mapping[str, str]
    options: bytes
    worker: str
    lease_until: float
    created_at: float
    finished_at: float | None
    finish_reason: FinishReason | None
    error_code: str | None
    body_digest: bytes | None
    idempotency_key: str | None
    input: Sequence[Item]
    items: Sequence[Item]
    uses: Sequence[ModelUse]
    journal: bytes
    ran_effects: bool = False
    """Whether a tool with effects was started."""
    left_at: float | None = None
    """When the last client left; None while a client reads, and if no client has left."""
    cancel_at: float | None = None
    """When the turn is cancelled if no client returns; None if it is not cancelled."""
    reader_until: float | None = None
    """Until when a client of another worker counts as a reader."""
    first_attempt: str | None = None

    def is_unattended(self, now: float) -> bool:
        """Whether no client reads the running turn, and it is cancelled if none returns."""
        return is_unattended(self.cancel_at, self.reader_until, now)

    @property
    def was_run(self) -> bool:
        """Whether agents ran. Items that a caller adds to a conversation are stored as a turn too."""
        return self.worker != ""


def is_unattended(cancel_at: float | None, reader_until: float | None, now: float) -> bool:
    """Whether no client reads a running turn, and it is cancelled if none returns."""
    return cancel_at is not None and (reader_until is None or reader_until < now)


@dataclass(frozen=True, slots=True)
class InputMatch:
    """A turn that is running, or whose tools ran, found by the digest of the transcript with its input."""

    turn: int
    id: str
    conversation: int
    conversation_id: str
    parent: int | None
    agent: str
    status: TurnStatus
    is_history: bool
    is_stored: bool
    ran_effects: bool
    body_digest: bytes | None
    input_fingerprint: bytes
    left_at: float | None
    cancel_at: float | None
    reader_until: float | None
    created_at: float
    first_attempt: str | None = None


@dataclass(frozen=True, slots=True)
class Attendance:
    """What other workers request of a running turn. Times as in ``TurnRecord``."""

    cancel_at: float | None
    reader_until: float | None
    is_cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """The items of a running turn so far, stored in case its worker dies."""

    agent: str
    items: Sequence[Item]
    ran_effects: bool


@dataclass(frozen=True, slots=True)
class PollResult:
    """State of turns and conversations, by key.

    ``running`` maps running turns to the end of their leases. ``newest`` maps existing conversations to the key of the
    newest turn that agents ran and that has a public id; 0 if there is none.
    """

    running: Mapping[int, float]
    newest: Mapping[int, int]
    workers: Mapping[int, str] = field(default_factory=dict)
    """The workers of the running turns."""


async def accessible_turn(
    turns: TurnRepository, caller: str, turn_id: str, end_user: str
) -> TurnRecord | None:
    """Return a turn of the caller; None if there is none, or if the end user must not access it."""
    record = await turns.turn(caller, turn_id)
    return record if record is not None and may_access(end_user, record.end_user) else None


class IdempotencyKeyTaken(Exception):
    """The caller has used the key before. ``turn_by_idempotency_key`` returns that turn."""


MAX_COMPACTIONS = 100


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
        """Return the turn and its ancestors, the root first."""
        ...

    async def last_items(self, turn: int, *, limit: int) -> Sequence[Item]:
        """Return the last items of a turn, oldest first; empty if its content is not stored."""
        ...

    async def compactions(self, conversation: int) -> Sequence[Item]:
        """Return the newest items with a compaction on all branches of the conversation, oldest first.

        There are at most ``MAX_COMPACTIONS``.
        """
        ...

    async def find_matches(
        self, fingerprints: Sequence[bytes], *, conversation: int | None = None
    ) -> Sequence[TurnMatch]:
        """Return the newest turn with each known fingerprint, in any order.

        With ``conversation``, only its turns are searched. One statement, whose cost does not grow with the number
        of turns that share a fingerprint.
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
        """Store that the clients of a running turn left, or with None that one returned."""
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
