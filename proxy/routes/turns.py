"""Endpoints of turns: status, events, cancellation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.errors import CompletionNotFound
from proxy.messages import Usage
from proxy.routes.client_connection import ClientConnection
from proxy.routes.dependencies import CallerDep, EndUserDep, ServicesDep, request_context
from proxy.routes.feed_stream import feed_stream
from proxy.routes.request_body import first_of
from proxy.routes.turn_response import has_frames, write_nothing_more
from proxy.turns.records import ModelUse, TurnRecord
from proxy.turns.repository import accessible_turn
from proxy.wire.chat.response_models import encode, usage_body
from proxy.wire.events import sse
from proxy.wire.events.feed import Feed, FeedEncoder, feed_types
from proxy.wire.turn_summary import ModelUsage, TurnSummary, rounded_cost

router = APIRouter(tags=["turns"])


@router.post("/v1/chat/completions/{completion_id}/cancel")
@router.post("/v1/turns/{completion_id}/cancel")
async def cancel(
    completion_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Cancel a turn of any worker. Its stream ends regularly, and the partial output is stored in the conversation.

    A finished turn is unchanged. ``status`` is ``running`` until another worker has processed the cancellation.
    """
    record = await services.turns.cancel(caller, completion_id, end_user=end_user)
    body = {
        "id": record.id,
        "object": "chat.completion.cancelled",
        "status": record.status,
        "cancelled": record.status == "cancelled",
    }
    return Response(encode(body), media_type="application/json")


@router.get("/v1/turns/{turn_id}")
async def retrieve_turn(
    turn_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Return the status of a turn: state, active agent, usage, and calls and times of each agent."""
    record = await accessible_turn(services.history, caller, turn_id, end_user)
    if record is None or not record.was_run:
        raise CompletionNotFound(turn_id)
    summary = TurnSummary(services.turns.log_of(record), now=services.clock())
    return Response(encode(_body(record, summary)), media_type="application/json")


class TurnEvents:
    """``GET /v1/turns/{id}/events``: the events of a turn, live or replayed.

    ``Last-Event-ID`` (or ``?starting_after=``) is the id of the last frame that the reader has seen, ``?types=``
    filters the frame types. A reader of the feed does not prevent cancellation when the client of the turn disconnects.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        services, headers, access = request_context(scope)
        query = QueryParams(scope["query_string"])
        after = last_seen(headers, query)
        types = feed_types(query.get("types", ""))
        opened = await services.turns.attach(
            access.caller,
            scope["path_params"]["turn_id"],
            end_user=first_of(headers, services.settings.user_headers),
            is_observer=True,
        )
        scope["state"]["facts"].update(turn_id=opened.turn_id, conversation_id=opened.conversation_id)
        named = [(b"x-conversation-id", opened.conversation_id.encode())]
        feed = Feed(opened.turn_id, hides_details=not services.settings.handoff_details)
        if not await has_frames(opened.live, FeedEncoder(feed, types=types, after=after)):
            await write_nothing_more(send, named)
            return
        async with feed_stream(services, ClientConnection(scope, receive, send), named, types) as stream:
            await stream.write_turn(opened, after=after)


def last_seen(headers: dict[str, str], query: QueryParams) -> sse.Position:
    """Return the position of the last frame that a reader has seen.

    Raises:
        InvalidRequest: The value is not an event id.
    """
    named, param = named_position(headers, query)
    return sse.position(named, param=param) if named else sse.START


def named_position(headers: dict[str, str], query: QueryParams) -> tuple[str, str]:
    """Return the id of the last frame that a reader has seen, or ``""``, and the name of the header or parameter."""
    header = headers.get("last-event-id", "").strip()
    return (
        (header, "Last-Event-ID") if header else (query.get("starting_after", "").strip(), "starting_after")
    )


def _body(record: TurnRecord, summary: TurnSummary) -> dict[str, Any]:
    usages = [_usage_body(*names, use) for names, use in summary.uses.items()]
    if not usages:
        # The log is not stored, or the turn runs in another worker.
        usages = [_usage_body(use.agent, use.model, use) for use in record.uses]
    total = sum((use.usage for use in summary.uses.values() or record.uses), Usage())
    body: dict[str, Any] = {
        "id": record.id,
        "object": "turn",
        "status": record.status,
        "conversation_id": record.conversation_id,
        "team": record.team,
        "model": record.model,
        "agent": summary.agent or record.agent,
        "created_at": round(record.created_at, 3),
        "first_text_at": None if summary.first_text_at is None else round(summary.first_text_at, 3),
        "finished_at": None if record.finished_at is None else round(record.finished_at, 3),
        "seconds": None if record.finished_at is None else round(record.finished_at - record.created_at, 3),
        "finish_reason": record.finish_reason,
        "error_code": record.error_code if record.status in ("failed", "interrupted") else None,
        "cancel_reason": record.error_code if record.status == "cancelled" else None,
        "usage": usage_body(total),
        "usage_by_agent": usages,
        "agents": summary.agents,
    }
    percent = summary.progress.percent
    return body if percent is None else {**body, "progress": percent}


def _usage_body(agent: str, model: str, use: ModelUsage | ModelUse) -> dict[str, Any]:
    body = {"agent": agent, "model": model, "calls": use.calls, "usage": usage_body(use.usage)}
    if isinstance(use, ModelUsage):
        body["seconds"] = round(use.seconds, 3)
        if use.cost is not None:
            body["cost"] = rounded_cost(use.cost)
    return body
