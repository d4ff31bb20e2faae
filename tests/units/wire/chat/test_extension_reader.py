"""Objects of the handoff extension of another server: every event is read as it was encoded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.events import (
    AgentSpeaking,
    ApprovalDecided,
    ApprovalRequested,
    ContextCompacted,
    DelegateEvent,
    Event,
    Handoff,
    MemberTeamEvent,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.wire.chat.extension_reader import has_line, read_extension_event
from proxy.wire.chat.handoff_extension import HandoffExtensionEncoder
from proxy.wire.chat.response_models import encode

EVENTS: list[Event] = [
    Handoff("triage", "sales", "wants to buy"),
    ToolStarted("call_1", "look_up", '{"query": "rocket"}', "triage"),
    ToolCompleted("call_1", "look_up", "found", 0.25),
    ToolFailed("call_1", "look_up", "error: sold out", 1.5),
    ApprovalRequested("appr_1", "call_2", "pay", '{"amount": 5}'),
    ApprovalDecided("appr_1", "call_3", "pay", "refuse", "api"),
    ContextCompacted("triage", "summarised", 900, 400, 0.5),
    DelegateEvent("call_4", "finder", ToolStarted("call_5", "look_up", "{}", "finder")),
    MemberTeamEvent("clerk", AgentSpeaking("clerk")),
    MemberTeamEvent("clerk", Handoff("clerk", "payer"), progress=50),
]


def encoded(*events: Event) -> list[Any]:
    encoder = HandoffExtensionEncoder("all")
    updates = [encoder.encode(event) for event in (Started("chatcmpl-1", "triage"), *events)]
    return [json.loads(encode(one.event)) for one in updates if one is not None and one.event is not None]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_encoded_event_is_read_as_the_same_event(event: Event) -> None:
    [body] = encoded(event)

    read = read_extension_event(body)

    assert read is not None
    assert read.agent == "triage"
    # The progress of a team inside of the other team is that of the event around it.
    assert read.event == (
        MemberTeamEvent("clerk", event.event) if isinstance(event, MemberTeamEvent) else event
    )


def test_the_agent_that_begins_to_write_is_read() -> None:
    [body] = encoded(TextDelta("Hi"))

    assert read_extension_event(body) == MemberTeamEvent("triage", AgentSpeaking("triage"))
    assert not has_line(body)


def test_progress_is_read() -> None:
    body = {"type": "agent.speaking", "agent": "triage", "progress": 25}

    assert read_extension_event(body) == MemberTeamEvent("triage", AgentSpeaking("triage"), 25)
    assert read_extension_event({**body, "progress": 2500}) == MemberTeamEvent(
        "triage", AgentSpeaking("triage")
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"type": "turn.completed", "agent": "triage", "agents": []},
        {"type": "from.the.future", "agent": "triage"},
        {"type": "handoff"},
        {"type": "tool.started", "agent": "triage", "name": 7},
        {"type": "approval.decided", "agent": "triage", "decision": "maybe"},
        {"type": "approval.decided", "agent": "triage"},
        {"type": "delegate.event", "agent": "triage", "call_id": "call_1"},
        {"type": "context.compacted", "agent": "triage"},
    ],
    ids=str,
)
def test_other_objects_are_dropped(body: dict[str, Any]) -> None:
    assert read_extension_event(body) is None


def test_text_is_truncated_and_depth_bounded() -> None:
    long = {"type": "tool.completed", "agent": "a" * 500, "call_id": "c" * 500, "result": "r" * 5000}
    deep: dict[str, Any] = {"type": "agent.speaking", "agent": "a"}
    for _ in range(20):
        deep = {"type": "member.event", "agent": "a", "event": deep}

    assert read_extension_event(long) == MemberTeamEvent(
        "a" * 128, ToolCompleted("c" * 128, "", "r" * 1000, 0.0)
    )
    assert read_extension_event(deep) is None
    assert not has_line(deep)


def test_an_event_of_another_team_is_nested_with_the_names_of_its_agents() -> None:
    started = ToolStarted("call_1", "pay", "{}", "payer")
    bodies = encoded(
        MemberTeamEvent("payer", started, progress=50),
        MemberTeamEvent("payer", ToolCompleted("call_1", "pay", "paid", 0.5)),
    )

    assert bodies == [
        {
            "type": "member.event",
            "agent": "triage",
            "event": {
                "type": "tool.started",
                "agent": "payer",
                "call_id": "call_1",
                "name": "pay",
                "arguments": "{}",
                "progress": 50,
            },
        },
        {
            "type": "member.event",
            "agent": "triage",
            "event": {
                "type": "tool.completed",
                "agent": "payer",
                "call_id": "call_1",
                "name": "pay",
                "result": "paid",
                "seconds": 0.5,
            },
        },
    ]


def test_the_end_of_a_tool_call_has_the_agent_that_made_it() -> None:
    bodies = encoded(
        ToolStarted("call_1", "look_up", "{}", "triage/finder"),
        ToolCompleted("call_1", "look_up", "found", 0.5),
    )

    assert [body["agent"] for body in bodies] == ["triage/finder", "triage/finder"]
