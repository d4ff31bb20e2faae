"""``ConversationRepository`` in memory, over what a ``MemoryHistory`` holds."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from proxy.auth import may_access
from proxy.conversations.fingerprints import fingerprint_behind
from proxy.conversations.repository import (
    CompletionQuery,
    ConversationQuery,
    ConversationSummary,
    Rest,
    StoredItem,
    excerpt_of,
    is_about,
)
from proxy.errors import ConversationBusy
from proxy.messages import ForeignItem, Item, OpenCalls, UserMessage, text_of
from proxy.turns.records import Conversation, NewTurn, Page, TurnEnd, TurnRecord
from proxy.wire.validation.query_params import ListQuery, Sort
from tests.fakes.store.turns import MemoryHistory, StoredTurn, has_events

T = TypeVar("T")
P = TypeVar("P", int, tuple[float, int])


class MemoryLibrary:
    """``ConversationRepository`` in memory."""

    def __init__(self, history: MemoryHistory) -> None:
        self._history = history

    # --- stored completions ---

    async def list_completions(self, caller: str, query: CompletionQuery) -> Page[TurnRecord] | None:
        start = next(
            (
                stored.record.turn
                for stored in self._history.turns.values()
                if stored.record.id == query.page.after and stored.conversation.caller == caller
            ),
            None,
        )
        if query.page.after is not None and start is None:
            return None
        found = [
            (record.turn, replace(record, input=[], items=[]))
            for record in (stored.record for stored in self._history.turns.values())
            if record.caller == caller
            and _is_completion(record)
            and query.model in (None, record.model)
            and query.metadata.items() <= record.metadata.items()
            and may_access(query.end_user, record.end_user)
        ]
        return page_of(found, start, query.page)

    async def update_completion(
        self, caller: str, completion_id: str, metadata: Mapping[str, str]
    ) -> TurnRecord | None:
        stored = self._completion(caller, completion_id)
        if stored is None:
            return None
        stored.record = replace(stored.record, metadata=dict(metadata))
        return stored.record

    async def delete_completion(self, caller: str, completion_id: str) -> bool:
        stored = self._completion(caller, completion_id)
        if stored is not None:
            _forget(stored)
        return stored is not None

    async def delete_response(self, caller: str, turn_id: str) -> bool:
        for stored in self._history.turns.values():
            record = stored.record
            if (record.caller, record.id) == (caller, turn_id):
                is_forgotten = record.is_stored and record.status != "running"
                if is_forgotten:
                    _forget(stored)
                return is_forgotten
        return False

    def _completion(self, caller: str, completion_id: str) -> StoredTurn | None:
        return next(
            (
                stored
                for stored in self._history.turns.values()
                if (stored.record.caller, stored.record.id) == (caller, completion_id)
                and _is_completion(stored.record)
            ),
            None,
        )

    # --- conversations ---

    async def create_conversation(
        self,
        caller: str,
        conversation_id: str,
        *,
        metadata: Mapping[str, str],
        items: Sequence[Item | ForeignItem],
        now: float,
        end_user: str = "",
    ) -> Conversation:
        key = self._history.next_key()
        created = Conversation(key, conversation_id, caller, end_user, "", None, now, dict(metadata))
        self._history.conversations[caller, conversation_id] = created
        await self.add_items(caller, conversation_id, items, now=now)
        return self._history.conversations[caller, conversation_id]

    async def list_conversations(self, caller: str, query: ConversationQuery) -> Page[Conversation] | None:
        after, sort = query.page.after, query.sort
        start = self._history.conversations.get((caller, after)) if after is not None else None
        if after is not None and start is None:
            return None
        found = [
            (self._place_of(one, sort), one)
            for one in self._history.conversations.values()
            if one.caller == caller
            and may_access(query.end_user, one.end_user)
            and (not query.search or is_about(query.search, one.metadata, self._said(one.key)))
            and query.metadata.items() <= one.metadata.items()
        ]
        return page_of(found, self._place_of(start, sort) if start else None, query.page)

    def _place_of(self, known: Conversation, sort: Sort) -> tuple[float, int]:
        records = self._records(known.key)
        begun = records[-1].created_at if records else known.created_at
        return (begun if sort == "updated_at" else 0.0, known.key)

    async def outlines(self, keys: Sequence[int]) -> Mapping[int, ConversationSummary]:
        found = {}
        for known in self._history.conversations.values():
            worked = [record for record in self._records(known.key) if record.was_run]
            if known.key not in keys or not worked:
                continue
            head = self._history.turns[known.head].record if known.head is not None else None
            content = (
                text_of(one.message) for one in self._said(known.key) if isinstance(one.message, UserMessage)
            )
            found[known.key] = ConversationSummary.of(
                next(content, ""),
                team=head.team if head else "",
                agent=head.agent if head else "",
                turns=len(worked),
                updated_at=max(record.finished_at or record.created_at for record in worked),
            )
        return found

    async def excerpts(self, keys: Sequence[int], content: str) -> Mapping[int, str]:
        return {key: excerpt_of(content, self._said(key)) for key in keys}

    async def tree(self, caller: str, conversation_id: str) -> Sequence[TurnRecord]:
        known = self._history.conversations.get((caller, conversation_id))
        return self._records(known.key) if known is not None else []

    def _records(self, conversation: int) -> list[TurnRecord]:
        turns = sorted(self._history.turns.items())
        return [stored.record for _, stored in turns if stored.conversation.key == conversation]

    def _said(self, conversation: int) -> Iterator[Item]:
        for record in self._records(conversation):
            yield from (*record.input, *record.items)

    async def update_conversation(
        self, caller: str, conversation_id: str, metadata: Mapping[str, str]
    ) -> Conversation | None:
        known = self._history.conversations.get((caller, conversation_id))
        if known is None:
            return None
        changed = replace(known, metadata=dict(metadata))
        self._history.conversations[caller, conversation_id] = changed
        return changed

    async def delete_conversation(self, caller: str, conversation_id: str, *, now: float) -> bool:
        known = self._history.conversations.get((caller, conversation_id))
        if known is None:
            return False
        self._refuse_busy(known, now)
        self._remove(known)
        return True

    # --- items ---

    async def items(self, caller: str, conversation_id: str) -> Sequence[StoredItem] | None:
        if (caller, conversation_id) not in self._history.conversations:
            return None
        return [
            StoredItem(stored.record.id, position, item, tuple(stored.end.pending) if stored.end else ())
            for stored in self._path(caller, conversation_id)
            for position, item in sorted(stored.items().items())
        ]

    async def turn_ids(self, caller: str, conversation_id: str) -> Sequence[str]:
        return [stored.record.id for stored in self._path(caller, conversation_id)]

    async def turns_behind(
        self, caller: str, conversation_id: str, after: int, *, limit: int
    ) -> Sequence[tuple[int, str]]:
        found = [
            (stored.record.turn, stored.record.id)
            for stored in self._turns_of(caller, conversation_id)
            if stored.record.turn > after and has_events(stored.record)
        ]
        return sorted(found)[:limit]

    async def turn_key(self, caller: str, conversation_id: str, turn_id: str) -> int | None:
        of_id = (stored for stored in self._turns_of(caller, conversation_id) if stored.record.id == turn_id)
        return next((stored.record.turn for stored in of_id), None)

    def _turns_of(self, caller: str, conversation_id: str) -> Iterator[StoredTurn]:
        known = self._history.conversations.get((caller, conversation_id))
        key = known.key if known is not None else None
        return (stored for stored in self._history.turns.values() if stored.conversation.key == key)

    async def add_items(
        self, caller: str, conversation_id: str, items: Sequence[Item | ForeignItem], *, now: float
    ) -> Sequence[StoredItem] | None:
        known = self._history.conversations.get((caller, conversation_id))
        if known is None or not items:
            return None if known is None else []
        self._refuse_busy(known, now)
        branch = None if known.head is None else await self._history.branch(known.head)
        said = [item for item in items if isinstance(item, Item)]
        calls = OpenCalls()
        for item in (*(branch.items if branch is not None else ()), *said):
            calls.observe(item.message)
        agent = branch.last.agent if branch is not None else ""
        turn_id = f"items_{secrets.token_hex(16)}"
        begun = await self._history.begin(_turn(known, turn_id, agent, said, now))
        end = TurnEnd(
            turn=begun.turn,
            status="completed",
            is_history=True,
            agent=agent,
            items=(),
            uses=(),
            finished_at=now,
            fingerprint=fingerprint_behind(branch, [item.message for item in said]),
            pending=tuple(calls.ids),
        )
        await self._history.finish(end)
        stored = self._history.turns[begun.turn]
        stored.inputs = len(items)
        _place(stored, dict(enumerate(items)))
        return [StoredItem(turn_id, position, item, tuple(calls.ids)) for position, item in enumerate(items)]

    async def delete_item(
        self,
        caller: str,
        conversation_id: str,
        turn_id: str,
        position: int,
        *,
        now: float,
        rest: Rest | None = None,
    ) -> bool:
        stored = next((one for one in self._path(caller, conversation_id) if one.record.id == turn_id), None)
        placed = {} if stored is None else stored.items()
        if stored is None or position not in placed:
            return False
        self._refuse_busy(stored.conversation, now)
        item = placed[position]
        left = rest(item.message) if rest is not None and isinstance(item, Item) else None
        if isinstance(item, Item) and left is not None:
            placed[position] = msgspec.structs.replace(item, message=left)
        else:
            del placed[position]
        _place(stored, placed)
        for later in self._history.turns.values():
            if later.conversation == stored.conversation and later.record.turn >= stored.record.turn:
                _place(later, {at: one for at, one in later.items().items() if not _is_summary(one)})
        if position >= stored.inputs:
            if not stored.record.is_listed:
                _forget(stored)
            self._forget_approvals(stored.record)
        return True

    def _forget_approvals(self, record: TurnRecord) -> None:
        asked = self._history.asked
        for one in list(asked.values()):
            if one.turn == record.turn:
                del asked[one.id]
            elif one.run_in == record.id:
                asked[one.id] = replace(one, result=None)

    # --- retention ---

    async def remove_older(self, before: float) -> int:
        old = [known for known in self._history.conversations.values() if self._is_old(known, before)]
        for known in old:
            self._remove(known)
        return len(old)

    def _is_old(self, known: Conversation, before: float) -> bool:
        records = [
            stored.record for stored in self._history.turns.values() if stored.conversation.key == known.key
        ]
        return known.created_at < before and all(
            record.status != "running" and record.created_at < before and (record.finished_at or 0) < before
            for record in records
        )

    def _refuse_busy(self, known: Conversation, now: float) -> None:
        if self._history.is_busy(known.key, now):
            raise ConversationBusy

    def _remove(self, known: Conversation) -> None:
        del self._history.conversations[known.caller, known.id]
        turns = self._history.turns
        for key in [key for key, stored in turns.items() if stored.conversation.key == known.key]:
            del turns[key]
        for asked in [one for one in self._history.asked.values() if one.turn not in turns]:
            del self._history.asked[asked.id]

    def _path(self, caller: str, conversation_id: str) -> Sequence[StoredTurn]:
        known = self._history.conversations.get((caller, conversation_id))
        path: list[StoredTurn] = []
        key = known.head if known is not None else None
        while key is not None and (stored := self._history.turns.get(key)) is not None:
            path.append(stored)
            key = stored.record.parent
        return path[::-1]


def page_of(found: list[tuple[P, T]], start: P | None, query: ListQuery) -> Page[T]:
    """Return the requested part of the list, of values with their keys; ``start`` is the key before it."""
    is_ascending = query.order == "asc"
    found = sorted(found, key=lambda one: one[0], reverse=not is_ascending)
    if start is not None:
        found = [one for one in found if (one[0] > start if is_ascending else one[0] < start)]
    return Page([one for _, one in found[: query.limit]], has_more=len(found) > query.limit)


def _is_completion(record: TurnRecord) -> bool:
    return record.is_listed and record.status == "completed"


def _is_summary(item: Item | ForeignItem) -> bool:
    return isinstance(item, Item) and item.compaction is not None and not item.visible


def _place(stored: StoredTurn, placed: dict[int, Item | ForeignItem]) -> None:
    stored.placed = placed
    said = [(place, one) for place, one in sorted(placed.items()) if isinstance(one, Item)]
    stored.record = replace(
        stored.record,
        input=[one for place, one in said if place < stored.inputs],
        items=[one for place, one in said if place >= stored.inputs],
    )


def _forget(stored: StoredTurn) -> None:
    """Make the turn unavailable by id; it remains part of its conversation."""
    if stored.circumstances is not None:
        stored.circumstances = b"{}"
    stored.record = replace(
        stored.record,
        caller="",
        is_listed=False,
        metadata={},
        options=b"",
        journal=b"",
        idempotency_key=None,
        body_digest=None,
    )


def _turn(known: Conversation, turn_id: str, agent: str, said: Sequence[Item], now: float) -> NewTurn:
    return NewTurn(
        id=turn_id,
        caller=known.caller,
        end_user=known.end_user,
        conversation_id=known.id,
        team=known.team,
        model="",
        parent=known.head,
        agent=agent,
        input=said,
        is_stored=True,
        is_listed=False,
        metadata={},
        options=b"",
        worker="",
        lease_until=now,
        created_at=now,
    )
