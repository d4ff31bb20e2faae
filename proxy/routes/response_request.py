"""The request for a turn from a request of the Responses API, and the options of its encoders."""

from __future__ import annotations

import msgspec

from proxy.auth import Access, Terms
from proxy.routes.dependencies import Services
from proxy.routes.item_references import References
from proxy.routes.request_headers import (
    IDEMPOTENCY_KEY,
    body_digest,
    comparable_body,
    header_options,
    with_pseudonyms,
)
from proxy.turns.request import TurnRequest
from proxy.turns.structured_output import compile_response_format
from proxy.wire.responses.ids import turn_id_of
from proxy.wire.responses.input import approval_responses, joined
from proxy.wire.responses.options import Echo, ResponseOptions
from proxy.wire.responses.parse import ResponsesRequest

_GENERATED_ID = "conv_"
"""Prefix of ids that the proxy generates. A conversation with another id is created by the first request with it."""


def options_of_request(
    services: Services, terms: Terms, headers: dict[str, str], request: ResponsesRequest
) -> ResponseOptions:
    """Return the encoder options of a request, without the turn."""
    events = header_options(headers, services.settings).events
    return ResponseOptions(
        id="",
        created=0,
        model=request.model,
        logprobs=request.logprobs,
        events=events or services.events_of(services.catalog.find(request.model), terms),
        hides_details=not services.settings.handoff_details,
        response=request.echo,
        sums_up_reasoning=request.sums_up_reasoning,
        asks_for_approval=request.asks_for_approval,
        shows_compactions=request.shows_compactions,
        shows_server_calls=events != "none" and (events is not None or request.includes_server_calls),
    )


async def response_turn_request(
    services: Services,
    access: Access,
    headers: dict[str, str],
    body: bytes,
    request: ResponsesRequest,
    options: ResponseOptions,
) -> TurnRequest:
    """Return the request for a turn."""
    access.terms.check_model(request.model)
    caller, settings = access.caller, services.settings
    given = header_options(headers, settings)
    named, source = given.named_conversation(request.metadata)
    if request.conversation is not None:
        named, source = request.conversation, "conversation-id"
    end_user = request.safety_identifier or request.user or given.end_user
    parent = None
    if request.previous_response_id is not None:
        # An id of another format matches no turn, so it fails as a turn that does not exist.
        parent = turn_id_of(request.previous_response_id) or request.previous_response_id
    references = References(services.history, caller, end_user)
    pieces = await references.resolved(request.said, parent=parent, conversation_id=request.conversation)
    messages, provider_states, summaries = joined(pieces)
    compared = await comparable_body(body, headers) if IDEMPOTENCY_KEY in headers else body
    text_format = request.parameters.response_format
    return TurnRequest(
        caller=caller,
        model=request.model,
        messages=messages,
        provider_states=provider_states,
        summaries=summaries,
        context_mode=request.context_mode,
        compact_threshold=request.compact_threshold,
        approval_decisions=approval_responses(pieces),
        end_user=end_user,
        conversation_id=named,
        id_source=source,
        parameters=with_pseudonyms(
            request.parameters,
            caller,
            safety_identifier=request.safety_identifier,
            prompt_cache_key=request.echo.prompt_cache_key,
        ),
        response_format=None if text_format is None else await compile_response_format(text_format),
        tools=request.tools,
        tool_choice=request.tool_choice,
        parallel_tool_calls=request.parallel_tool_calls,
        # A response in the background can be streamed later.
        is_streamed=request.stream or request.background,
        is_strict=services.settings.strict_parameters,
        is_stored=request.store,
        metadata=request.metadata,
        options=options if request.store else _without_content(options),
        body_digest=body_digest(compared, "responses", named or "", end_user),
        idempotency_key=given.idempotency_key,
        is_retry=given.is_retry,
        is_repeatable=given.is_repeatable,
        is_side=given.is_side,
        # The client of a response in the background does not wait for it.
        on_disconnect="detach" if request.background else given.on_disconnect,
        busy=given.busy,
        parent=parent,
        is_addition=request.conversation is not None,
        must_exist=request.conversation is not None and request.conversation.startswith(_GENERATED_ID),
        instructions=request.instructions,
        keeps_instructions=True,
        in_background=request.background,
        max_tool_calls=request.max_tool_calls,
    )


def _without_content(options: ResponseOptions) -> ResponseOptions:
    """Return the options without content, which a turn with ``store: false`` can record."""
    return msgspec.structs.replace(options, response=Echo(store=False))
