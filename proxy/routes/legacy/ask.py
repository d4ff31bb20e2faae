"""``POST /ask-stream``: stream the steps of a turn; ``GET /test-stream``: stream a scripted turn without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
from proxy.routes.dependencies import request_context
from proxy.routes.legacy.requests import (
    EVENTS,
    read_request,
    single_user_message,
    team_of,
    turn_request,
    write_legacy_turn,
)
from proxy.routes.streaming import Connection, StreamTimeouts, stream
from proxy.turns.live import LiveTurn
from proxy.wire.legacy.ask import QuestionEncoder
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
    """Answer a question without a conversation."""
    services, caller, body = await read_request(scope, receive)
    question = read_object(QUESTION, body).question
    team = team_of(services, services.settings.older_ask_team, default=ASK_TEAM)
    opened = await services.turns.open(
        turn_request(scope, caller, services, team, single_user_message(question), body=body)
    )
    facts = services.catalog.find(team)
    agents = facts.team.agents if facts is not None and facts.team is not None else [opened.agent]
    encoder = QuestionEncoder(question, agents=agents)
    connection = Connection(scope, receive, send)
    await write_legacy_turn(services, opened, connection, encoder, framing=EVENTS)


async def scripted_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream a scripted turn of three agents, for testing clients."""
    request_context(scope)
    live = LiveTurn("test")
    encoder = QuestionEncoder(SCRIPTED_QUESTION, agents=SCRIPTED_STEPS)
    playing = asyncio.create_task(_play(live), name="scripted turn")
    try:
        connection = Connection(scope, receive, send)
        await stream(live, encoder, [], connection, StreamTimeouts(), framing=EVENTS)
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


async def _play(live: LiveTurn, pause: float = 0.05) -> None:
    for event in SCRIPTED:
        live.emit(event)
        await asyncio.sleep(pause)
