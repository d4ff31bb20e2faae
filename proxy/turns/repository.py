"""What the exchange needs of a store: conversations as trees of turns, in values of our own.

Every implementation passes ``tests/contracts/test_history.py``. What all of them promise:

- A method is one transaction. Writes are durable when the call returns; only a beginning may be lost when the
  machine stops at once, because its turn is lost with it.
- ``caller`` is in every query: what belongs to another caller does not exist.
- Only *history* can be found by fingerprint, extended or be a head: turns that completed, or were cancelled on
  request. Failed, interrupted and left turns stay as rows for audit.
- At most one turn of a conversation is running, over all workers.
- ``StoreUnavailable`` is raised when the database does not answer in time; nothing else of the driver's escapes.

Times are seconds since the epoch (float) given by the caller of the method; order is by ``key`` (a sequence), never
by time.
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
    """A part of a list; ``has_more`` tells whether there are others behind it in the order asked for."""

    data: Sequence[Listed]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation; ``key`` is the store's own, ``head`` the key of its newest turn that is history."""

    key: int
    id: str
    caller: str
    end_user: str
    team: str
    head: int | None
    created_at: float
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn about to run.

    The conversation ``(caller, conversation_id)`` is created when it does not exist. ``parent`` is the key of the turn
    that this one follows; None begins at the root. ``input`` holds what the client said that is not in the chain of
    the parent. With ``is_stored`` false, neither the input nor later items or events are kept.
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
    """Asked for with ``store: true``: shown in the list of stored completions."""
    metadata: Mapping[str, str]
    options: bytes
    """What is needed to encode the answer again (JSON); opaque here."""
    worker: str
    lease_until: float
    created_at: float
    idempotency_key: str | None = None
    body_digest: bytes | None = None
    snapshot: str | None = None
    """The digest of the team, where its caller made it and may change it."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A turn that holds its conversation's lock."""

    turn: int
    conversation: int


@dataclass(frozen=True, slots=True)
class ModelUse:
    """What one agent used of one model during a turn."""

    agent: str
    model: str
    calls: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class NewApproval:
    """A call that the end of a turn asks a person about. ``arguments`` is the JSON text as the model wrote it."""

    id: str
    call_id: str
    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Pause:
    """What a turn leaves behind that asks for approval.

    ``circumstances`` is what a turn needs that goes on without a request of its own (JSON); opaque here.
    """

    approvals: Sequence[NewApproval]
    circumstances: bytes


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended.

    ``is_history`` ends become the conversation's head and can be found by ``fingerprint`` and ``last_answer``.
    ``items`` is what the agents produced, in order (for ends that are not history: what was said so far, for audit).
    ``pending`` are ids of the caller's tool calls that have to be answered next.
    An end that is not history gives the turn's idempotency key back, so that asking again runs it anew.
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
    """Why it failed, or was cancelled."""
    journal: bytes = b""
    """The events (JSON); opaque here."""
    pause: Pause | None = None
    """What it asks approval for; see ``exchange.approvals``."""
    took_up: int | None = None
    """The turn whose approvals it has taken up."""


@dataclass(frozen=True, slots=True)
class TurnMatch:
    """A turn that is history, found by what a client presented."""

    turn: int
    conversation: int
    conversation_id: str
    agent: str
    fingerprint: bytes
    is_unique: bool
    """No other turn that was searched has this fingerprint; else this is the newest of them."""


