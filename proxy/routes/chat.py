"""``POST /v1/chat/completions``: a request to a team, and its answer, once or again.

A plain ASGI endpoint: the framework's validation and its streaming response cost more than the whole turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from proxy.errors import InvalidRequest
from proxy.exchange.asking import Ask, DisconnectPolicy, IdSource
from proxy.exchange.service import Opened
from proxy.routes.bodies import ClientLeft, first_of, headers_of, read_body
from proxy.routes.dependencies import Services, services_of
from proxy.routes.streaming import Connection, Headers, Patience, answer, stream
from proxy.routes.turns import last_seen
from proxy.wire import sse
from proxy.wire.completions import (
    AnswerOptions,
    ChunkEncoder,
    CompletionBuilder,
    decode_options,
    encode_options,
)
from proxy.wire.decoding import ChatRequest, conversation_id, decode_chat

RETRY_GRACE = 0.6
"""Seconds that a turn goes on when its client left before its answer had begun."""


class ChatCompletions:
    """The endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services = services_of(scope)
        headers = headers_of(scope)
        caller = services.keys.caller(headers.get("authorization"))
        connection = Connection(scope, receive, send)
        try:
            body = await read_body(receive, headers, limit_bytes=services.settings.max_body_bytes)
            request = decode_chat(body, max_messages=services.settings.max_messages)
            ask = _ask(services, caller, headers, body, request)
            scope["state"]["facts"].update(model=ask.model[:100], stream=request.stream)
            opened = await services.exchange.open(ask)
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
        opened = await services.exchange.attach(caller, scope["path_params"]["completion_id"])
        connection = Connection(scope, receive, send)
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
    headers = answer_headers(opened, [*ignored, *opened.ignored])
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
            facts.update(outcome="client_disconnect")
            # The official SDKs repeat a request whose answer had not begun, half a second after they gave it up.
            # That repeat attaches to the turn, instead of running its tools again, if the turn is still there.
            opened.live.left(grace=0.0 if "status" in facts else RETRY_GRACE)


def options_of(opened: Opened) -> AnswerOptions:
    """Return what the encoders need, with the id and the time that the turn has."""
    options = decode_options(opened.options)
    return msgspec.structs.replace(options, id=opened.turn_id, created=int(opened.created_at))


def answer_headers(opened: Opened, ignored: Sequence[str]) -> Headers:
    """Return the headers of our own that tell what the answer belongs to."""
    headers = [(b"x-conversation-match", opened.match.encode())]
    if opened.conversation_id:
        headers.append((b"x-conversation-id", opened.conversation_id.encode()))
    if ignored:
        headers.append((b"x-ignored-parameters", ", ".join(ignored).encode("latin-1", "replace")))
    if opened.is_replayed:
        headers.append((b"idempotency-replayed", b"true"))
    return headers


def _ask(services: Services, caller: str, headers: dict[str, str], body: bytes, request: ChatRequest) -> Ask:
    settings = services.settings
    named, source = _conversation(headers, settings.conversation_headers, request)
    end_user = request.safety_identifier or request.user or first_of(headers, settings.user_headers)
    options = AnswerOptions(
        id="",
        created=0,
        model=request.model,
        include_usage=request.include_usage,
        uses_functions=request.uses_functions,
        logprobs=bool(request.parameters.logprobs),
        service_tier="default" if request.service_tier else None,
    )
    return Ask(
        caller=caller,
        model=request.model,
        messages=request.messages,
        end_user=end_user,
        conversation_id=named,
        id_source=source,
        parameters=request.parameters,
        tools=request.tools,
        tool_choice=request.tool_choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        is_stored=request.store is not False,
        is_listed=request.store is True,
        metadata=request.metadata,
        options=encode_options(options),
        body_digest=_digest(body, named or "", end_user),
        idempotency_key=_idempotency_key(headers),
        is_retry=headers.get("x-stainless-retry-count", "0").strip() not in ("", "0"),
        is_side=bool(headers.get(settings.task_header.lower(), "").strip()),
        on_disconnect=_on_disconnect(headers),
    )


def _conversation(
    headers: dict[str, str], frontend_headers: tuple[str, ...], request: ChatRequest
) -> tuple[str | None, IdSource]:
    """Return the conversation that the client names, and where it does; an empty value is none."""
    own = headers.get("x-conversation-id", "").strip()
    if own:
        return conversation_id(own), "conversation-id"
    frontend = first_of(headers, frontend_headers)
    if frontend:
        return conversation_id(frontend), "frontend-header"
    named = request.metadata.get("conversation_id", "").strip()
    if named:
        return conversation_id(named), "metadata"
    return None, "conversation-id"


def _idempotency_key(headers: dict[str, str]) -> str | None:
    key = headers.get("idempotency-key", "").strip()
    if len(key) > 255:
        raise InvalidRequest(
            "Invalid 'Idempotency-Key': expected at most 255 characters.",
            param="Idempotency-Key",
            code="string_above_max_length",
        )
    return key or None


def _on_disconnect(headers: dict[str, str]) -> DisconnectPolicy | None:
    match headers.get("x-on-disconnect", "").strip().lower():
        case "":
            return None
        case "cancel":
            return "cancel"
        case "detach":
            return "detach"
        case _:
            raise InvalidRequest(
                "Invalid 'X-On-Disconnect': expected 'cancel' or 'detach'.",
                param="X-On-Disconnect",
                code="invalid_value",
            )


def _digest(body: bytes, *places: str) -> bytes:
    """Return what requests have in common that ask for the same, in the same place, for the same person."""
    digest = blake2b(body, digest_size=16)
    for place in places:
        digest.update(b"|" + place.encode("utf-8", "surrogateescape"))
    return digest.digest()
