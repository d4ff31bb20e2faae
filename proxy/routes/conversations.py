"""Endpoints of conversations and their items, compatible with OpenAI's Conversations API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from proxy.conversations.repository import ConversationQuery, ConversationSummary, StoredItem
from proxy.errors import ConversationNotFound, ItemNotFound
from proxy.events import Entry
from proxy.messages import Item, OpenCalls, is_instruction
from proxy.routes.dependencies import (
    BodyDep,
    CallerDep,
    EndUserDep,
    Services,
    ServicesDep,
    conversation_of,
    json_response,
)
from proxy.turns.ids import new_id
from proxy.turns.records import Conversation, TurnRecord
from proxy.wire.conversations.item_input import decode_items
from proxy.wire.conversations.objects import (
    NEW_CONVERSATION,
    NEW_ITEMS,
    NEW_METADATA,
    WireItem,
    conversation_body,
    items_of,
    list_body,
    part_of,
    rest_of,
)
from proxy.wire.events.feed import Feed, FeedFrame
from proxy.wire.validation.body_decoder import read_object
from proxy.wire.validation.query_params import (
    HIDDEN_ITEMS,
    included,
    list_query,
    metadata_filter,
    search_param,
    sort_param,
    unknown_after,
)

router = APIRouter(tags=["conversations"])


@router.post("/v1/conversations")
async def create(services: ServicesDep, caller: CallerDep, end_user: EndUserDep, body: BodyDep) -> Response:
    """Create a conversation, optionally with items."""
    given = read_object(NEW_CONVERSATION, body)
    created = await services.library.create_conversation(
        caller,
        new_id("conv_"),
        metadata=given.metadata or {},
        items=decode_items(given.items or [], OpenCalls()),
        now=services.clock(),
        end_user=end_user,
    )
    return _answer(created)


@router.get("/v1/conversations")
async def list_conversations(
    request: Request, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List the conversations of the caller, newest first; ``search`` and ``metadata[key]=value`` filter them.

    ``sort=updated_at`` sorts by the last turn. The OpenAI API has no such endpoint.
    """
    pairs = request.query_params.multi_items()
    query = list_query(pairs, order="desc")
    words = search_param(request.query_params)
    sort = sort_param(request.query_params)
    wanted = ConversationQuery(query, words, metadata_filter(pairs), sort, end_user)
    page = await services.library.list_conversations(caller, wanted)
    if page is None:
        raise unknown_after(query.after)
    keys = [one.key for one in page.data]
    outlines = await services.library.outlines(keys)
    excerpts = await services.library.excerpts(keys, words) if words else {}
    data = [_listed_body(one, outlines.get(one.key), excerpts.get(one.key)) for one in page.data]
    return json_response(list_body(data, has_more=page.has_more))


