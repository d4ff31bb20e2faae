"""Values of conversations and turns, as the store returns and writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, Literal, TypeVar

from msgspec import Struct, field

from proxy.messages import FinishReason, Item, Usage

TurnStatus = Literal["running", "completed", "failed", "cancelled", "interrupted"]
Order = Literal["asc", "desc"]
Listed = TypeVar("Listed")


class Page(Struct, Generic[Listed], frozen=True):
    """A part of a list; ``has_more``: more rows follow in the requested order."""

    data: Sequence[Listed]
    has_more: bool


class Conversation(Struct, frozen=True):
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


class NewTurn(Struct, frozen=True):
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
    is_at_head: bool = False
    """The turn begins only while its parent is the head of the conversation (None: while that has no head)."""
    checkpoint: bytes | None = None
    """The first checkpoint (``turns.checkpoints``), if another worker continues the turn when this one dies."""


class Begun(Struct, frozen=True):
    """Keys of a turn that holds the lock of its conversation."""

    turn: int
    conversation: int


class ModelUse(Struct, frozen=True):
    """Usage of one model by one agent during a turn."""

    agent: str
    model: str
    calls: int
    usage: Usage


class NewApproval(Struct, frozen=True):
    """A call for which a turn requests approval. ``arguments`` is the JSON text of the model."""

    id: str
    call_id: str
    tool: str
    arguments: str


class Pause(Struct, frozen=True):
    """The approvals that a turn requests when it ends.

    ``circumstances`` are the request options that a decision without a request needs, as JSON.
    """

    approvals: Sequence[NewApproval]
    circumstances: bytes


class TurnEnd(Struct, frozen=True):
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


class CompletedTurn(Struct, frozen=True):
    """A turn that is stored with its end, without being run; the store sets the key in ``end``."""

    turn: NewTurn
    end: TurnEnd


class TurnMatch(Struct, frozen=True):
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


class Branch(Struct, frozen=True, gc=False):
    """A turn with the messages of all turns up to it: what a new turn continues."""

    last: ChainTurn
    items: Sequence[Item]
    """The items of the chain, the root first; they end with those of ``last``."""
    is_stored: bool = True
    """Whether the content of all turns of the chain is stored."""
    fingerprint: bytes | None = None
    """The newest fingerprint in the chain."""
    unknown: int = 0
    """The number of items of the turns behind the one with the fingerprint; of all turns if there is none."""

    @classmethod
    def of(cls, chain: Sequence[ChainTurn]) -> Branch:
        """Return the branch that ends with the last turn of a chain, which is not empty."""
        known = next((at for at in range(len(chain) - 1, -1, -1) if chain[at].fingerprint is not None), -1)
        return cls(
            last=chain[-1],
            items=[item for turn in chain for item in turn.items],
            is_stored=all(turn.is_stored for turn in chain),
            fingerprint=chain[known].fingerprint if known >= 0 else None,
            unknown=sum([len(turn.items) for turn in chain[known + 1 :]]),
        )


class LongestMatch(Struct, frozen=True):
    """The stored turn whose transcript is the longest known beginning of a list of messages."""

    place: TurnMatch | None = None
    """The newest turn with that transcript; None if no beginning is known."""
    index: int = -1
    """The index of the last message of the transcript."""
    branch: Branch | None = None
    """That of ``place``, if it is unique; None if it was not requested."""
    latest: TurnMatch | None = None
    """The newest turn with the last answer of the list, if no beginning is known."""


class TurnRecord(Struct, frozen=True):
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


class InputMatch(Struct, frozen=True):
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


class Attendance(Struct, frozen=True):
    """What other workers request of a running turn. Times as in ``TurnRecord``."""

    cancel_at: float | None
    reader_until: float | None
    is_cancel_requested: bool


class Progress(Struct, frozen=True):
    """The items of a running turn so far, stored in case its worker dies."""

    agent: str
    items: Sequence[Item]
    ran_effects: bool


class PollResult(Struct, frozen=True):
    """State of turns and conversations, by key.

    ``running`` maps running turns to the end of their leases. ``newest`` maps existing conversations to the key of the
    newest turn that agents ran and that has a public id; 0 if there is none.
    """

    running: Mapping[int, float]
    newest: Mapping[int, int]
    workers: Mapping[int, str] = field(default_factory=dict)
    """The workers of the running turns."""
