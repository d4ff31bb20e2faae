"""``TurnRepository`` in memory: for tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from proxy.errors import ConversationBusy, TurnLeaseLost
from proxy.events import DecidedBy, Decision
from proxy.messages import ForeignItem, Item
from proxy.turns.checkpoints import MAX_TAKEOVERS, Checkpoint
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
    Pause,
    PollResult,
    Progress,
    TurnEnd,
    TurnMatch,
    TurnRecord,
)
from proxy.turns.repository import MAX_COMPACTIONS, IdempotencyKeyTaken


@dataclass(slots=True)
class StoredTurn:
    """A stored turn: its record, and the columns that a record does not have."""

    record: TurnRecord
    conversation: Conversation
    inputs: int
    """How many items were input."""
    end: TurnEnd | None = None
    is_to_stop: bool = False
    circumstances: bytes | None = None
    input_fingerprint: bytes | None = None
    progress: Progress | None = None
    snapshot: str | None = None
    slot: int = 0
    fence: int = 0
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    placed: dict[int, Item | ForeignItem] | None = None
    """The items by position, once that is not simply their order."""

    @property
    def can_be_taken_over(self) -> bool:
        """Whether another worker continues the turn when its worker dies."""
        return bool(self.checkpoints) and self.fence < MAX_TAKEOVERS

    def items(self) -> dict[int, Item | ForeignItem]:
        """The items by position."""
        if self.placed is not None:
            return dict(self.placed)
        return dict(enumerate([*self.record.input, *self.record.items]))


class Asked(Struct, frozen=True):
    """A stored approval."""

    key: int
    id: str
    turn: int
    call_id: str
    agent: str
    tool: str
    arguments: str
    created_at: float
    decision: Decision | None = None
    decided_by: DecidedBy | None = None
    reason: str | None = None
    decided_at: float | None = None
    resumed_by: str | None = None
    attempts: int = 0
    is_unattended: bool = False
    run_in: str | None = None
    result: str | None = None


class MemoryHistory:
    """``TurnRepository`` without persistence.

    ``conversations``, ``turns`` and ``asked`` are for a ``MemoryLibrary`` and ``MemoryApprovals``.
    """

    def __init__(self) -> None:
        self.conversations: dict[tuple[str, str], Conversation] = {}
        self.turns: dict[int, StoredTurn] = {}
        self.asked: dict[str, Asked] = {}
        self._keys = itertools.count(1)

    def next_key(self) -> int:
        """Return a key that is greater than all before."""
        return next(self._keys)

    async def find_conversation(self, caller: str, conversation_id: str) -> Conversation | None:
        known = self.conversations.get((caller, conversation_id))
        if known is None:
            return None
        is_running = any(self._running(lambda stored: stored.conversation.key == known.key))
        return replace(known, is_running=is_running)

    async def begin(self, turn: NewTurn, *, parent: CompletedTurn | None = None) -> Begun:
        if parent is not None:
            self._check_key(turn)
            begun = await self.begin(parent.turn)
            head = self.conversations[turn.caller, turn.conversation_id].head
            await self.finish(replace(parent.end, turn=begun.turn))
            self._set_head((turn.caller, turn.conversation_id), head)
            turn = replace(turn, parent=begun.turn)
        self._check_key(turn)
        place = (turn.caller, turn.conversation_id)
        known = self.conversations.get(place)
        if known is not None and self.is_busy(known.key, turn.created_at, slot=turn.slot):
            raise ConversationBusy
        if turn.is_at_head and turn.parent != (known.head if known is not None else None):
            raise ConversationBusy
        if known is None:
            known = Conversation(
                self.next_key(),
                turn.conversation_id,
                turn.caller,
                turn.end_user,
                turn.team,
                None,
                turn.created_at,
            )
        elif not known.end_user:
            known = replace(known, end_user=turn.end_user)
        self.conversations[place] = known
        key = self.next_key()
        self.turns[key] = StoredTurn(
            _running_record(key, turn),
            known,
            len(turn.input),
            input_fingerprint=turn.input_fingerprint,
            snapshot=turn.snapshot,
            slot=turn.slot,
        )
        if turn.checkpoint is not None:
            self.turns[key].checkpoints[0] = Checkpoint(key, 0, 0, turn.checkpoint)
        return Begun(key, known.key)

    def _check_key(self, turn: NewTurn) -> None:
        if turn.idempotency_key is None:
            return
        holder = self._by_key(turn.caller, turn.idempotency_key)
        if holder is not None and (
            holder.status != "running"
            or holder.lease_until >= turn.created_at
            or self.turns[holder.turn].can_be_taken_over
        ):
            raise IdempotencyKeyTaken
        if holder is not None:
            self._interrupt(self.turns[holder.turn], turn.created_at)

    def _set_head(self, place: tuple[str, str], head: int | None) -> None:
        self.conversations[place] = replace(self.conversations[place], head=head)

    def is_busy(self, conversation: int, now: float, *, slot: int | None = None) -> bool:
        """Whether a turn of the conversation is running in the slot; one whose lease ran out is interrupted."""
        is_busy = False
        for stored in list(self._running(lambda stored: stored.conversation.key == conversation)):
            if stored.record.lease_until < now and not stored.can_be_taken_over:
                self._interrupt(stored, now)
            elif slot in (None, stored.slot):
                is_busy = True
        return is_busy

    async def finish(self, end: TurnEnd) -> bool:
        stored = self.turns.get(end.turn)
        if stored is None:
            return False
        if stored.record.status == "interrupted":
            stored.record = replace(stored.record, error_code=TurnLeaseLost.code)
        if stored.record.status == "running" and stored.fence != end.fence:
            return False
        if stored.record.status != "running":
            return stored.end is not None and _is_same(stored.end, end)
        stored.end = end
        stored.progress = None
        stored.checkpoints = {}
        stored.record = _ended_record(stored.record, end)
        if not end.is_found_by_input:
            stored.input_fingerprint = None
        if end.is_history:
            place = (stored.record.caller, stored.record.conversation_id)
            self._set_head(place, max(end.turn, self.conversations[place].head or 0))
        if end.pause is not None and stored.record.is_stored:
            self._ask(stored, end, end.pause)
        for asked in list(self.asked.values()):
            if asked.turn == end.took_up and asked.resumed_by == stored.record.id:
                self.asked[asked.id] = replace(asked, is_unattended=False)
        return True

    def _ask(self, stored: StoredTurn, end: TurnEnd, pause: Pause) -> None:
        stored.circumstances = pause.circumstances
        for new in pause.approvals:
            self.asked[new.id] = Asked(
                key=self.next_key(),
                id=new.id,
                turn=end.turn,
                call_id=new.call_id,
                agent=end.agent,
                tool=new.tool,
                arguments=new.arguments,
                created_at=end.finished_at,
            )

    async def chain(self, turn: int) -> Sequence[ChainTurn]:
        chain: list[ChainTurn] = []
        key: int | None = turn
        while key is not None and (stored := self.turns.get(key)) is not None:
            record = stored.record
            chain.append(
                ChainTurn(
                    turn=key,
                    agent=record.agent,
                    is_stored=record.is_stored,
                    items=[*record.input, *record.items],
                    pending=stored.end.pending if stored.end else (),
                    conversation_id=record.conversation_id,
                    end_user=record.end_user,
                    fingerprint=stored.end.fingerprint if stored.end and stored.end.is_history else None,
                    is_paused=stored.circumstances is not None,
                    id=record.id,
                    is_complete=record.status in ("running", "completed"),
                    is_head=any(one.head == key for one in self.conversations.values()),
                )
            )
            key = record.parent
        return chain[::-1]

    async def branch(self, turn: int) -> Branch | None:
        chain = await self.chain(turn)
        return Branch.of(chain) if chain else None

    async def last_items(self, turn: int, *, limit: int) -> Sequence[Item]:
        stored = self.turns.get(turn)
        return [] if stored is None else [*stored.record.input, *stored.record.items][-limit:]

    async def compactions(self, conversation: int) -> Sequence[Item]:
        found = [
            item
            for stored in self.turns.values()
            if stored.conversation.key == conversation
            for item in stored.record.items
            if item.compaction is not None and not item.visible
        ]
        return found[-MAX_COMPACTIONS:]

    async def find_longest(
        self,
        boundaries: Sequence[tuple[int, bytes]],
        digest: bytes | None,
        *,
        conversation: int | None = None,
        with_branch: bool = True,
    ) -> LongestMatch:
        for index, fingerprint in reversed(boundaries):
            place = self._newest(partial(_has_fingerprint, fingerprint), conversation)
            if place is not None:
                is_wanted = with_branch and place.is_unique
                return LongestMatch(place, index, await self.branch(place.turn) if is_wanted else None)
        if digest is None:
            return LongestMatch()
        return LongestMatch(latest=await self.find_last_answer(digest, conversation=conversation))

    async def find_last_answer(self, digest: bytes, *, conversation: int | None = None) -> TurnMatch | None:
        return self._newest(lambda end: end.last_answer == digest, conversation)

    async def find_pending(
        self, caller: str, call_ids: Sequence[str], *, conversation: int | None = None
    ) -> Sequence[tuple[str, int]]:
        return [
            (call_id, key)
            for key, stored in reversed(self.turns.items())
            if stored.end is not None
            and stored.conversation.caller == caller
            and conversation in (None, stored.conversation.key)
            for call_id in dict.fromkeys(stored.end.pending)
            if call_id in call_ids
        ]

    async def find_by_input(
        self, fingerprints: Sequence[bytes], *, conversation: int | None = None
    ) -> Sequence[InputMatch]:
        return [
            _input_match(stored, stored.input_fingerprint)
            for stored in reversed(self.turns.values())
            if stored.input_fingerprint is not None
            and stored.input_fingerprint in fingerprints
            and conversation in (None, stored.conversation.key)
        ]

    async def turn(self, caller: str, turn_id: str) -> TurnRecord | None:
        return self._last(lambda record: record.caller == caller and record.id == turn_id)

    async def turn_by_idempotency_key(self, caller: str, key: str) -> TurnRecord | None:
        return self._by_key(caller, key)

    async def turn_by_body(self, caller: str, digest: bytes, *, since: float) -> TurnRecord | None:
        found = self._last(lambda record: (record.caller, record.body_digest) == (caller, digest))
        if found is None or found.created_at < since:
            return None
        is_lost_for_history = found.ran_effects and not found.is_stored
        if found.status not in ("running", "completed") and not is_lost_for_history:
            return None
        following = self._last(
            lambda record: record.parent == found.turn and (record.is_history or record.status == "running")
        )
        return None if following is not None else found

    async def renew(self, worker: str, *, lease_until: float) -> Sequence[str]:
        own = list(self._running(lambda stored: stored.record.worker == worker))
        for stored in own:
            stored.record = replace(stored.record, lease_until=lease_until)
        return [stored.record.id for stored in own if stored.is_to_stop]

    async def request_cancel(self, caller: str, turn_id: str) -> bool:
        found = list(
            self._running(lambda stored: (stored.record.caller, stored.record.id) == (caller, turn_id))
        )
        for stored in found:
            stored.is_to_stop = True
        return bool(found)

    async def interrupt(self, *, now: float, dead_workers: Sequence[str] = ()) -> int:
        lost = [
            stored
            for stored in self._running(lambda stored: is_lost(stored.record, now, dead_workers))
            if not stored.can_be_taken_over
        ]
        for stored in lost:
            self._interrupt(stored, now)
        return len(lost)

    async def running_turn(self, caller: str, conversation_id: str) -> TurnRecord | None:
        place = (caller, conversation_id)
        found = self._running(lambda stored: (stored.record.caller, stored.conversation.id) == place)
        return min(
            ((stored.slot, stored.record.turn, stored.record) for stored in found), default=(0, 0, None)
        )[-1]

    async def leave(self, turn: int, *, left_at: float | None, cancel_at: float | None) -> None:
        stored = self.turns.get(turn)
        if stored is not None and stored.record.status in ("running", "completed"):
            stored.record = replace(stored.record, left_at=left_at, cancel_at=cancel_at)

    async def attendance(self, turns: Sequence[int]) -> Mapping[int, Attendance]:
        return {
            stored.record.turn: Attendance(
                stored.record.cancel_at, stored.record.reader_until, stored.is_to_stop
            )
            for stored in self._running(lambda stored: stored.record.turn in turns)
        }

    async def announce_reader(self, turn: int, *, until: float) -> None:
        for stored in self._running(lambda stored: stored.record.turn == turn):
            stored.record = replace(stored.record, reader_until=until)

    async def end_unattended(self, turn: int, *, now: float) -> bool:
        found = list(
            self._running(lambda stored: stored.record.turn == turn and stored.record.is_unattended(now))
        )
        for stored in found:
            stored.record = replace(stored.record, cancel_at=now)
        return bool(found)

    async def store_progress(self, turn: int, progress: Progress) -> None:
        for stored in self._running(lambda stored: stored.record.turn == turn):
            stored.progress = progress
            ran = stored.record.ran_effects or progress.ran_effects
            stored.record = replace(stored.record, ran_effects=ran)

    async def poll(self, *, turns: Sequence[int], conversations: Sequence[int]) -> PollResult:
        here = {known.key for known in self.conversations.values()} & set(conversations)
        newest = dict.fromkeys(here, 0)
        for key, stored in self.turns.items():
            if stored.conversation.key in here and has_events(stored.record):
                newest[stored.conversation.key] = max(newest[stored.conversation.key], key)
        running = [stored.record for stored in self._running(lambda stored: stored.record.turn in turns)]
        return PollResult(
            {record.turn: record.lease_until for record in running},
            newest,
            {record.turn: record.worker for record in running},
        )

    async def running_workers(self) -> Sequence[str]:
        return list({stored.record.worker for stored in self._running(lambda _: True)})

    async def is_ready(self) -> bool:
        return True

    async def close(self) -> None:
        pass

    def _running(self, is_wanted: Callable[[StoredTurn], bool]) -> Iterator[StoredTurn]:
        return (
            stored
            for stored in self.turns.values()
            if stored.record.status == "running" and is_wanted(stored)
        )

    def _interrupt(self, stored: StoredTurn, now: float) -> None:
        record, progress = stored.record, stored.progress
        key = record.idempotency_key if record.ran_effects else None
        stored.record = replace(record, status="interrupted", finished_at=now, idempotency_key=key)
        if not record.ran_effects and progress is None:
            stored.input_fingerprint = None
        if progress is not None and record.is_stored:
            items, agent = list(progress.items), progress.agent
            stored.record = replace(stored.record, items=items, agent=agent, is_history=True)
            self._set_head((record.caller, record.conversation_id), record.turn)
        stored.progress = None

    def _last(self, is_wanted: Callable[[TurnRecord], bool]) -> TurnRecord | None:
        return next(
            (stored.record for stored in reversed(self.turns.values()) if is_wanted(stored.record)), None
        )

    def _by_key(self, caller: str, key: str) -> TurnRecord | None:
        return self._last(lambda record: record.caller == caller and record.idempotency_key == key)

    def _newest(self, is_wanted: Callable[[TurnEnd], bool], conversation: int | None) -> TurnMatch | None:
        found = [
            (stored, stored.end)
            for stored in self.turns.values()
            if stored.end is not None
            and stored.end.is_history
            and conversation in (None, stored.conversation.key)
            and is_wanted(stored.end)
        ]
        if not found:
            return None
        stored, end = found[-1]
        return TurnMatch(
            turn=end.turn,
            conversation=stored.conversation.key,
            conversation_id=stored.conversation.id,
            agent=end.agent,
            fingerprint=end.fingerprint or b"",
            is_unique=len({one.conversation.key for one, _ in found}) == 1,
        )


def has_events(record: TurnRecord) -> bool:
    """Whether the events of the turn can be read."""
    return record.was_run and record.caller != ""


def _running_record(key: int, turn: NewTurn) -> TurnRecord:
    return TurnRecord(
        turn=key,
        id=turn.id,
        caller=turn.caller,
        end_user=turn.end_user,
        conversation_id=turn.conversation_id,
        team=turn.team,
        model=turn.model,
        parent=turn.parent,
        status="running",
        is_history=False,
        agent=turn.agent,
        is_stored=turn.is_stored,
        is_listed=turn.is_listed,
        metadata=dict(turn.metadata) if turn.is_stored else {},
        options=turn.options,
        worker=turn.worker,
        lease_until=turn.lease_until,
        created_at=turn.created_at,
        finished_at=None,
        finish_reason=None,
        error_code=None,
        body_digest=turn.body_digest,
        idempotency_key=turn.idempotency_key,
        input=list(turn.input) if turn.is_stored else [],
        items=[],
        uses=[],
        journal=b"",
        first_attempt=turn.first_attempt,
    )


def _input_match(stored: StoredTurn, input_fingerprint: bytes) -> InputMatch:
    record = stored.record
    return InputMatch(
        turn=record.turn,
        id=record.id,
        conversation=stored.conversation.key,
        conversation_id=record.conversation_id,
        parent=record.parent,
        agent=record.agent,
        status=record.status,
        is_history=record.is_history,
        is_stored=record.is_stored,
        ran_effects=record.ran_effects,
        body_digest=record.body_digest,
        input_fingerprint=input_fingerprint,
        left_at=record.left_at,
        cancel_at=record.cancel_at,
        reader_until=record.reader_until,
        created_at=record.created_at,
        first_attempt=record.first_attempt,
    )


def _ended_record(record: TurnRecord, end: TurnEnd) -> TurnRecord:
    keeps_key = end.is_history if end.keeps_key is None else end.keeps_key
    return replace(
        record,
        status=end.status,
        is_history=end.is_history,
        agent=end.agent,
        items=list(end.items) if record.is_stored else [],
        uses=list(end.uses),
        finished_at=end.finished_at,
        finish_reason=end.finish_reason,
        error_code=end.error_code,
        journal=end.journal if record.is_stored else b"",
        idempotency_key=record.idempotency_key if keeps_key else None,
        ran_effects=end.ran_effects,
    )


def _has_fingerprint(fingerprint: bytes, end: TurnEnd) -> bool:
    return end.fingerprint == fingerprint


def _is_same(one: TurnEnd, other: TurnEnd) -> bool:
    return (one.status, one.finished_at) == (other.status, other.finished_at)


def is_lost(record: TurnRecord, now: float, dead_workers: Collection[str]) -> bool:
    return record.lease_until < now or record.worker in dead_workers
