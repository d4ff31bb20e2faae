"""``/v1/responses``: the teams, conversations and turns of chat completions in the format of the Responses API.

Creating and retrieving a response are plain ASGI endpoints, because both can stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import partial

import msgspec
from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.errors import InvalidRequest, LogMemoryExhausted, ResponseNotFound
from proxy.routes.client_connection import ClientConnection, client_left
from proxy.routes.dependencies import (
    CallerDep,
    EndUserDep,
    Services,
    ServicesDep,
    json_response,
    request_context,
)
from proxy.routes.queued_stream import QueuedStream
from proxy.routes.request_body import (
    SHORT_BODY,
    arrived_body,
    decode_body,
    first_of,
    forget_headers,
    read_body,
)
from proxy.routes.response_request import options_of_request, response_turn_request
from proxy.routes.streaming import JSON_HEADERS, SSE
from proxy.routes.turn_response import encoder_options, turn_headers, write_turn
from proxy.service.recording import entries_of
from proxy.service.turns import TurnHandle
from proxy.turns.records import TurnRecord
from proxy.turns.repository import accessible_turn
from proxy.turns.request import TurnRequest
from proxy.wire.chat.response_models import encode
from proxy.wire.conversations.objects import items_of, list_body, part_of
from proxy.wire.responses.errors import PARAMETERS, problem_of_response
from proxy.wire.responses.ids import turn_id_of
from proxy.wire.responses.options import Body, ResponseOptions, decode_options, response_body
from proxy.wire.responses.parse import decode_response_request, decode_response_without_schemas
from proxy.wire.responses.stream import ResponseBuilder, ResponseEncoder, response_of
from proxy.wire.validation.query_params import bool_param, included, list_query, unknown_after

router = APIRouter(tags=["responses"])


class Responses:
    """``POST /v1/responses``: create a response of a team."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None] | None:
        """Open the turn of a request, and return what writes it; None if the request is answered already."""
        connection = ClientConnection(scope, receive, send)
        services, headers, access = request_context(scope)
        settings = services.settings
        body = arrived_body(scope, settings, headers)
        if body is None:
            body = await read_body(scope, receive, settings, headers)
        decode = partial(
            decode_response_request, max_items=settings.max_messages, strict=settings.strict_parameters
        )
        quickly = partial(decode_response_without_schemas, max_items=settings.max_messages)
        request = decode(body) if len(body) <= SHORT_BODY else await decode_body(decode, quickly, body)
        if services.passing is not None:
            await services.passing.reject_other_endpoint(request.model)
        options = options_of_request(services, access.terms, headers, request)
        ask = await response_turn_request(services, access, headers, body, request, options)
        scope["state"]["facts"].update(model=ask.model[:100], stream=request.stream)
        forget_headers(scope)
        if request.stream:
            return await self._open_stream(services, ask, connection, options, request.ignored)
        opened = await services.turns.open(ask, left=partial(client_left, receive))
        options = _options_of(opened, options)
        if request.background:
            return _send_initial_response(opened, options, connection, request.ignored)
        return _write(services, opened, connection, ResponseBuilder(options), ignored=request.ignored)

    async def _open_stream(
        self,
        services: Services,
        ask: TurnRequest,
        connection: ClientConnection,
        options: ResponseOptions,
        ignored: Sequence[str],
    ) -> Awaitable[None] | None:
        queued = QueuedStream(connection, SSE, keep_alive=services.settings.keep_alive_interval)
        opened = await queued.open(services.turns, ask, lambda: ResponseEncoder(options))
        if opened is None:
            return None
        encoder = ResponseEncoder(_options_of(opened, options))
        return _write(services, opened, queued.connection, encoder, ignored=ignored, framing=queued.framing)


