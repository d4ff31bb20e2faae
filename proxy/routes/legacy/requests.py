"""What the endpoints for older clients have in common: which team answers, and how it is asked."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

from starlette.types import ASGIApp, Receive, Scope

from proxy.messages import Message, UserMessage
from proxy.routes.dependencies import Services, request_context
from proxy.routes.error_handlers import PlainEndpoint
from proxy.routes.request_body import first_of, headers_of, read_body
from proxy.routes.request_headers import (
    body_digest,
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
# A line of nothing would make a client stumble that decodes every line.
LINES = Framing(LINE_HEADERS, b"", is_each_apart=True)
EVENTS = Framing(STREAM_HEADERS, sse.PING, is_each_apart=True, is_prompt=True)
write_legacy_turn = partial(write_turn, to_problem=error_response_with_detail)


def legacy_endpoint(endpoint: ASGIApp) -> PlainEndpoint:
    """Return the endpoint with errors in OpenAI's format and, for legacy clients, the message under ``detail``."""
    return PlainEndpoint(endpoint, to_problem=error_response_with_detail)


async def read_request(scope: Scope, receive: Receive) -> tuple[Services, str, bytes]:
    """Return what serves a request, who asks, and the body."""
    services, headers, caller = request_context(scope)
    return services, caller, await read_body(receive, headers, services.settings)


def team_of(services: Services, configured: str | None, *, usual: str = "", named: str | None = None) -> str:
    """Return the team that answers.

    It is the one that the client names, by its model id or by the name of an agent alone; else the one of the
    settings, else the usual one, else the first that is served.
    """
    if named:
        return _model_named(services, named)
    if configured is not None:
        return configured
    if usual and services.catalog.find(usual) is not None:
        return usual
    return services.catalog.models()[0].id


def _model_named(services: Services, named: str) -> str:
    if services.catalog.find(named) is not None:
        return named
    ids = (facts.id for facts in services.catalog.models())
    return next((model for model in ids if model.endswith(f"/{named}")), named)


def ask_of(
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
    """Return what is asked of the team."""
    services.check_model(caller, team)
    headers = headers_of(scope)
    named = conversation or _named(headers)
    end_user = end_user_of(services, headers)
    return TurnRequest(
        caller=caller,
        model=team,
        messages=messages,
        end_user=end_user,
        conversation_id=named,
        parallel_tool_calls=parallel_tools,
        options=AnswerOptions(id="", created=0, model=team),
        body_digest=body_digest(body, scope["path"], named or "", end_user),
        idempotency_key=idempotency_key(headers),
        on_disconnect=on_disconnect(headers),
        is_addition=is_addition,
    )


def one_message(text: str) -> Sequence[Message]:
    """Return what a client says that sends one message at a time."""
    return [UserMessage(content=text)]


def end_user_of(services: Services, headers: dict[str, str]) -> str:
    """Return the end user whom a frontend names, or ``""``."""
    return first_of(headers, services.settings.user_headers)


async def current_chat(services: Services, caller: str, headers: dict[str, str], *, begins_anew: bool) -> str:
    """Return the conversation of a client that names none and has one going on.

    It is the caller's (and end user's) conversation ``chat``, or the one that its metadata names: that is how
    ``reset_history`` is known on every worker and after a restart. What was said before it stays.
    """
    named = _named(headers)
    if named is not None and not begins_anew:
        return named
    end_user = end_user_of(services, headers)
    first = named or (f"chat-{blake2b(end_user.encode(), digest_size=8).hexdigest()}" if end_user else "chat")
    known = await services.history.find_conversation(caller, first)
    if known is None:
        return first
    if not begins_anew:
        return known.metadata.get("current") or first
    anew = f"{first[:100]}-{secrets.token_hex(8)}"
    if named is None:
        await services.library.update_conversation(caller, first, {**known.metadata, "current": anew})
    return anew


def _named(headers: dict[str, str]) -> str | None:
    named = headers.get("x-conversation-id", "").strip()
    return conversation_id(named) if named else None
