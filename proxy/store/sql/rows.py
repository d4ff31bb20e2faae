"""Convert the values of ``turns.records`` to rows and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row

from proxy.messages import Compaction, DelegateRecord, HandoffRecord, Item, Message, ProviderState
from proxy.store.sql.tables import indexable, storable
from proxy.turns.checkpoints import Checkpoint
from proxy.turns.records import (
    ChainTurn,
    Conversation,
    ModelUse,
    NewTurn,
    Progress,
    TurnEnd,
    TurnRecord,
)

COMPRESS_FROM_BYTES = 4096
_PLAIN, _DEFLATED = b"p", b"z"

ItemRow = tuple[bool, str | None, bool, str]
"""The columns of an item behind turn and position, in the order of the table."""

COMPACTION_MEMBER = '"compaction":'
"""In the JSON of a message, quotes inside a text are escaped, so that only the member itself contains this."""


class _Members(msgspec.Struct, omit_defaults=True):
    """Members of the stored message that are not part of the message, behind those that are."""

    provider_state: ProviderState | None = None
    compaction: Compaction | None = None
    context_tokens: int | None = None
    delegate: DelegateRecord | None = None
    handoff: HandoffRecord | None = None


_ENDS_OF_MEMBERS = frozenset("}0123456789")
"""The last characters of the values of ``_Members``: objects and numbers. Most messages end with a text or a list."""

_encode = msgspec.json.Encoder().encode
_decode_members = msgspec.json.Decoder(_Members).decode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_messages = msgspec.json.Decoder(list[Message]).decode
_decode_all_members = msgspec.json.Decoder(list[_Members]).decode
_decode_uses = msgspec.json.Decoder(list[ModelUse]).decode
_decode_names = msgspec.json.Decoder(list[str]).decode
_decode_items = msgspec.json.Decoder(list[ItemRow]).decode
_decode_progress = msgspec.json.Decoder(tuple[str, list[ItemRow]]).decode


def conversation_row(turn: NewTurn) -> dict[str, Any]:
    """Return the conversation of a turn as it is when the turn is its first."""
    return {
        "caller": turn.caller,
        "id": turn.conversation_id,
        "end_user": turn.end_user,
        "team": turn.team,
        "metadata": {},
        "created_at": turn.created_at,
    }


def turn_row(turn: NewTurn) -> dict[str, Any]:
    """Return the running turn; ``of_caller`` and ``of_conversation`` lead to its conversation."""
    return {
        "of_caller": indexable(turn.caller),
        "of_conversation": indexable(turn.conversation_id),
        "id": indexable(turn.id),
        "parent": turn.parent,
        "caller": turn.caller,
        "end_user": turn.end_user,
        "team": turn.team,
        "model": turn.model,
        "status": "running",
        "is_history": False,
        "agent": turn.agent,
        "is_stored": turn.is_stored,
        "is_listed": turn.is_listed,
        "metadata": _storable_pairs(turn.metadata) if turn.is_stored else {},
        "options": turn.options,
        "worker": storable(turn.worker),
        "lease_until": turn.lease_until,
        "created_at": turn.created_at,
        "idempotency_key": turn.idempotency_key,
        "body_digest": turn.body_digest,
        "inputs": len(turn.input) if turn.is_stored else 0,
        "snapshot": turn.snapshot,
        "input_fingerprint": turn.input_fingerprint,
        "first_attempt": turn.first_attempt,
        "slot": turn.slot,
    }


def end_row(end: TurnEnd) -> dict[str, Any]:
    """Return what the end of a turn changes in its row, without its journal, idempotency key and input fingerprint."""
    return {
        "status": end.status,
        "is_history": end.is_history,
        "agent": end.agent,
        "finished_at": end.finished_at,
        "finish_reason": end.finish_reason,
        "error_code": end.error_code,
        "fingerprint": end.fingerprint if end.is_history else None,
        "last_answer": end.last_answer if end.is_history else None,
        "pending": _to_json(end.pending) if end.pending else None,
        "uses": _to_json(end.uses) if end.uses else None,
        "ran_effects": end.ran_effects,
        "progress": None,
    }


def item_rows(items: Iterable[Item], *, is_input: bool) -> list[ItemRow]:
    """Return the items in the stored format."""
    return [
        (is_input, storable(item.agent) if item.agent else item.agent, item.visible, _message_json(item))
        for item in items
    ]


def pack(journal: bytes) -> bytes | None:
    """Return the journal in the stored format: None if empty, compressed if that saves space."""
    if not journal:
        return None
    if len(journal) < COMPRESS_FROM_BYTES:
        return _PLAIN + journal
    return _DEFLATED + zlib.compress(journal, 1)


def unpack(packed: bytes | None) -> bytes:
    """Return what ``pack`` was given."""
    if not packed:
        return b""
    return zlib.decompress(packed[1:]) if packed[:1] == _DEFLATED else packed[1:]


def to_item(message: str, agent: str | None, visible: bool) -> Item:
    """Return the item of the columns."""
    return to_items([(message, agent, visible)])[0]


def to_items(columns: Sequence[Sequence[Any]]) -> list[Item]:
    """Return the items of rows that begin with message, agent and visible (true or 1)."""
    # As one JSON list: a call for every message of a long conversation takes eight times as long.
    joined = f"[{','.join([row[0] for row in columns])}]"
    decoded = _decode_messages(joined)
    if _ENDS_OF_MEMBERS.isdisjoint([row[0][-2] for row in columns]):
        return [Item(message, row[1], row[2] == 1) for message, row in zip(decoded, columns, strict=True)]
    return [
        Item(
            message,
            row[1],
            row[2] == 1,
            more.provider_state,
            more.compaction,
            more.context_tokens,
            more.delegate,
            more.handoff,
        )
        for message, more, row in zip(decoded, _decode_all_members(joined), columns, strict=True)
    ]


def to_names(column: str | None) -> Sequence[str]:
    """Return the list of names that a column holds."""
    return _decode_names(column) if column else ()


def to_conversation(row: Row[Any]) -> Conversation:
    """Return the conversation of a whole row."""
    return Conversation(
        row.key,
        row.id,
        row.caller,
        row.end_user,
        row.team,
        row.head,
        row.created_at,
        row.metadata,
    )


def to_chain_turn(
    turn: int,
    said: Sequence[Item],
    agent: str,
    is_stored: bool,
    pending: str | None,
    conversation_id: str,
    end_user: str,
    fingerprint: bytes | None,
    is_paused: bool,
    turn_id: str,
    is_complete: bool,
    is_head: bool,
) -> ChainTurn:
    """Return the turn of a row of the chain, to which ``said`` belongs."""
    return ChainTurn(
        turn,
        agent,
        is_stored,
        said,
        to_names(pending),
        conversation_id,
        end_user,
        fingerprint,
        is_paused,
        turn_id,
        is_complete,
        is_head,
    )


def progress_json(progress: Progress) -> str:
    """Return the progress of a turn in the stored format."""
    return _to_json((progress.agent, item_rows(progress.items, is_input=False)))


def to_progress(stored: str) -> tuple[str, list[ItemRow]]:
    """Return the active agent and the items of a stored progress."""
    return _decode_progress(stored)


def items_json(items: Sequence[Item]) -> str:
    """Return items in the stored format, as one JSON list."""
    return _to_json(item_rows(items, is_input=False))


def to_checkpoint(row: Row[Any], fence: int) -> Checkpoint:
    """Return the checkpoint of a row, for the owner with this fence."""
    said = [to_item(message, agent, visible) for _, agent, visible, message in _decode_items(row.items)]
    return Checkpoint(row.turn, fence, row.number, row.state, said, unpack(row.journal))


def to_record(row: Row[Any], items: Sequence[Row[Any]]) -> TurnRecord:
    """Return the turn of a whole row with its ``conversation_id``, and its items in order."""
    return TurnRecord(
        turn=row.key,
        id=row.id,
        caller=row.caller,
        end_user=row.end_user,
        conversation_id=row.conversation_id,
        team=row.team,
        model=row.model,
        parent=row.parent,
        status=row.status,
        is_history=row.is_history,
        agent=row.agent,
        is_stored=row.is_stored,
        is_listed=row.is_listed,
        metadata=row.metadata,
        options=row.options,
        worker=row.worker,
        lease_until=row.lease_until,
        created_at=row.created_at,
        finished_at=row.finished_at,
        finish_reason=row.finish_reason,
        error_code=row.error_code,
        body_digest=row.body_digest,
        idempotency_key=row.idempotency_key,
        input=[_said(item) for item in items if item.is_input],
        items=[_said(item) for item in items if not item.is_input],
        uses=_decode_uses(row.uses) if row.uses else [],
        journal=unpack(row.journal),
        ran_effects=row.ran_effects,
        left_at=row.left_at,
        cancel_at=row.cancel_at,
        reader_until=row.reader_until,
        first_attempt=row.first_attempt,
    )


def _message_json(item: Item) -> str:
    message = _to_json(item.message)
    if (
        item.state is None
        and item.compaction is None
        and item.tokens is None
        and item.delegate is None
        and item.handoff is None
    ):
        return message
    more = _Members(item.state, item.compaction, item.tokens, item.delegate, item.handoff)
    # Members of the stored message rather than columns: the message decoder of earlier versions skips them, and what
    # deletes or shortens a message deletes them too.
    return f"{message[:-1]},{_to_json(more)[1:]}"


def _to_json(value: object) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        # A tool may return text with half of a surrogate pair; no encoding has it.
        whole = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
        return whole.encode("utf-8", "replace").decode()


def _said(row: Row[Any]) -> Item:
    return to_item(row.message, row.agent, row.visible)


def _storable_pairs(pairs: Mapping[str, str]) -> dict[str, str]:
    return {storable(key): storable(value) for key, value in pairs.items()}
