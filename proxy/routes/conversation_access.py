"""What the routes over kept things have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response

from proxy.auth import may_access
from proxy.errors import ConversationNotFound, InvalidRequest
from proxy.routes.dependencies import Services, services_of
from proxy.routes.request_body import ClientLeft, first_of, headers_of, read_body
from proxy.turns.repository import Conversation
from proxy.wire.chat.response_models import encode


def json_answer(body: Mapping[str, Any], *, conversation_id: str | None = None) -> Response:
    """Return the answer, with the conversation that it belongs to."""
    headers = {"X-Conversation-Id": conversation_id} if conversation_id else None
    return Response(encode(body), media_type="application/json", headers=headers)


async def conversation_of(
    services: Services, caller: str, end_user: str, conversation_id: str
) -> Conversation:
    """Return the conversation.

    Raises:
        ConversationNotFound: The caller has none with this id, or it is another end user's.
    """
    known = await services.history.find_conversation(caller, conversation_id)
    if known is None or not may_access(end_user, known.end_user):
        raise ConversationNotFound(conversation_id)
    return known


async def _body(request: Request) -> bytes:
    settings = services_of(request.scope).settings
    try:
        return await read_body(
            request.receive,
            headers_of(request.scope),
            limit_bytes=settings.max_body_bytes,
            time_limit=settings.body_timeout,
        )
    except ClientLeft:
        # Nobody reads this any more.
        raise InvalidRequest("The request ended before it was whole.") from None


def _end_user(request: Request) -> str:
    return first_of(headers_of(request.scope), services_of(request.scope).settings.user_headers)


BodyDep = Annotated[bytes, Depends(_body)]
"""The body, under the limit of all bodies."""
EndUserDep = Annotated[str, Depends(_end_user)]
"""The end user whom the request names in a header, or ``""``."""
