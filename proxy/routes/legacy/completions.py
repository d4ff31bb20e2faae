"""``POST /chat/completions``: OpenAI's requests as under ``/v1``, and those of two older systems, by their bodies."""

from __future__ import annotations

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.errors import InvalidRequest
from proxy.routes.dependencies import request_context
from proxy.routes.legacy.requests import (
    LINES,
    ask_of,
    legacy_endpoint,
    one_message,
    read_request,
    team_of,
    write_legacy_turn,
)
from proxy.routes.request_body import read_body
from proxy.routes.streaming import Connection
from proxy.wire.legacy.ndjson import LineEncoder, TextBuilder
from proxy.wire.legacy.requests import NEW_MESSAGE, SOURCES, conversation_id, kind_of, messages_of
from proxy.wire.validation.body_decoder import read_object

_BODY_HEADERS = (b"content-encoding", b"content-length")


class EitherCompletions:
    """The endpoint; ``chat`` is the one under ``/v1``."""

    def __init__(self, chat: ASGIApp) -> None:
        self._chat = chat
        self._by_kind = {"message": legacy_endpoint(_new_message), "sources": legacy_endpoint(_sources)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services, headers, _ = request_context(scope)
        body = await read_body(receive, headers, services.settings)
        endpoint = self._by_kind.get(kind_of(body), self._chat)
        # The body that is read again is decoded, so these headers do not describe it.
        others = [header for header in scope["headers"] if header[0] not in _BODY_HEADERS]
        # Headers are cached in the state, see ``headers_of``.
        state = {key: value for key, value in scope["state"].items() if key != "headers"}
        await endpoint({**scope, "headers": others, "state": state}, _again(body, receive), send)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what gives the body that was read once more, and then goes on."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _new_message(scope: Scope, receive: Receive, send: Send) -> None:
    """One new message of a conversation that is kept here; lines tell text, tools and handoffs."""
    services, caller, body = await read_request(scope, receive)
    is_typed = _is_typed(scope)
    given = read_object(NEW_MESSAGE, body)
    named = conversation_id(given.conversation_id) if given.conversation_id is not None else None
    team = team_of(services, services.settings.older_team, named=given.agent)
    ask = ask_of(scope, caller, services, team, one_message(given.message), body=body, conversation=named)
    opened = await services.turns.open(ask)
    connection, encoder = Connection(scope, receive, send), LineEncoder(is_typed=is_typed)
    await write_legacy_turn(services, opened, connection, encoder, framing=LINES)


async def _sources(scope: Scope, receive: Receive, send: Send) -> None:
    """A whole history; lines tell text."""
    services, caller, body = await read_request(scope, receive)
    given = read_object(SOURCES, body)
    messages = messages_of(given, max_messages=services.settings.max_messages)
    team = team_of(services, services.settings.older_team)
    opened = await services.turns.open(
        ask_of(scope, caller, services, team, messages, body=body, is_addition=False)
    )
    connection = Connection(scope, receive, send)
    encoder = TextBuilder() if given.stream is False else LineEncoder(is_typed=False)
    await write_legacy_turn(services, opened, connection, encoder, framing=LINES)


def _is_typed(scope: Scope) -> bool:
    match QueryParams(scope["query_string"]).get("format", ""):
        case "" | "json":
            return True
        case "text":
            return False
        case _:
            raise InvalidRequest(
                "Invalid 'format': expected 'json' or 'text'.", param="format", code="invalid_value"
            )
