"""Common code of the legacy endpoints: select the team, and build the turn request."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

from starlette.types import Receive, Scope

from proxy.messages import Message, UserMessage
from proxy.routes.dependencies import Services, request_context
from proxy.routes.error_handlers import Endpoint, PlainEndpoint
from proxy.routes.request_body import first_of, headers_of, read_body
from proxy.routes.request_headers import (
    body_digest,
    busy_policy,
    comparable_body,
    idempotency_key,
    on_disconnect,
)
from proxy.routes.streaming import (
    STREAM_HEADERS,
    Framing,
    Headers,
)
from proxy.routes.turn_response import write_turn
from proxy.turns.request import TurnRequest
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.parse import conversation_id
from proxy.wire.errors import error_response_with_detail
from proxy.wire.events import sse

LINE_HEADERS: Headers = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# Without keep-alive frames: clients that decode every line as JSON fail at an empty one.
LINES = Framing(LINE_HEADERS, b"", separator=b"\n")
EVENTS = Framing(STREAM_HEADERS, sse.PING_BETWEEN_IDS, separator=b"\n\n", starts_immediately=True)
write_legacy_turn = partial(write_turn, to_problem=error_response_with_detail)


def legacy_endpoint(endpoint: Endpoint) -> PlainEndpoint:
    """Return the endpoint with errors in OpenAI's format and, for legacy clients, the message under ``detail``."""
    return PlainEndpoint(endpoint, to_problem=error_response_with_detail)


async def read_request(scope: Scope, receive: Receive) -> tuple[Services, str, bytes]:
    """Return the services, the caller and the body of a request."""
    services, headers, access = request_context(scope)
    return services, access.caller, await read_body(scope, receive, services.settings, headers)


def team_of(
    services: Services, configured: str | None, *, default: str = "", named: str | None = None
) -> str:
    """Return the model id of the team or agent for a request.

    In this order: the one that the client names, by model id or by the name of an agent only; the ``configured`` team;
    the ``default`` team, if it is served; the first team.
    """
    if named:
        return _model_named(services, named)
    if configured is not None:
        return configured
    if default and services.catalog.find(default) is not None:
        return default
    return services.catalog.models()[0].id


def _model_named(services: Services, named: str) -> str:
    if services.catalog.find(named) is not None:
        return named
    ids = (facts.id for facts in services.catalog.models())
    return next((model for model in ids if model.endswith(f"/{named}")), named)


async def turn_request(
    scope: Scope,
    caller: str,
    services: Services,
    team: str,
    messages: Sequence[Message],
    *,
    body: bytes = b"",
    conversation: str | None = None,
    is_addition: bool = True,
    parallel_tools: bool = True,
) -> TurnRequest:
    """Return the turn request of a legacy endpoint.

    Raises:
        ModelNotFound: The key of the caller does not allow the team.
    """
    services.check_model(caller, team)
    headers = headers_of(scope)
    named = conversation or _named(headers)
    end_user = end_user_of(services, headers)
    key = idempotency_key(headers)
    compared = await comparable_body(body, headers)
    return TurnRequest(
        caller=caller,
        model=team,
        messages=messages,
        end_user=end_user,
        conversation_id=named,
        parallel_tool_calls=parallel_tools,
        options=AnswerOptions(id="", created=0, model=team),
        body_digest=body_digest(compared, scope["path"], named or "", end_user),
        idempotency_key=key,
        on_disconnect=on_disconnect(headers),
        # Clients of these endpoints show nothing for 409, and several users can share one chat.
        busy=busy_policy(headers) or "queue",
        is_addition=is_addition,
    )


def single_user_message(text: str) -> Sequence[Message]:
    """Return the messages of a request that has one user message."""
    return [UserMessage(content=text)]


def end_user_of(services: Services, headers: dict[str, str]) -> str:
    """Return the end user of the request headers, or ``""``."""
    return first_of(headers, services.settings.user_headers)


async def current_chat(
    services: Services, caller: str, headers: dict[str, str], *, browser: str, resets_history: bool
) -> str:
    """Return the id of the current chat of a caller and end user, or of a ``browser``.

    It is the conversation that the request names; else the conversation ``chat``, or the one that the metadata of
    ``chat`` names. A reset (``reset_history``) writes a new id into that metadata, so that all workers use it. The
    earlier messages remain stored. A request that repeats an idempotency key has the conversation of its first
    attempt and resets nothing.
    """
    key = idempotency_key(headers)
    if key is not None:
        begun = await services.history.turn_by_idempotency_key(caller, key)
        if begun is not None:
            return begun.conversation_id
    named = _named(headers)
    if named is not None and not resets_history:
        return named
    end_user = end_user_of(services, headers)
    owner = end_user or (f"browser {browser}" if browser else "")
    first = named or (f"chat-{blake2b(owner.encode(), digest_size=8).hexdigest()}" if owner else "chat")
    known = await services.history.find_conversation(caller, first)
    if known is None:
        return first
    if not resets_history:
        return known.metadata.get("current") or first
    new_id = f"{first[:100]}-{secrets.token_hex(8)}"
    if named is None:
        await services.library.update_conversation(caller, first, {**known.metadata, "current": new_id})
    return new_id


def _named(headers: dict[str, str]) -> str | None:
    named = headers.get("x-conversation-id", "").strip()
    return conversation_id(named) if named else None