class StoredResponse:
    """``GET /v1/responses/{id}``: the response, or with ``stream=true`` its events.

    ``starting_after`` is the ``sequence_number`` of the last event that the client received; without it, all events
    are sent.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services, headers, access = request_context(scope)
        query = QueryParams(scope["query_string"])
        included(query.multi_items())
        is_stream, after = bool_param(query, "stream"), _starting_after(query)
        end_user = first_of(headers, services.settings.user_headers)
        record = await _find(services, access.caller, end_user, scope["path_params"]["response_id"])
        if not is_stream:
            answer = json_response(_body_of(record), conversation_id=record.conversation_id)
            await answer(scope, receive, send)
            return
        opened = await services.turns.attach(access.caller, record.id)
        connection = ClientConnection(scope, receive, send)
        encoder = ResponseEncoder(_options_of(opened), after=-1 if after is None else after)
        await _write(services, opened, connection, encoder, is_resumed=after is not None)


@router.delete("/v1/responses/{response_id}")
async def delete(
    response_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Delete a response. The messages of its turn remain in the conversation."""
    record = await _find(services, caller, end_user, response_id)
    if record.status == "running":
        raise InvalidRequest("Cannot delete a response that is in progress; cancel it first.")
    if not await services.library.delete_response(caller, record.id):
        raise ResponseNotFound(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel")
async def cancel(
    response_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Cancel a response, in whichever worker it runs; a response that has ended is returned unchanged."""
    record = await _find(services, caller, end_user, response_id)
    if record.status == "running":
        record = await services.turns.cancel(caller, record.id)
    return json_response(_body_of(record), conversation_id=record.conversation_id)


@router.get("/v1/responses/{response_id}/input_items")
async def input_items(
    response_id: str, request: Request, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List the input items of the response, newest first, without earlier items of its conversation."""
    pairs = request.query_params.multi_items()
    query = list_query(pairs, order="desc")
    included(pairs)
    record = await _find(services, caller, end_user, response_id)
    items = [
        wired
        for position, item in enumerate(record.input)
        for wired in items_of(record.id, position, item, ())
    ]
    found = part_of(items, query, with_hidden=True)
    if found is None:
        raise unknown_after(query.after)
    part, has_more = found
    return json_response(list_body([item.body for item in part], has_more=has_more))


# --- responses -----------------------------------------------------------------------------------------------


_write = partial(write_turn, to_problem=problem_of_response, parameters=PARAMETERS)


def _options_of(opened: TurnHandle, requested: ResponseOptions | None = None) -> ResponseOptions:
    options = encoder_options(opened, requested, decode_options)
    if opened.match != "side-request":
        return options
    return msgspec.structs.replace(options, response=msgspec.structs.replace(options.response, store=False))


async def _send_initial_response(
    opened: TurnHandle, options: ResponseOptions, connection: ClientConnection, ignored: Sequence[str]
) -> None:
    """Send the response object immediately; the turn continues in the background."""
    if opened.is_replayed and opened.live.is_finished:
        entries = opened.live.entries_after(0)
        if entries is None:
            raise LogMemoryExhausted
        body = response_of(options, entries)
    else:
        body = response_body(options, "in_progress" if opened.is_replayed else "queued", output=[])
    encoded = encode(body)
    facts = connection.scope["state"]["facts"]
    headers = [
        *turn_headers(opened, ignored, facts, PARAMETERS),
        *JSON_HEADERS,
        (b"content-length", b"%d" % len(encoded)),
    ]
    await connection.send({"type": "http.response.start", "status": 200, "headers": headers})
    await connection.send({"type": "http.response.body", "body": encoded})


# --- stored responses ----------------------------------------------------------------------------------------


async def _find(services: Services, caller: str, end_user: str, given_id: str) -> TurnRecord:
    turn_id = turn_id_of(given_id)
    record = await accessible_turn(services.history, caller, turn_id, end_user) if turn_id else None
    if record is None or not record.is_stored:
        raise ResponseNotFound(given_id)
    try:
        decode_options(record.options)
    except msgspec.DecodeError:
        # A turn of another API, whose options have another format.
        raise ResponseNotFound(given_id) from None
    return record


def _body_of(record: TurnRecord) -> Body:
    """Return a stored turn as a response."""
    options = decode_options(record.options)
    echo = msgspec.structs.replace(options.response, metadata=dict(record.metadata))
    options = msgspec.structs.replace(options, id=record.id, created=int(record.created_at), response=echo)
    if record.status == "running":
        return response_body(options, "in_progress", output=[])
    return response_of(options, entries_of(record))


def _starting_after(query: QueryParams) -> int | None:
    given = query.get("starting_after", "").strip()
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 12):
        raise InvalidRequest(
            "Invalid type for 'starting_after': expected an integer, but got a string instead.",
            param="starting_after",
            code="invalid_type",
        )
    return int(given)
