"""Convert the values of ``turns.records`` to rows and back."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row

from proxy.messages import Item
from proxy.store.sql.stored_items import decode_items, to_item, to_json
from proxy.store.sql.tables import encode_json, storable
from proxy.turns.checkpoints import Checkpoint
from proxy.turns.records import (
    ChainTurn,
    Conversation,
    ModelUse,
    NewTurn,
    TurnEnd,
    TurnRecord,
)

COMPRESS_FROM_BYTES = 4096
_PLAIN, _DEFLATED = b"p", b"z"

_decode_uses = msgspec.json.Decoder(list[ModelUse]).decode
_decode_names = msgspec.json.Decoder(list[str]).decode


CONVERSATION_PARAMETERS = ("id", "caller", "end_user", "team", "created_at")
"""The columns of ``conversation_row``."""
TURN_PARAMETERS = (
    "id",
    "of_caller",
    "of_conversation",
    "parent",
    "caller",
    "end_user",
    "team",
    "model",
    "agent",
    "is_stored",
    "is_listed",
    "metadata",
    "options",
    "worker",
    "lease_until",
    "created_at",
    "idempotency_key",
    "body_digest",
    "inputs",
    "snapshot",
    "input_fingerprint",
    "first_attempt",
    "slot",
)
"""Those of ``turn_row``; ``of_caller`` and ``of_conversation`` lead to the conversation of the turn."""
END_COLUMNS = (
    "status",
    "is_history",
    "agent",
    "finished_at",
    "finish_reason",
    "error_code",
    "fingerprint",
    "last_answer",
    "pending",
    "uses",
    "journal",
    "ran_effects",
)
"""The columns that the end of a turn changes, without those that it only clears."""
END_PARAMETERS = (*(f"new_{name}" for name in END_COLUMNS), "of_turn", "of_fence")
"""Those of ``end_row``; SQLAlchemy reserves the names of the columns."""


def conversation_row(turn: NewTurn) -> tuple[Any, ...]:
    """Return the conversation of a turn as it is when the turn is its first; it has no metadata."""
    return turn.conversation_id, turn.caller, turn.end_user, turn.team, turn.created_at


def turn_row(turn: NewTurn) -> tuple[Any, ...]:
    """Return the running turn. Its metadata and digests are as they are stored."""
    is_stored, metadata = turn.is_stored, turn.metadata
    body_digest, input_fingerprint = turn.body_digest, turn.input_fingerprint
    return (
        turn.id,
        turn.caller,
        turn.conversation_id,
        turn.parent,
        turn.caller,
        turn.end_user,
        turn.team,
        turn.model,
        turn.agent,
        is_stored,
        turn.is_listed,
        encode_json(_storable_pairs(metadata)) if metadata and is_stored else "{}",
        turn.options,
        turn.worker,
        turn.lease_until,
        turn.created_at,
        turn.idempotency_key,
        body_digest.hex() if body_digest is not None else None,
        len(turn.input) if is_stored else 0,
        turn.snapshot,
        input_fingerprint.hex() if input_fingerprint is not None else None,
        turn.first_attempt,
        turn.slot,
    )


def end_row(end: TurnEnd, journal: bytes | None) -> tuple[Any, ...]:
    """Return what the end of a turn changes in its row. Its digests are as they are stored, like ``journal``."""
    is_history, fingerprint, last_answer = end.is_history, end.fingerprint, end.last_answer
    return (
        end.status,
        is_history,
        end.agent,
        end.finished_at,
        end.finish_reason,
        end.error_code,
        fingerprint.hex() if is_history and fingerprint is not None else None,
        last_answer.hex() if is_history and last_answer is not None else None,
        to_json(end.pending) if end.pending else None,
        to_json(end.uses) if end.uses else None,
        journal,
        end.ran_effects,
        end.turn,
        end.fence,
    )


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


def to_checkpoint(row: Row[Any], fence: int) -> Checkpoint:
    """Return the checkpoint of a row, for the owner with this fence."""
    return Checkpoint(row.turn, fence, row.number, row.state, decode_items(row.items), unpack(row.journal))


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


def _said(row: Row[Any]) -> Item:
    return to_item(row.message, row.agent, row.visible)


def _storable_pairs(pairs: Mapping[str, str]) -> dict[str, str]:
    return {storable(key): storable(value) for key, value in pairs.items()}
