"""The turns of a conversation as a tree, for those who show it: what was asked and answered at each, and what happened.

One turn::

    {"id": "chatcmpl-…", "object": "turn", "parent_id": "chatcmpl-…", "status": "completed", "model": "acme-support",
     "agent": "SalesAgent", "created_at": 1795458009.123, "finished_at": 1795458011.5, "finish_reason": "stop",
     "error_code": null, "input": [{"role": "user", "content": "…"}],
     "answer": [{"role": "assistant", "content": "…", "agent": "SalesAgent"}], "events": [frames of the feed]}

``events`` are the frames of ``wire.feed``, with pieces of the same text in a row put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from proxy.events import Entry
from proxy.messages import Item, is_instruction
from proxy.routes.conversation_access import EndUserDep, conversation_of, json_answer
from proxy.routes.dependencies import CallerDep, ServicesDep
from proxy.turns.repository import TurnRecord
from proxy.wire.conversations.objects import list_body
from proxy.wire.events.feed import Feed, FeedFrame

router = APIRouter(tags=["conversations"])

_PIECES: Mapping[str, str] = {
    "text.delta": "text",
    "reasoning.delta": "text",
    "refusal.delta": "text",
    "client_tool.arguments": "arguments",
}
"""Frames that come in pieces, and the key of a piece."""


@router.get("/v1/conversations/{conversation_id}/turns")
async def list_turns(
    conversation_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List the turns of a conversation, all branches of it, the oldest first; ``head_id`` is where it stands."""
    known = await conversation_of(services, caller, end_user, conversation_id)
    records = await services.library.tree(caller, conversation_id)
    ids = {record.turn: record.id for record in records}
    hides_details = not services.settings.handoff_details
    data = [
        _body(record, ids, services.turns.log_of(record) if record.was_run else (), hides_details)
        for record in records
    ]
    head = ids.get(known.head) if known.head is not None else None
    return json_answer({**list_body(data, has_more=False), "head_id": head})


def _body(
    record: TurnRecord, ids: Mapping[int, str], log: Sequence[Entry], hides_details: bool
) -> dict[str, Any]:
    """Return a turn; ``ids`` are the public ids of the conversation's turns, ``log`` what happened in it."""
    return {
        "id": record.id,
        "object": "turn",
        "parent_id": ids.get(record.parent) if record.parent is not None else None,
        "status": record.status,
        "model": record.model,
        "agent": record.agent,
        "created_at": round(record.created_at, 3),
        "finished_at": None if record.finished_at is None else round(record.finished_at, 3),
        "finish_reason": record.finish_reason,
        "error_code": record.error_code,
        "input": [msgspec.to_builtins(one.message) for one in _seen(record.input)],
        "answer": [{**msgspec.to_builtins(one.message), "agent": one.agent} for one in _seen(record.items)],
        "events": [msgspec.to_builtins(frame) for frame in _frames(record.id, log, hides_details)],
    }


def _seen(items: Iterable[Item]) -> list[Item]:
    return [item for item in items if item.visible and not is_instruction(item.message)]


def _frames(turn_id: str, log: Sequence[Entry], hides_details: bool) -> list[FeedFrame]:
    feed = Feed(turn_id, hides_details=hides_details)
    told: list[FeedFrame] = []
    for frame in (frame for entry in log for frame in feed.frames(entry)):
        key = _PIECES.get(frame.type)
        if key is not None and told and told[-1].type == frame.type:
            told[-1].data[key] += frame.data[key]
        else:
            told.append(frame)
    return told
