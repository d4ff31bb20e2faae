"""Endpoints of stored completions (requests with ``store: true``): list, retrieve, update metadata, delete."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from proxy.conversations.repository import CompletionQuery
from proxy.conversations.visible_messages import rebuild_request_messages
from proxy.errors import CompletionNotFound
from proxy.routes.dependencies import BodyDep, CallerDep, EndUserDep, Services, ServicesDep, json_response
from proxy.turns.records import TurnRecord
from proxy.turns.repository import accessible_turn
from proxy.wire.chat.stored_completions import completion_body, message_bodies, options_of
from proxy.wire.conversations.objects import NEW_METADATA, list_body
from proxy.wire.validation.body_decoder import read_object
from proxy.wire.validation.query_params import list_query, metadata_filter, page_by_id, unknown_after

router = APIRouter(tags=["chat"])


@router.get("/v1/chat/completions")
async def list_completions(
    request: Request, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List stored completions, oldest first."""
    pairs = request.query_params.multi_items()
    query = list_query(pairs, order="asc")
    model = request.query_params.get("model") or None
    wanted = CompletionQuery(query, model, metadata_filter(pairs), end_user)
    page = await services.library.list_completions(caller, wanted)
    if page is None:
        raise unknown_after(query.after)
    bodies = [_body_of(record) for record in page.data]
    return json_response(list_body([body for body in bodies if body], has_more=page.has_more))


@router.get("/v1/chat/completions/{completion_id}")
async def retrieve(
    completion_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Return a stored completion."""
    return _answer(await _find(services, caller, end_user, completion_id))


@router.post("/v1/chat/completions/{completion_id}")
async def update(
    completion_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep, body: BodyDep
) -> Response:
    """Replace the metadata of a stored completion."""
    await _find(services, caller, end_user, completion_id)
    metadata = read_object(NEW_METADATA, body).metadata or {}
    record = await services.library.update_completion(caller, completion_id, metadata)
    if record is None:
        raise CompletionNotFound(completion_id)
    return _answer(record)


@router.delete("/v1/chat/completions/{completion_id}")
async def delete(
    completion_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Delete a stored completion; its messages remain in the conversation."""
    await _find(services, caller, end_user, completion_id)
    if not await services.library.delete_completion(caller, completion_id):
        raise CompletionNotFound(completion_id)
    return json_response({"object": "chat.completion.deleted", "id": completion_id, "deleted": True})


@router.get("/v1/chat/completions/{completion_id}/messages")
async def list_messages(
    completion_id: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    end_user: EndUserDep,
) -> Response:
    """List the request messages of a stored completion."""
    query = list_query(request.query_params.multi_items(), order="asc")
    record = await _find(services, caller, end_user, completion_id)
    options = options_of(record.id, record.created_at, record.options)
    if options is None:
        raise CompletionNotFound(completion_id)
    messages = rebuild_request_messages(
        await services.history.chain(record.parent) if record.parent is not None else [],
        record.input,
        count=options.sent,
        instructions=options.instructions,
    )
    part, has_more = page_by_id(message_bodies(completion_id, messages), query)
    return json_response(list_body(part, has_more=has_more))


async def _find(services: Services, caller: str, end_user: str, completion_id: str) -> TurnRecord:
    record = await accessible_turn(services.history, caller, completion_id, end_user)
    if record is None or not (record.is_listed and record.status == "completed"):
        raise CompletionNotFound(completion_id)
    return record


def _answer(record: TurnRecord) -> Response:
    body = _body_of(record)
    if body is None:
        raise CompletionNotFound(record.id)
    return json_response(body, conversation_id=record.conversation_id)


def _body_of(record: TurnRecord) -> dict[str, Any] | None:
    options = options_of(record.id, record.created_at, record.options)
    return None if options is None else completion_body(options, record.journal, record.metadata)
