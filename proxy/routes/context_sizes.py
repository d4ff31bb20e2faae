"""``/v1/responses/compact`` and ``/v1/responses/input_tokens``: summarise a context, or measure it.

Both resolve their input as ``POST /v1/responses`` does, and begin no turn.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from proxy.messages import Item, Usage, UserMessage, is_instruction
from proxy.request_errors import RejectedRequest
from proxy.routes.dependencies import BodyDep, CallerDep, Services, ServicesDep, access_of, json_response
from proxy.routes.request_body import headers_of
from proxy.routes.response_request import options_of_request, response_turn_request
from proxy.service.turns import PreviewedTurn
from proxy.wire.conversations.objects import items_of
from proxy.wire.responses.compaction import compaction_body
from proxy.wire.responses.errors import responses_error
from proxy.wire.responses.options import usage_body
from proxy.wire.responses.parse import ResponsesRequest, decode_compact_request, decode_count_request
from proxy.wire.validation.errors import invalid_value

router = APIRouter(tags=["responses"])


@router.post("/v1/responses/input_tokens")
async def input_tokens(request: Request, services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Return the estimated tokens of a request: the input, and the instructions and tools of the active agent."""
    parsed = decode_count_request(
        body, max_items=services.settings.max_messages, strict=services.settings.strict_parameters
    )
    previewed = await _preview(services, request, body, parsed)
    tokens = previewed.team.input_tokens(previewed.turn)
    return json_response({"object": "response.input_tokens", "input_tokens": tokens})


@router.post("/v1/responses/compact")
async def compact(request: Request, services: ServicesDep, caller: CallerDep, body: BodyDep) -> Response:
    """Return the user messages of a context, and a compaction item that stands for all of it."""
    parsed = decode_compact_request(
        body, max_items=services.settings.max_messages, strict=services.settings.strict_parameters
    )
    previewed = await _preview(services, request, body, parsed)
    if all(is_instruction(item.message) for item in previewed.turn.context):
        raise invalid_value("input", "Invalid 'input': it has no messages to summarise.")
    summary, calls = await previewed.team.summarise(previewed.turn)
    usage = Usage()
    for call in calls:
        usage += call.usage or Usage()
        if services.record_usage is not None:
            services.record_usage(caller, call.model, call.usage)
    number = secrets.token_hex(16)
    output = [*_user_messages(number, previewed.turn.context), compaction_body(f"cmp_{number}ffff", summary)]
    return json_response(
        {
            "id": f"resp_{number}",
            "object": "response.compaction",
            "created_at": int(services.clock()),
            "output": output,
            "usage": usage_body(usage),
        }
    )


async def _preview(
    services: Services, request: Request, body: bytes, parsed: ResponsesRequest
) -> PreviewedTurn:
    headers, access = headers_of(request.scope), access_of(request.scope, services)
    options = options_of_request(services, access.terms, headers, parsed)
    try:
        ask = await response_turn_request(services, access, headers, body, parsed, options)
        return await services.turns.preview(ask)
    except RejectedRequest as rejected:
        raise responses_error(rejected) from None


def _user_messages(number: str, context: Sequence[Item]) -> list[dict[str, object]]:
    return [
        wired.body
        for position, item in enumerate(context)
        if isinstance(item.message, UserMessage) and item.compaction is None and item.visible
        for wired in items_of(f"chatcmpl-{number}", position, item, ())
    ]
