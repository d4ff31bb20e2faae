"""``POST /v1/chat/completions``: a request to a team, and its answer, once or again.

A plain ASGI endpoint: the framework's validation and its streaming response cost more than the whole turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from proxy.routes.dependencies import Services, services_of
from proxy.routes.request_body import ClientLeft, first_of, headers_of, read_body
from proxy.routes.request_headers import (
    answer_headers,
    body_digest,
    client_left,
    idempotency_key,
    is_retry,
    is_side_task,
    named_conversation,
    on_disconnect,
    parent_id,
    told_events,
    wants_status,
    with_pseudonyms,
)
from proxy.routes.streaming import Connection, Patience, answer, stream
from proxy.routes.turns import last_seen
from proxy.service.turns import Opened
from proxy.turns.request import Ask
from proxy.wire.chat.completion import (
    AnswerOptions,
    CompletionBuilder,
    decode_options,
    encode_options,
)
from proxy.wire.chat.parse import ChatRequest, decode_chat
from proxy.wire.chat.stored import asked_with
from proxy.wire.chat.stream import ChunkEncoder
from proxy.wire.events import sse


class ChatCompletions:
    """``POST /v1/chat/completions``: asks a team, or a model that is served straight through."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services = services_of(scope)
        headers = headers_of(scope)
        caller = services.keys.caller(headers.get("authorization"))
        connection = Connection(scope, receive, send)
        try:
            settings = services.settings
            body = await read_body(
                receive, headers, limit_bytes=settings.max_body_bytes, time_limit=settings.body_timeout
            )
            if services.passing is not None and await services.passing.serve(
                body, connection, caller, services.keys.terms_of(caller)
            ):
                return
            request = decode_chat(body, max_messages=settings.max_messages, strict=settings.strict_parameters)
            ask = chat_ask(services, caller, headers, body, request)
            # It is as large as the history, and the answer may take minutes.
            del body
            scope["state"]["facts"].update(model=ask.model[:100], stream=request.stream)
            opened = await services.turns.open(ask)
            await _write(services, opened, connection, is_stream=request.stream, ignored=request.ignored)
        except ClientLeft:
            scope["state"]["facts"].update(outcome="client_disconnect")


class ResumedStream:
    """``GET /v1/chat/completions/{id}/stream``: the rest of a stream, live or finished.

    ``Last-Event-ID`` (or ``?starting_after=``) names the last frame that the client saw; without, all of it comes.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services = services_of(scope)
        headers = headers_of(scope)
        caller = services.keys.caller(headers.get("authorization"))
        after = last_seen(headers, QueryParams(scope["query_string"]))
        opened = await services.turns.attach(
            caller,
            scope["path_params"]["completion_id"],
            end_user=first_of(headers, services.settings.user_headers),
        )
        connection = Connection(scope, receive, send)
        # Who takes nothing any more has left; that was noted.
        with suppress(ClientLeft):
            await _write(services, opened, connection, is_stream=True, after=after)


async def _write(
    services: Services,
    opened: Opened,
    connection: Connection,
    *,
    is_stream: bool,
    ignored: Sequence[str] = (),
    after: sse.Position | None = None,
) -> None:
    facts = connection.scope["state"]["facts"]
    facts.update(turn_id=opened.turn_id, conversation_id=opened.conversation_id)
    options = options_of(opened)
    headers = answer_headers(opened, [*ignored, *opened.ignored], facts)
    patience = Patience(services.settings.keep_alive_interval, services.settings.stalled_client_timeout)
    took_all = False
    try:
        if is_stream:
            encoder = ChunkEncoder(options, after=after or sse.START)
            took_all = await stream(
                opened.live, encoder, headers, connection, patience, is_resumed=after is not None
            )
        else:
            took_all = await answer(opened.live, CompletionBuilder(options), headers, connection, patience)
    finally:
        if not took_all:
            client_left(opened.live, facts)


def options_of(opened: Opened) -> AnswerOptions:
    """Return what the encoders need, with the id and the time that the turn has."""
    options = decode_options(opened.options)
    # Side requests are answered by one model; of a team there is nothing to tell.
    events = options.events if opened.match != "side-request" else "none"
    return msgspec.structs.replace(options, id=opened.turn_id, created=int(opened.created_at), events=events)


def chat_ask(
    services: Services, caller: str, headers: dict[str, str], body: bytes, request: ChatRequest
) -> Ask:
    """Return what a request asks for, with what its headers say."""
    services.check_model(caller, request.model)
    settings = services.settings
    named, source = named_conversation(headers, settings.conversation_headers, request.metadata)
    end_user = request.safety_identifier or request.user or first_of(headers, settings.user_headers)
    options = AnswerOptions(
        id="",
        created=0,
        model=request.model,
        include_usage=request.include_usage,
        uses_functions=request.uses_functions,
        logprobs=bool(request.parameters.logprobs),
        service_tier="default" if request.service_tier else None,
        system_fingerprint=services.fingerprint_of(request.model),
        events=told_events(headers) or services.events_of(request.model, caller),
        hides_details=not settings.handoff_details,
        has_status=wants_status(headers, settings),
    )
    return Ask(
        caller=caller,
        model=request.model,
        messages=request.messages,
        end_user=end_user,
        conversation_id=named,
        id_source=source,
        parameters=with_pseudonyms(
            request.parameters,
            caller,
            safety_identifier=request.safety_identifier,
            prompt_cache_key=request.prompt_cache_key,
        ),
        tools=request.tools,
        tool_choice=request.tool_choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        is_strict=settings.strict_parameters,
        uses_functions=request.uses_functions,
        is_stored=request.store is not False,
        is_listed=request.store is True,
        metadata=request.metadata,
        options=encode_options(asked_with(options, request.messages) if request.store else options),
        body_digest=body_digest(body, named or "", end_user, parent_id(headers) or ""),
        idempotency_key=idempotency_key(headers),
        is_retry=is_retry(headers),
        is_side=is_side_task(headers, settings),
        on_disconnect=on_disconnect(headers),
        parent=parent_id(headers),
        parent_name="X-Parent-Id",
    )