class ChainTurn(Struct, frozen=True):
    """One turn of a chain with everything the agents see of it: its input, then its items."""

    turn: int
    agent: str
    is_stored: bool
    items: Sequence[Item]
    pending: Sequence[str]
    conversation_id: str = ""
    end_user: str = ""
    fingerprint: bytes | None = None
    is_paused: bool = False
    """It ended with a question for approval."""


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A turn as it stands."""

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

    @property
    def was_run(self) -> bool:
        """Whether agents worked at it; items that a caller adds to a conversation are a turn, too."""
        return self.worker != ""


@dataclass(frozen=True, slots=True)
class PollResult:
    """How turns and conversations stand, by their keys.

    ``running`` are turns that run, with the end of their leases. ``newest`` are conversations that are there, each
    with the newest of its turns that agents worked at and that can be asked for by its id; 0 when it has none.
    """

    running: Mapping[int, float]
    newest: Mapping[int, int]


async def accessible_turn(
    turns: TurnRepository, caller: str, turn_id: str, end_user: str
) -> TurnRecord | None:
    """Return a turn of the caller; None if there is none, or if the end user must not access it."""
    record = await turns.turn(caller, turn_id)
    return record if record is not None and may_access(end_user, record.end_user) else None


class IdempotencyKeyTaken(Exception):
    """The caller already used the key; the turn can be read with ``turn_by_idempotency_key``."""


class TurnRepository(Protocol):
    """The store, as a turn needs it."""

    async def find_conversation(self, caller: str, conversation_id: str) -> Conversation | None:
        """Return the conversation, or None."""
        ...

    async def begin(self, turn: NewTurn) -> Begun:
        """Write the turn as running and take its conversation's lock.

        A running turn whose lease ran out before ``turn.created_at`` becomes ``interrupted`` and gives the lock up.
        An ``end_user`` is written to a conversation that has none.

        Raises:
            ConversationBusy: Another turn of the conversation is running.
            IdempotencyKeyTaken: Nothing was written.
            StoreUnavailable: Nothing is known to be written.
        """
        ...

    async def finish(self, end: TurnEnd) -> bool:
        """Write everything about the end of a running turn at once and release the lock.

        Doing it again changes nothing. Returns False when the turn was no longer running under this key. If its lease
        expired and it is ``interrupted``, its error code becomes ``turn_lease_lost``; nothing else is written then.
        """
        ...

    async def chain(self, turn: int) -> Sequence[ChainTurn]:
        """Return the turn and its ancestors, the root first."""
        ...

    async def find_places(
        self, fingerprints: Sequence[bytes], *, conversation: int | None = None
    ) -> Sequence[TurnMatch]:
        """Return the newest place for every fingerprint that is known, in no certain order.

        With ``conversation``, only its turns are searched. One statement, whose cost does not grow with the number
        of turns that share a fingerprint.
        """
        ...

    async def find_last_answer(self, digest: bytes, *, conversation: int | None = None) -> TurnMatch | None:
        """Return the newest turn that is history and whose ``last_answer`` is ``digest``."""
        ...

    async def find_pending(
        self, caller: str, call_ids: Sequence[str], *, conversation: int | None = None
    ) -> Sequence[tuple[str, int]]:
        """Return (call id, turn key) for those ids that a turn of the caller's is or was waiting for; newest first."""
        ...

    async def turn(self, caller: str, turn_id: str) -> TurnRecord | None:
        """Return a turn by its public id, or None."""
        ...

    async def turn_by_idempotency_key(self, caller: str, key: str) -> TurnRecord | None:
        """Return the turn begun with the key, or None."""
        ...

    async def turn_by_body(self, caller: str, digest: bytes, *, since: float) -> TurnRecord | None:
        """Return the newest turn with this body, if a request that repeats itself can mean it.

        That is if it is running or completed, was created at or after ``since``, and its conversation neither went on
        behind it nor is about to.
        """
        ...

    async def renew(self, worker: str, *, lease_until: float) -> Sequence[str]:
        """Extend the leases of the worker's running turns; return the ids of those whose cancellation was asked for."""
        ...

    async def request_cancel(self, caller: str, turn_id: str) -> bool:
        """Ask the worker of a running turn to stop it; False when no such turn is running."""
        ...

    async def interrupt(self, *, now: float, dead_workers: Sequence[str] = ()) -> int:
        """Mark running turns as interrupted whose lease ran out or whose worker is dead; return how many."""
        ...

    async def poll(self, *, turns: Sequence[int], conversations: Sequence[int]) -> PollResult:
        """Return how these turns and conversations stand; what is missing has ended or is gone."""
        ...

    async def running_workers(self) -> Sequence[str]:
        """Return the distinct workers that running turns name."""
        ...

    async def is_ready(self) -> bool:
        """Whether the database answers."""
        ...

    async def close(self) -> None:
        """Finish what was handed in, and let go of the database."""
        ...
