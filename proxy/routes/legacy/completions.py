"""``POST /chat/completions``: the OpenAI format as under ``/v1``, and two legacy formats; the body decides which."""

from __future__ import annotations

from functools import partial

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.errors import InvalidRequest
from proxy.routes.client_connection import ClientConnection, client_left
from proxy.routes.dependencies import request_context
from proxy.routes.legacy.requests import (
    LINES,
    legacy_endpoint,
    read_request,
    single_user_message,
    team_of,
    turn_request,
    write_legacy_turn,
)
from proxy.routes.request_body import read_body
from proxy.wire.legacy.ndjson import LineEncoder, TextBuilder
from proxy.wire.legacy.requests import NEW_MESSAGE, SOURCES, conversation_id, kind_of, messages_of
from proxy.wire.validation.body_decoder import read_object

_BODY_HEADERS = (b"content-encoding", b"content-length")


class LegacyCompletions:
    """``POST /chat/completions``: answer a message, a list of messages, or an OpenAI request.

    ``chat`` is the endpoint under ``/v1``.
    """

    def __init__(self, chat: ASGIApp) -> None:
        self._chat = chat
        self._by_kind = {"message": legacy_endpoint(_new_message), "sources": legacy_endpoint(_sources)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services, headers, _ = request_context(scope)
        body = await read_body(scope, receive, services.settings, headers)
        endpoint = self._by_kind.get(kind_of(body), self._chat)
        # ``_BODY_HEADERS`` describe the encoded body; the endpoint receives the decoded one.
        others = [header for header in scope["headers"] if header[0] not in _BODY_HEADERS]
        # Headers are cached in the state, see ``headers_of``.
        state = {key: value for key, value in scope["state"].items() if key != "headers"}
        await endpoint({**scope, "headers": others, "state": state}, _again(body, receive), send)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that first returns the body, which was read before, and then calls the original."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _new_message(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one new message of a stored conversation; the lines report text, tool calls and handoffs."""
    services, caller, body = await read_request(scope, receive)
    is_typed = _is_typed(scope, default=services.settings.older_content == "object")
    given = read_object(NEW_MESSAGE, body)
    named = conversation_id(given.conversation_id) if given.conversation_id is not None else None
    team = team_of(services, services.settings.older_team, named=given.agent)
    request = await turn_request(
        scope, caller, services, team, single_user_message(given.message), body=body, conversation=named
    )
    opened = await services.turns.open(request, left=partial(client_left, receive))
    connection, encoder = ClientConnection(scope, receive, send), LineEncoder(is_typed=is_typed)
    await write_legacy_turn(services, opened, connection, encoder, framing=LINES)


async def _sources(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a complete list of messages; the lines have text only."""
    services, caller, body = await read_request(scope, receive)
    given = read_object(SOURCES, body)
    messages = messages_of(given, max_messages=services.settings.max_messages)
    team = team_of(services, services.settings.older_team)
    opened = await services.turns.open(
        await turn_request(scope, caller, services, team, messages, body=body, is_addition=False),
        left=partial(client_left, receive),
    )
    connection = ClientConnection(scope, receive, send)
    encoder = TextBuilder() if given.stream is False else LineEncoder(is_typed=False)
    await write_legacy_turn(services, opened, connection, encoder, framing=LINES)


def _is_typed(scope: Scope, *, default: bool) -> bool:
    match QueryParams(scope["query_string"]).get("format", ""):
        case "":
            return default
        case "json":
            return True
        case "text":
            return False
        case _:
            raise InvalidRequest(
                "Invalid 'format': expected 'json' or 'text'.", param="format", code="invalid_value"
            )
