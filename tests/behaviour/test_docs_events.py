"""docs/events.md has the output of its programs and the frames of the turns below."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import pytest

from proxy.events import (
    TAKEOVER_POSITIONS,
    ApprovalDecided,
    ApprovalRequested,
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    ContextCompacted,
    DelegateEvent,
    Entry,
    Event,
    Failed,
    Handoff,
    MemberTeamEvent,
    ModelCalled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import Usage
from proxy.routes.websocket import MAX_TURNS
from proxy.turns.log_reader import TERMINAL_POSITION
from proxy.wire.chat.response_models import encode
from proxy.wire.events.feed import Feed, FrameType
from proxy.wire.events.websocket import Action, ClientMessage
from tests.behaviour.chat_client import Caller, user
from tests.behaviour.test_turn_events import get
from tests.server import Served, serve

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROGRAMS = [
    (text, BLOCKS[number + 1][1]) for number, (language, text) in enumerate(BLOCKS) if language == "python"
]
SHOWN = re.findall(r'^\{"position":\d.+', PAGE, re.MULTILINE)

TURNS: dict[str, list[tuple[float, Event]]] = {
    "chatcmpl-0b1": [
        (7.5, Started("chatcmpl-0b1", "triage", ("triage", "sales"))),
        (8.25, ModelCalled("triage", "quick", Usage(203, 14), 0.75)),
        (8.25, Handoff("triage", "sales", "wants a rocket")),
        (9.0, ToolStarted("call_1", "execute_order", '{"product": "Rocket", "price": 10}', "sales")),
        (9.25, ToolCompleted("call_1", "execute_order", "ordered", 0.25)),
        (9.25, ToolStarted("call_2", "look_up_item", "{}", "sales")),
        (9.5, ToolFailed("call_2", "look_up_item", "error: 'search_query' is missing", 0.0)),
        (10.0, ReasoningDelta("The user agreed.")),
        (10.25, TextDelta("Ordered.")),
        (10.5, RefusalDelta("No second one.")),
        (10.75, ClientToolCall(0, "call_3", "weather")),
        (10.75, ClientToolArguments(0, '{"city": "Bonn"}')),
        (11.0, Completed("sales", "tool_calls", Usage(203, 14))),
    ],
    "chatcmpl-0b2": [
        (7.5, Started("chatcmpl-0b2", "triage")),
        (
            8.5,
            Failed(
                "upstream_timeout",
                "The model behind this team did not respond in time.",
                Usage(),
                is_repeatable=True,
            ),
        ),
    ],
    "chatcmpl-0b3": [
        (7.5, Started("chatcmpl-0b3", "triage")),
        (8.5, Cancelled("client_left", "triage", Usage())),
    ],
    "chatcmpl-0b4": [
        (7.5, Started("chatcmpl-0b4", "repairs")),
        (8.5, ApprovalRequested("appr_7f3a9c", "call_4", "execute_refund", '{"item_id": "item_1"}')),
    ],
    "chatcmpl-0b6": [
        (7.5, Started("chatcmpl-0b6", "triage")),
        (8.5, ContextCompacted("triage", "shortened", 26500, 14200, 0.0)),
    ],
    "chatcmpl-0b7": [
        (7.5, Started("chatcmpl-0b7", "triage")),
        (
            8.5,
            DelegateEvent(
                "call_6",
                "researcher",
                ToolStarted("call_7", "search_web", '{"query": "rockets"}', "researcher"),
            ),
        ),
    ],
    "chatcmpl-0b9": [
        (7.5, Started("chatcmpl-0b9", "support")),
        (8.5, MemberTeamEvent("triage", Handoff("triage", "repairs", "it is broken"))),
    ],
    "chatcmpl-0b8": [
        (7.5, Started("chatcmpl-0b8", "triage")),
        (8.5, Handoff("triage", "sales", "wants a rocket")),
    ],
    "chatcmpl-0b5": [
        (7.5, Started("chatcmpl-0b5", "repairs")),
        (7.5, ApprovalDecided("appr_7f3a9c", "call_5", "execute_refund", "approve", "message")),
    ],
}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as created:
        yield created


def printed(program: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(program, "docs/events.md", "exec"), {"__name__": "__main__"})
    return said.getvalue()


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(len(PROGRAMS)))
async def test_the_programs_print_the_documented_output(program: str, output: str, served: Served) -> None:
    here = program.replace("127.0.0.1:8000", served.url.removeprefix("http://"))
    assert here != program

    assert await asyncio.to_thread(printed, here) == output


def test_the_page_has_a_valid_frame_of_every_type() -> None:
    frames = []
    for turn_id, events in TURNS.items():
        feed = Feed(turn_id)
        for position, (second, event) in enumerate(events, 1):
            # Another worker has continued the last turn after its first event.
            takeovers = int(turn_id == "chatcmpl-0b8" and position > 1)
            place = position + takeovers * TAKEOVER_POSITIONS
            frames += feed.frames(Entry(place, event, 1795458000 + second))
    lines = [
        encode(frame).decode() for frame in frames if frame.turn_id == "chatcmpl-0b1" or frame.position > 1
    ]

    assert lines == SHOWN
    assert {frame.type for frame in frames} == set(get_args(FrameType))


def test_the_tables_have_every_type_key_and_action() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", PAGE, re.MULTILINE))

    for line in SHOWN:
        frame = json.loads(line)
        assert {key for key in frame["data"] if f"`{key}`" not in rows[frame["type"]]} == set()
        assert frame.keys() <= rows.keys()
    actions = re.findall(r'^\| `\{"type": "(\w+)"', PAGE, re.MULTILINE)
    assert set(get_args(Action)) < set(actions)
    assert all(f'"{name}"' in PAGE for name in ClientMessage.__struct_fields__)


def test_the_page_has_the_limits_of_the_code() -> None:
    assert f"has the position {TERMINAL_POSITION}," in PAGE
    assert f"Up to {MAX_TURNS} turns" in PAGE


async def test_the_example_has_all_keys_of_a_turn(served: Served) -> None:
    answer = await Caller(served).completion([user("Give me a report of sales")], model="business-insights")
    (shown,) = [json.loads(text) for language, text in BLOCKS if language == "json" and '"object"' in text]

    turn: dict[str, Any] = (await get(served, f"/turns/{answer.id}")).json()

    assert turn.keys() == shown.keys() | {"progress"}
    assert turn["agents"][0].keys() == shown["agents"][0].keys()
    assert turn["usage_by_agent"][0].keys() | {"cost"} == shown["usage_by_agent"][0].keys()
