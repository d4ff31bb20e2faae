"""``POST /v1/chat/completions``: a request to a team, and its answer, once or again.

A plain ASGI endpoint: the framework's validation and its streaming response cost more than the whole turn.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial

from msgspec.structs import replace
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from proxy.auth import Access
from proxy.routes.client_connection import ClientConnection, client_left
from proxy.routes.dependencies import Services, request_context
from proxy.routes.queued_stream import QueuedStream
from proxy.routes.request_body import (
    SHORT_BODY,
    arrived_body,
    decode_body,
    first_of,
    forget_headers,
    read_body,
)
from proxy.routes.request_headers import (
    IDEMPOTENCY_KEY,
    HeaderOptions,
    body_digest,
    comparable_body,
    header_options,
    wants_event_ids,
    with_pseudonyms,
)
from proxy.routes.streaming import SSE, SSE_WITH_IDS
from proxy.routes.turn_response import encoder_options, write_turn
from proxy.routes.turns import last_seen
from proxy.turns.request import TurnRequest
from proxy.turns.structured_output import compile_response_format
from proxy.wire.chat.completion import AnswerOptions, CompletionBuilder, decode_options
from proxy.wire.chat.parse import ChatRequest, decode_chat_without_schemas
from proxy.wire.chat.stored_completions import with_request_messages
from proxy.wire.chat.stream import ChunkEncoder
from proxy.wire.events.takeover import ResumedEncoder


class ChatCompletions:
    """``POST /v1/chat/completions``: create a completion of a team or of a passthrough model."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None] | None:
        """Open the turn of a request, and return what writes it; None if the request is answered already."""
        connection = ClientConnection(scope, receive, send)
        services, headers, access = request_context(scope)
        settings = services.settings
        body = arrived_body(scope, settings, headers)
        if body is None:
            body = await read_body(scope, receive, settings, headers)
        if services.passing is not None and await services.passing.serve(
            body, connection, access.caller, access.terms
        ):
            return None
        request = (
            services.decode_chat(body) if len(body) <= SHORT_BODY else await decode_chat_body(services, body)
        )
        if IDEMPOTENCY_KEY in headers:
            body = await comparable_body(body, headers)
        turn_request, options = chat_turn_request(services, access, headers, body, request)
        if request.parameters.response_format is not None:
            turn_request = await with_response_format(turn_request)
        facts = scope["state"]["facts"]
        facts["model"], facts["stream"] = request.model[:100], request.stream
        has_ids = wants_event_ids(headers, scope["query_string"])
        forget_headers(scope)
        ignored = request.ignored
        if not request.stream:
            opened = await services.turns.open(turn_request, left=partial(client_left, receive))
            builder = CompletionBuilder(encoder_options(opened, options, decode_options))
            return write_turn(services, opened, connection, builder, ignored=ignored)
        framing = SSE_WITH_IDS if has_ids else SSE
        queued = QueuedStream(connection, framing, keep_alive=settings.keep_alive_interval)
        streamed = await queued.open(
            services.turns, turn_request, lambda: ChunkEncoder(options, has_ids=has_ids)
        )
        if streamed is None:
            return None
        encoder = ChunkEncoder(encoder_options(streamed, options, decode_options), has_ids=has_ids)
        return write_turn(
            services, streamed, queued.connection, encoder, ignored=ignored, framing=queued.framing
        )


