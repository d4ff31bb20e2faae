"""Conversations and their items: made, read, added to and deleted as with the official API."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from proxy.conversations.repository import KeptItem, Outline
from proxy.errors import ConversationNotFound, ItemNotFound
from proxy.messages import Item, OpenCalls
from proxy.routes.conversation_access import BodyDep, EndUserDep, conversation_of, json_answer
from proxy.routes.dependencies import CallerDep, Services, ServicesDep
from proxy.turns.repository import Conversation
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
from proxy.wire.validation.json_objects import read_object
from proxy.wire.validation.query_params import HIDDEN_ITEMS, included, list_query, search_words, unknown_after

router = APIRouter(tags=["conversations"])


@router.post("/v1/conversations")
async def create(services: ServicesDep, caller: CallerDep, end_user: EndUserDep, body: BodyDep) -> Response:
    """Make a conversation, perhaps with items."""
    wanted = read_object(NEW_CONVERSATION, body)
    made = await services.library.create_conversation(
        caller,
        f"conv_{secrets.token_hex(16)}",
        metadata=wanted.metadata or {},
        items=decode_items(wanted.items or [], OpenCalls()),
        now=services.clock(),
        end_user=end_user,
    )
    return _answer(made)


@router.get("/v1/conversations")
async def list_conversations(
    request: Request, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List the caller's conversations, the newest first, or those that hold the words of ``search``.

    The official API has no such list.
    """
    query = list_query(request.query_params.multi_items(), order="desc")
    page = await services.library.list_conversations(
        caller,
        after=query.after,
        limit=query.limit,
        order=query.order,
        end_user=end_user,
        search=search_words(request.query_params),
    )
    if page is None:
        raise unknown_after(query.after)
    outlines = await services.library.outlines([one.key for one in page.data])
    data = [_outlined(one, outlines.get(one.key)) for one in page.data]
    return json_answer(list_body(data, has_more=page.has_more))


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
    """Delete a conversation and everything in it, stored completions too."""
    await conversation_of(services, caller, end_user, conversation_id)
    if not await services.library.delete_conversation(caller, conversation_id, now=services.clock()):
        raise ConversationNotFound(conversation_id)
    return json_answer({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


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
    calls = OpenCalls()
    for kept in await _kept(services, caller, conversation_id):
        if isinstance(kept.item, Item):
            calls.take(kept.item.message)
    items = decode_items(read_object(NEW_ITEMS, body).items, calls)
    added = await services.library.add_items(caller, conversation_id, items, now=services.clock())
    if added is None:
        raise ConversationNotFound(conversation_id)
    return json_answer(list_body([item.body for item in _wired(added)], has_more=False))


@router.get("/v1/conversations/{conversation_id}/items")
async def list_items(
    conversation_id: str, request: Request, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List the transcript, the newest first; ``include[]=handoff.hidden_items`` adds what only the agents see."""
    pairs = request.query_params.multi_items()
    query = list_query(pairs, order="desc")
    with_hidden = HIDDEN_ITEMS in included(pairs)
    await conversation_of(services, caller, end_user, conversation_id)
    items = _wired(await _kept(services, caller, conversation_id))
    found = part_of(items, query, with_hidden=with_hidden)
    if found is None:
        turn_ids = await services.library.turn_ids(caller, conversation_id)
        found = part_of(items, query, with_hidden=with_hidden, turn_ids=turn_ids)
    if found is None:
        raise unknown_after(query.after)
    part, has_more = found
    return json_answer(list_body([item.body for item in part], has_more=has_more))


@router.get("/v1/conversations/{conversation_id}/items/{item_id}")
async def retrieve_item(
    conversation_id: str,
    item_id: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    end_user: EndUserDep,
) -> Response:
    """Return an item; to name a hidden one is to ask for it."""
    included(request.query_params.multi_items())
    await conversation_of(services, caller, end_user, conversation_id)
    return json_answer((await _item(services, caller, conversation_id, item_id)).body)


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}")
async def delete_item(
    conversation_id: str, item_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Delete an item; the answer is its conversation."""
    conversation = await conversation_of(services, caller, end_user, conversation_id)
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


def _outlined(known: Conversation, outline: Outline | None) -> dict[str, Any]:
    """Return a conversation as the list tells it, with what it is about under our own key."""
    told = outline or Outline("", "", "", 0, known.created_at)
    return {
        **conversation_body(known.id, known.created_at, known.metadata),
        "handoff": {
            "title": known.metadata.get("title") or told.first_words,
            "team": told.team or known.team,
            "agent": told.agent,
            "turns": told.turns,
            "updated_at": round(told.updated_at, 3),
        },
    }


async def _kept(services: Services, caller: str, conversation_id: str) -> Sequence[KeptItem]:
    items = await services.library.items(caller, conversation_id)
    if items is None:
        raise ConversationNotFound(conversation_id)
    return items


async def _item(services: Services, caller: str, conversation_id: str, item_id: str) -> WireItem:
    for item in _wired(await _kept(services, caller, conversation_id)):
        if item.id == item_id:
            return item
    raise ItemNotFound(item_id)


def _wired(kept: Sequence[KeptItem]) -> list[WireItem]:
    return [item for one in kept for item in items_of(one.turn_id, one.position, one.item, one.pending)]


def _answer(conversation: Conversation) -> Response:
    body = conversation_body(conversation.id, conversation.created_at, conversation.metadata)
    return json_answer(body, conversation_id=conversation.id)
