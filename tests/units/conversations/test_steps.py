"""Steps of a turn that resumed after approvals."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from proxy.conversations.steps import split_step, step_at
from proxy.events import (
    ApprovalDecided,
    Event,
    ModelCalled,
    Started,
    TextDelta,
    ToolCompleted,
    ToolStarted,
    encode_journal,
)
from proxy.messages import AssistantMessage, FunctionCall, Item, ToolCall, ToolMessage, UserMessage
from proxy.turns.records import TurnRecord

EVENTS: list[Event] = [
    Started("chatcmpl-1", "cashier"),
    ApprovalDecided("appr_1", "c9", "pay", "approve", "api"),
    ToolStarted("c9", "pay", "{}", "cashier"),
    ToolCompleted("c9", "pay", "paid", 0.1),
    TextDelta("Paid."),
    ModelCalled("cashier", "m", None, 0.1),
]
ITEMS = [
    Item(UserMessage("The user approved it."), "cashier", False),
    Item(AssistantMessage(None, tool_calls=[ToolCall("c9", FunctionCall("pay", "{}"))]), "cashier", False),
    Item(ToolMessage("c9", "paid"), "cashier", False),
    Item(AssistantMessage("Paid."), "cashier"),
]


def record(**changes: Any) -> TurnRecord:
    values = dict.fromkeys(field.name for field in structs.fields(TurnRecord))
    journal = encode_journal(EVENTS, [100.0] * len(EVENTS))
    return TurnRecord(**{**values, "items": ITEMS, "journal": journal, **changes})


def test_approved_calls_belong_to_the_beginning_of_their_turn() -> None:
    assert [len(step.items) for at in range(1, 7) if (step := step_at(record(), at))] == [3, 3, 3, 3, 4, 4]


def test_turn_without_events_has_no_steps() -> None:
    assert step_at(record(journal=b""), 1) is None


def test_reference_is_a_turn_with_an_optional_position() -> None:
    assert split_step("chatcmpl-1f.7") == ("chatcmpl-1f", 7)
    assert split_step("chatcmpl-1f") == ("chatcmpl-1f", None)
    assert split_step("chatcmpl-1f.7.1") == ("chatcmpl-1f.7", 1)