class ResumedStream:
    """``GET /v1/chat/completions/{id}/stream``: the rest of a stream, live or finished.

    ``Last-Event-ID`` (or ``?starting_after=``) names the last frame that the client saw; without, all of it comes. The
    frames have ids.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services, headers, access = request_context(scope)
        after = last_seen(headers, QueryParams(scope["query_string"]))
        opened = await services.turns.attach(
            access.caller,
            scope["path_params"]["completion_id"],
            end_user=first_of(headers, services.settings.user_headers),
        )
        connection = ClientConnection(scope, receive, send)
        chunks = ChunkEncoder(encoder_options(opened, None, decode_options), after=after, has_ids=True)
        encoder = ResumedEncoder(chunks, after=after)
        await write_turn(services, opened, connection, encoder, is_resumed=True, framing=SSE_WITH_IDS)


async def decode_chat_body(services: Services, body: bytes) -> ChatRequest:
    """Return the decoded body of a chat completion, in a thread if that may take long."""
    quickly = partial(decode_chat_without_schemas, max_messages=services.settings.max_messages)
    return await decode_body(services.decode_chat, quickly, body)


def chat_turn_request(
    services: Services, access: Access, headers: dict[str, str], body: bytes, request: ChatRequest
) -> tuple[TurnRequest, AnswerOptions]:
    """Combine body and headers of a request; return it with the options for encoding its response.

    ``body`` is the comparable one. The response format is not compiled, see ``with_response_format``.
    """
    terms, settings = access.terms, services.settings
    if terms.models is not None:
        terms.check_model(request.model)
    facts = services.catalog.find(request.model)
    given = header_options(headers, settings)
    named, source, end_user = given.conversation_id, given.id_source, given.end_user
    options = AnswerOptions(
        id="",
        created=0,
        model=request.model,
        include_usage=request.include_usage,
        system_fingerprint=facts.fingerprint if facts is not None else None,
        events=given.events or services.events_of(facts, terms),
        hides_details=not settings.handoff_details,
        has_status=given.has_status,
    )
    # Most requests have none.
    if request.has_options:
        named, source = given.named_conversation(request.metadata)
        end_user = request.safety_identifier or request.user or end_user
        options = _with_body_options(options, request)
    turn_request = TurnRequest(
        caller=access.caller,
        model=request.model,
        messages=request.messages,
        provider_states=request.provider_states,
        end_user=end_user,
        conversation_id=named,
        id_source=source,
        is_streamed=request.stream,
        is_strict=settings.strict_parameters,
        options=with_request_messages(options, request.messages) if request.store else options,
        body_digest=body_digest(body, named or "", end_user, given.parent or ""),
        is_repeatable=given.is_repeatable,
        parent_source="parent-id",
    )
    # A call with more than 15 arguments would take longer than these three.
    if request.has_options:
        turn_request = _with_options(turn_request, request)
    if not given.are_usual:
        turn_request = _with_rules(turn_request, given)
    return turn_request, options


def _with_body_options(options: AnswerOptions, request: ChatRequest) -> AnswerOptions:
    """Return the options for encoding the response with those of the body."""
    return replace(
        options,
        uses_functions=request.uses_functions,
        logprobs=bool(request.parameters.logprobs),
        service_tier="default" if request.parameters.service_tier else None,
    )


def _with_options(turn_request: TurnRequest, request: ChatRequest) -> TurnRequest:
    """Return the request with the options of its body."""
    return replace(
        turn_request,
        parameters=with_pseudonyms(
            request.parameters,
            turn_request.caller,
            safety_identifier=request.safety_identifier,
            prompt_cache_key=request.prompt_cache_key,
        ),
        tools=request.tools,
        tool_choice=request.tool_choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        uses_functions=request.uses_functions,
        is_stored=request.store is not False,
        is_listed=request.store is True,
        metadata=request.metadata,
    )


def _with_rules(turn_request: TurnRequest, given: HeaderOptions) -> TurnRequest:
    """Return the request with what its headers say about keys, repetitions, running turns and its place."""
    return replace(
        turn_request,
        idempotency_key=given.idempotency_key,
        is_retry=given.is_retry,
        is_side=given.is_side,
        on_disconnect=given.on_disconnect,
        busy=given.busy,
        parent=given.parent,
    )


async def with_response_format(turn_request: TurnRequest) -> TurnRequest:
    """Return the request with its compiled response format.

    Raises:
        InvalidResponseSchema: The schema is invalid, or its patterns are too large or too many.
    """
    compiled = await compile_response_format(turn_request.parameters.response_format)
    return replace(turn_request, response_format=compiled)
