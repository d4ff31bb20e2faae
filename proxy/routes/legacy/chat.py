"""``POST /chat`` and ``POST /chat/stream``: one new message of the caller's current chat."""

from __future__ import annotations

from functools import partial

from starlette.types import Receive, Scope, Send

from proxy.routes.client_connection import ClientConnection, client_left
from proxy.routes.dependencies import Services
from proxy.routes.legacy.browser_chats import BrowserChat, browser_chat_of
from proxy.routes.legacy.requests import (
    EVENTS,
    current_chat,
    read_request,
    single_user_message,
    team_of,
    turn_request,
    write_legacy_turn,
)
from proxy.routes.request_body import headers_of
from proxy.service.turns import TurnHandle
from proxy.turns.request import TurnRequest
from proxy.wire.legacy.chat import ChatBuilder, ChatEventEncoder
from proxy.wire.legacy.requests import CHAT, LegacyChatBody
from proxy.wire.validation.body_decoder import read_object

CHAT_TEAM = "assistant"


async def chat(scope: Scope, receive: Receive, send: Send) -> None:
    """Return the answer as one JSON object at the end of the turn."""
    services, opened, browser = await _open(scope, receive)
    builder = ChatBuilder(opened.conversation_id)
    connection = ClientConnection(scope, receive, browser.wrap(send))
    await write_legacy_turn(services, opened, connection, builder)


async def chat_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream the events of the turn."""
    services, opened, browser = await _open(scope, receive)
    connection = ClientConnection(scope, receive, browser.wrap(send))
    encoder = ChatEventEncoder()
    await write_legacy_turn(services, opened, connection, encoder, framing=EVENTS)


async def chat_request(
    services: Services, caller: str, scope: Scope, given: LegacyChatBody, body: bytes, *, browser: str
) -> TurnRequest:
    """Return the turn request for a message of the current chat."""
    conversation = await current_chat(
        services, caller, headers_of(scope), browser=browser, resets_history=bool(given.reset_history)
    )
    return await turn_request(
        scope,
        caller,
        services,
        team_of(services, services.settings.older_chat_team, default=CHAT_TEAM, named=given.agent),
        single_user_message(given.message),
        body=body,
        conversation=conversation,
        parallel_tools=given.parallel_tools is not False,
    )


async def _open(scope: Scope, receive: Receive) -> tuple[Services, TurnHandle, BrowserChat]:
    services, caller, body = await read_request(scope, receive)
    given = read_object(CHAT, body)
    browser = browser_chat_of(scope, caller)
    request = await chat_request(services, caller, scope, given, body, browser=browser.id)
    return services, await services.turns.open(request, left=partial(client_left, receive)), browser
