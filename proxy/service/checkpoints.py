"""Checkpoints of the turns of this worker: what is saved of a turn, and when.

A turn that is detached or in the background, or that has an idempotency key, has checkpoints from its begin; one that
is followed has them from then on. A turn with ``store: false``, or on top of turns that are not stored, has none: a
checkpoint has the content of the turn.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from proxy.conversations.fingerprints import Transcript
from proxy.conversations.resolver import ResolvedTurn
from proxy.errors import TurnLeaseLost
from proxy.events import ApprovalDecided, encode_journal
from proxy.service.disconnect_rules import DisconnectRules
from proxy.service.recording import StoredTurnContext
from proxy.service.resumption import SavedRequestOptions, options_of
from proxy.turns.checkpoints import Checkpoint, CheckpointRepository
from proxy.turns.live import LiveTurn
from proxy.turns.request import TurnRequest
from proxy.turns.steps import TurnStep
from proxy.turns.turn import ApprovalContinuation, Turn


class SavedTranscript(Struct, frozen=True):
    """The state of a ``Transcript``."""

    fingerprint: bytes
    added: bytes
    results: int

    @classmethod
    def of(cls, transcript: Transcript) -> SavedTranscript:
        """Return the state."""
        return cls(*transcript.state())

    def restored(self) -> Transcript:
        """Return the transcript."""
        return Transcript.restored(self.fingerprint, self.added, self.results)


class SavedRules(Struct, frozen=True):
    """``DisconnectRules``."""

    grace: float | None
    is_immediate: bool
    has_key: bool
    is_repeatable: bool

    def restored(self) -> DisconnectRules:
        """Return the rules."""
        return DisconnectRules(self.grace, self.is_immediate, self.has_key, self.is_repeatable)


class SavedCall(Struct, frozen=True, omit_defaults=True):
    """``ContinuationCall``."""

    approval_id: str
    name: str
    arguments: str
    result: str | None = None


class SavedContinuation(Struct, frozen=True, omit_defaults=True):
    """``ApprovalContinuation``, without its log of runs."""

    decided: list[ApprovalDecided] = []
    note: str = ""
    calls: list[SavedCall] = []

    @classmethod
    def of(cls, continuation: ApprovalContinuation) -> SavedContinuation:
        """Return the continuation to store."""
        calls = [
            SavedCall(one.approval_id, one.name, one.arguments, one.result) for one in continuation.calls
        ]
        return cls(list(continuation.decided), continuation.note, calls)


class SavedTurn(Struct, frozen=True, omit_defaults=True):
    """The first checkpoint of a turn: what its stored row does not have.

    ``continuation`` is that with which the turn begins, and ``continues_approvals`` as in ``StoredTurnContext``.
    """

    options: SavedRequestOptions
    transcript: SavedTranscript
    scope: bytes
    rules: SavedRules
    continued: str = ""
    is_strict: bool = False
    takeovers: list[int] = []
    continuation: SavedContinuation | None = None
    continues_approvals: bool = False


class SavedStep(Struct, frozen=True, omit_defaults=True):
    """Any later checkpoint. ``takeovers`` are those of the log (``Journal``)."""

    step: TurnStep
    takeovers: list[int] = []


encode = msgspec.json.Encoder().encode
decode_turn = msgspec.json.Decoder(SavedTurn).decode
decode_step = msgspec.json.Decoder(SavedStep).decode


def continues_approvals(resolved: ResolvedTurn) -> bool:
    """Whether a turn continues from the approvals of its parent."""
    return resolved.resumption is not None and resolved.resumption.update is not None


def saved_turn(turn: Turn, request: TurnRequest, resolved: ResolvedTurn, rules: DisconnectRules) -> bytes:
    """Return the first checkpoint of a turn, before it runs."""
    return encode(
        SavedTurn(
            options=options_of(turn, uses_functions=request.uses_functions),
            transcript=SavedTranscript.of(resolved.transcript),
            scope=resolved.scope,
            rules=SavedRules(rules.grace, rules.is_immediate, rules.has_key, rules.is_repeatable),
            continued=resolved.continued,
            is_strict=turn.is_strict,
            continuation=SavedContinuation.of(turn.continuation) if turn.continuation is not None else None,
            continues_approvals=continues_approvals(resolved),
        )
    )


class CheckpointLog(Struct, eq=False):
    """``turns.steps.StepLog`` of one turn.

    ``is_saved`` is whether the first checkpoint is stored, and ``first`` its state if another worker has stored it.
    ``number`` is that of the next checkpoint.
    """

    repository: CheckpointRepository
    live: LiveTurn
    turn: Turn
    context: StoredTurnContext
    rules: DisconnectRules
    is_saved: bool
    first: bytes | None = None
    number: int = 1
    _saved_items: int = 0
    _saved_events: int = 0
    _is_suspended: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether the turn has checkpoints, or has to have them from now on because it is followed."""
        return self.is_saved or self._is_suspended or self.live.is_followed

    async def save(self, step: TurnStep) -> None:
        """Save a step with what was added since the previous one."""
        items, entries = list(self.turn.items), list(self.live.entries)
        new = entries[self._saved_events :]
        journal = encode_journal([entry.event for entry in new], [entry.time for entry in new])
        state = encode(SavedStep(step, self.live.takeovers))
        key, fence = self.context.key, self.context.fence
        checkpoint = Checkpoint(key, fence, self.number, state, items[self._saved_items :], journal)
        # The first one alone would let another worker run all steps again.
        first = [] if self.is_saved else [Checkpoint(key, fence, 0, self._first())]
        if not await self.repository.save(*first, checkpoint):
            raise TurnLeaseLost
        self.is_saved, self._is_suspended = True, False
        self.number += 1
        self._saved_items, self._saved_events = len(items), len(entries)

    async def suspend(self) -> None:
        """Delete the checkpoints. The next one has the whole turn so far."""
        if self.is_saved:
            await self.repository.discard(self.context.key, fence=self.context.fence)
            self.is_saved, self._is_suspended = False, True
            self.continue_after(0, items=0, events=0)

    def _first(self) -> bytes:
        if self.first is not None:
            return self.first
        return saved_turn(self.turn, self.context.request, self.context.resolved, self.rules)

    def continue_after(self, number: int, *, items: int, events: int) -> None:
        """Continue after the checkpoint with this number, up to which these numbers of items and events are saved."""
        self.number, self._saved_items, self._saved_events = number + 1, items, events
