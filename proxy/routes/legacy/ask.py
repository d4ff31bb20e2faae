"""``POST /ask-stream``: stream the steps of a turn; ``GET /test-stream``: stream a scripted turn without a model.

A turn of ``/ask-stream`` continues if its client leaves, unless the request has ``X-On-Disconnect: cancel``. Its stream
can be resumed with the same request and ``Last-Event-ID``, or with ``GET /ask-stream/{turn_id}``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from proxy.events import (
    Completed,
    Event,
    Handoff,
    ModelCalled,
    Started,
    TextDelta,
    ToolCompleted,
    ToolStarted,
)
from proxy.messages import Usage
from proxy.routes.client_connection import ClientConnection, StreamTimeouts
from proxy.routes.dependencies import Services, request_context
from proxy.routes.legacy.requests import (
    EVENTS,
    end_user_of,
    read_request,
    single_user_message,
    team_of,
    turn_request,
    write_legacy_turn,
)
from proxy.routes.request_body import headers_of
from proxy.routes.request_headers import wants_event_ids
from proxy.routes.streaming import stream
from proxy.routes.turn_response import has_frames, turn_headers, write_nothing_more
from proxy.service.turns import TurnHandle
from proxy.turns.live import LiveTurn
from proxy.wire.legacy.ask import (
    QuestionEncoder,
    QuestionOptions,
    decode_question_options,
    last_event,
    last_number,
)
from proxy.wire.legacy.requests import QUESTION
from proxy.wire.validation.body_decoder import read_object

ASK_TEAM = "business-insights"
SCRIPTED_QUESTION = "Is everything there that a client needs?"
SCRIPTED_STEPS = ("PlanningAgent", "DataAgent", "ReportAgent")
SCRIPTED: Sequence[Event] = (
    Started("test", "PlanningAgent", SCRIPTED_STEPS),
    TextDelta("First the figures, then a report."),
    ModelCalled("PlanningAgent", "scripted", Usage(), 0.0),
    Handoff("PlanningAgent", "DataAgent"),
    ToolStarted("call_1", "query_sales", '{"group_by":"month","last_months":1}', "DataAgent"),
    ToolCompleted("call_1", "query_sales", '{"rows":[]}', 0.0),
    TextDelta("The figures are there."),
    ModelCalled("DataAgent", "scripted", Usage(), 0.0),
    Handoff("DataAgent", "ReportAgent"),
    TextDelta("This answer comes from a script; "),
    TextDelta("no model was asked."),
    ModelCalled("ReportAgent", "scripted", Usage(), 0.0),
    Completed("ReportAgent", "stop", Usage()),
)


async def ask_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a question without a conversation; with ``Last-Event-ID``, resume the stream of an earlier one."""
    services, caller, body = await read_request(scope, receive)
    connection = ClientConnection(scope, receive, send)
    seen = headers_of(scope).get("last-event-id", "").strip()
    if seen:
        turn_id, number = last_event(seen)
        # Never 204, as for GET: ``fetch`` has no body to read then, and these clients do not reconnect on their own.
        opened, stored = await _attach(services, caller, turn_id, headers_of(scope))
        await _write(services, opened, stored, number, connection, is_resumed=True)
        return
    question = read_object(QUESTION, body).question
    team = team_of(services, services.settings.older_ask_team, default=ASK_TEAM)
    request = await turn_request(scope, caller, services, team, single_user_message(question), body=body)
    facts = services.catalog.find(team)
    agents = tuple(facts.team.agents) if facts is not None and facts.team is not None else ()
    options = QuestionOptions(id="", created=0, model=team, question=question, agents=agents)
    opened = await services.turns.open(
        replace(request, options=options, on_disconnect=request.on_disconnect or "detach")
    )
    await _write(services, opened, options, 0, connection)


async def resumed_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Resume the stream of a question after ``Last-Event-ID`` (or ``?starting_after=``); without it, replay it."""
    services, headers, access = request_context(scope)
    turn_id = scope["path_params"]["turn_id"]
    number = last_number(
        turn_id,
        last_event_id=headers.get("last-event-id", "").strip(),
        starting_after=QueryParams(scope["query_string"]).get("starting_after", "").strip(),
    )
    opened, options = await _attach(services, access.caller, turn_id, headers)
    connection = ClientConnection(scope, receive, send)
    if await has_frames(opened.live, _encoder(opened, options, number, scope)):
        await _write(services, opened, options, number, connection, is_resumed=True)
    else:
        await write_nothing_more(send, turn_headers(opened, (), scope["state"]["facts"]))


async def _attach(
    services: Services, caller: str, turn_id: str, headers: dict[str, str]
) -> tuple[TurnHandle, QuestionOptions]:
    opened = await services.turns.attach(caller, turn_id, end_user=end_user_of(services, headers))
    return opened, decode_question_options(turn_id, opened.stored_options or b"{}")


async def _write(
    services: Services,
    opened: TurnHandle,
    options: QuestionOptions,
    after: int,
    connection: ClientConnection,
    *,
    is_resumed: bool = False,
) -> None:
    encoder = _encoder(opened, options, after, connection.scope)
    await write_legacy_turn(services, opened, connection, encoder, is_resumed=is_resumed, framing=EVENTS)


def _encoder(opened: TurnHandle, options: QuestionOptions, after: int, scope: Scope) -> QuestionEncoder:
    return QuestionEncoder(
        opened.turn_id,
        options.question,
        agents=options.agents or [opened.agent],
        after=after,
        has_id_lines=_has_id_lines(scope),
    )


def _has_id_lines(scope: Scope) -> bool:
    """Whether the frames have ids: if requested, or if the client is one for server-sent events.

    These send ``Accept`` (HTML Standard, 9.2.2).
    """
    headers = headers_of(scope)
    is_requested = wants_event_ids(headers, scope["query_string"])
    return is_requested or "text/event-stream" in headers.get("accept", "") or "last-event-id" in headers


async def scripted_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream a scripted turn of three agents, for testing clients."""
    _, headers, _ = request_context(scope)
    after = last_number("test", last_event_id=headers.get("last-event-id", "").strip(), starting_after="")
    if not await has_frames(_played(), _scripted_encoder(after, scope)):
        await write_nothing_more(send, [])
        return
    live, encoder = LiveTurn("test"), _scripted_encoder(after, scope)
    playing = asyncio.create_task(_play(live), name="scripted turn")
    try:
        connection = ClientConnection(scope, receive, send)
        await stream(live, encoder, [], connection, StreamTimeouts(), framing=EVENTS, left=lambda: None)
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


def _scripted_encoder(after: int, scope: Scope) -> QuestionEncoder:
    has_id_lines = _has_id_lines(scope)
    return QuestionEncoder(
        "test", SCRIPTED_QUESTION, agents=SCRIPTED_STEPS, after=after, has_id_lines=has_id_lines
    )


def _played() -> LiveTurn:
    live = LiveTurn("test")
    for event in SCRIPTED:
        live.emit(event)
    return live


async def _play(live: LiveTurn, pause: float = 0.05) -> None:
    for event in SCRIPTED:
        live.emit(event)
        await asyncio.sleep(pause)