@router.get("/v1/conversations/{conversation_id}")
async def retrieve(
    conversation_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Return a conversation."""
    return _answer(await conversation_of(services, caller, end_user, conversation_id))


@router.post("/v1/conversations/{conversation_id}")
async def update(
    conversation_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep, body: BodyDep
) -> Response:
    """Replace the metadata of a conversation."""
    await conversation_of(services, caller, end_user, conversation_id)
    metadata = read_object(NEW_METADATA, body).metadata or {}
    changed = await services.library.update_conversation(caller, conversation_id, metadata)
    if changed is None:
        raise ConversationNotFound(conversation_id)
    return _answer(changed)


@router.delete("/v1/conversations/{conversation_id}")
async def delete(
    conversation_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Delete a conversation with its turns and stored completions."""
    await conversation_of(services, caller, end_user, conversation_id)
    await services.turns.end_unattended(caller, conversation_id)
    if not await services.library.delete_conversation(caller, conversation_id, now=services.clock()):
        raise ConversationNotFound(conversation_id)
    return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@router.post("/v1/conversations/{conversation_id}/items")
async def add_items(
    conversation_id: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    end_user: EndUserDep,
    body: BodyDep,
) -> Response:
    """Append items to a conversation."""
    included(request.query_params.multi_items())
    await conversation_of(services, caller, end_user, conversation_id)
    await services.turns.end_unattended(caller, conversation_id)
    calls = OpenCalls()
    for stored in await _stored_items(services, caller, conversation_id):
        if isinstance(stored.item, Item):
            calls.observe(stored.item.message)
    items = decode_items(read_object(NEW_ITEMS, body).items, calls)
    added = await services.library.add_items(caller, conversation_id, items, now=services.clock())
    if added is None:
        raise ConversationNotFound(conversation_id)
    return json_response(list_body([item.body for item in _wire_items(added)], has_more=False))


@router.get("/v1/conversations/{conversation_id}/items")
async def list_items(
    conversation_id: str, request: Request, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List the items, newest first; ``include[]=handoff.hidden_items`` adds items visible to agents only."""
    pairs = request.query_params.multi_items()
    query = list_query(pairs, order="desc")
    with_hidden = HIDDEN_ITEMS in included(pairs)
    await conversation_of(services, caller, end_user, conversation_id)
    items = _wire_items(await _stored_items(services, caller, conversation_id))
    found = part_of(items, query, with_hidden=with_hidden)
    if found is None:
        turn_ids = await services.library.turn_ids(caller, conversation_id)
        found = part_of(items, query, with_hidden=with_hidden, turn_ids=turn_ids)
    if found is None:
        raise unknown_after(query.after)
    part, has_more = found
    return json_response(list_body([item.body for item in part], has_more=has_more))


@router.get("/v1/conversations/{conversation_id}/items/{item_id}")
async def retrieve_item(
    conversation_id: str,
    item_id: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    end_user: EndUserDep,
) -> Response:
    """Return an item, which can be hidden."""
    included(request.query_params.multi_items())
    await conversation_of(services, caller, end_user, conversation_id)
    return json_response((await _item(services, caller, conversation_id, item_id)).body)


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}")
async def delete_item(
    conversation_id: str, item_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Delete an item and return its conversation."""
    conversation = await conversation_of(services, caller, end_user, conversation_id)
    await services.turns.end_unattended(caller, conversation_id)
    item = await _item(services, caller, conversation_id, item_id)
    is_deleted = await services.library.delete_item(
        caller,
        conversation_id,
        item.turn_id,
        item.position,
        now=services.clock(),
        rest=partial(rest_of, call_id=item.call_id),
    )
    if not is_deleted:
        raise ItemNotFound(item_id)
    return _answer(conversation)


def _listed_body(
    known: Conversation, outline: ConversationSummary | None, excerpt: str | None
) -> dict[str, Any]:
    """Return a conversation for the list, with a summary in the extension key ``handoff``.

    ``excerpt`` is None without a search.
    """
    known_summary = outline or ConversationSummary("", "", "", 0, known.created_at)
    return {
        **conversation_body(known.id, known.created_at, known.metadata),
        "handoff": {
            "title": known.metadata.get("title") or known_summary.first_words,
            "team": known_summary.team or known.team,
            "agent": known_summary.agent,
            "turns": known_summary.turns,
            "updated_at": round(known_summary.updated_at, 3),
            **({} if excerpt is None else {"excerpt": excerpt}),
        },
    }


async def _stored_items(services: Services, caller: str, conversation_id: str) -> Sequence[StoredItem]:
    items = await services.library.items(caller, conversation_id)
    if items is None:
        raise ConversationNotFound(conversation_id)
    return items


async def _item(services: Services, caller: str, conversation_id: str, item_id: str) -> WireItem:
    for item in _wire_items(await _stored_items(services, caller, conversation_id)):
        if item.id == item_id:
            return item
    raise ItemNotFound(item_id)


def _wire_items(stored: Sequence[StoredItem]) -> list[WireItem]:
    return [item for one in stored for item in items_of(one.turn_id, one.position, one.item, one.pending)]


def _answer(conversation: Conversation) -> Response:
    body = conversation_body(conversation.id, conversation.created_at, conversation.metadata)
    return json_response(body, conversation_id=conversation.id)


# --- tree of turns ---

_MERGED_KEYS: Mapping[str, str] = {
    "text.delta": "text",
    "reasoning.delta": "text",
    "refusal.delta": "text",
    "client_tool.arguments": "arguments",
}
"""Types of delta frames that are merged, and the key of their text."""


@router.get("/v1/conversations/{conversation_id}/turns")
async def list_turns(
    conversation_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List the turns of all branches, oldest first; ``head_id`` is the newest turn of the current branch."""
    known = await conversation_of(services, caller, end_user, conversation_id)
    records = await services.library.tree(caller, conversation_id)
    ids = {record.turn: record.id for record in records}
    hides_details = not services.settings.handoff_details
    data = [
        _turn_body(record, ids, services.turns.log_of(record) if record.was_run else (), hides_details)
        for record in records
    ]
    head = ids.get(known.head) if known.head is not None else None
    return json_response({**list_body(data, has_more=False), "head_id": head})


def _turn_body(
    record: TurnRecord, ids: Mapping[int, str], log: Sequence[Entry], hides_details: bool
) -> dict[str, Any]:
    """Return a turn object; ``ids`` are the public ids of the turns of the conversation, ``log`` is its event log."""
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
        "input": [msgspec.to_builtins(one.message) for one in _visible(record.input)],
        "answer": [
            {**msgspec.to_builtins(one.message), "agent": one.agent} for one in _visible(record.items)
        ],
        "events": [msgspec.to_builtins(frame) for frame in _merged_frames(record.id, log, hides_details)],
    }


def _visible(items: Iterable[Item]) -> list[Item]:
    return [item for item in items if item.visible and not is_instruction(item.message)]


def _merged_frames(turn_id: str, log: Sequence[Entry], hides_details: bool) -> list[FeedFrame]:
    feed = Feed(turn_id, hides_details=hides_details)
    known_summary: list[FeedFrame] = []
    for frame in (frame for entry in log for frame in feed.frames(entry)):
        key = _MERGED_KEYS.get(frame.type)
        if key is not None and known_summary and known_summary[-1].type == frame.type:
            known_summary[-1].data[key] += frame.data[key]
        else:
            known_summary.append(frame)
    return known_summary
