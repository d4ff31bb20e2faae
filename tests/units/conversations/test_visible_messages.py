"""What a client has seen of a chain, and what it asked with."""

from __future__ import annotations

import pytest

from proxy.conversations.visible_messages import rebuild_request_messages, visible_messages
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    Item,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.turns.records import ChainTurn


def call(call_id: str) -> ToolCall:
    return ToolCall(call_id, FunctionCall("look", "{}"))


def turn(*items: Item, pending: tuple[str, ...] = ()) -> ChainTurn:
    return ChainTurn(turn=1, agent="sales", is_stored=True, items=items, pending=pending)


REQUESTED = Item(UserMessage("Hi"))
ANSWERED = Item(AssistantMessage("Hello"), "sales")
CLOCK = SystemMessage("It is 10:00.")


def test_agents_of_one_turn_are_one_message_without_tool_calls() -> None:
    chain = [
        turn(
            REQUESTED,
            Item(AssistantMessage("One moment.", tool_calls=[call("hidden")]), "triage"),
            Item(ToolMessage("hidden", "over"), "triage", visible=False),
            Item(AssistantMessage(None, tool_calls=[call("h2")]), "sales", visible=False),
            Item(ToolMessage("h2", "found"), "sales", visible=False),
            Item(AssistantMessage("Which one?", tool_calls=[call("h3"), call("theirs")]), "sales"),
            Item(ToolMessage("h3", "found"), "sales", visible=False),
            pending=("theirs",),
        ),
        turn(Item(ToolMessage("theirs", "the red one")), ANSWERED),
    ]

    assert visible_messages(chain) == [
        UserMessage("Hi"),
        AssistantMessage("One moment.\n\nWhich one?", tool_calls=[call("theirs")]),
        ToolMessage("theirs", "the red one"),
        AssistantMessage("Hello"),
    ]


def test_a_refusal_is_shown_as_one() -> None:
    refused = AssistantMessage(None, refusal="No.")

    assert visible_messages([turn(REQUESTED, Item(refused, "sales"))]) == [UserMessage("Hi"), refused]


def test_what_a_caller_added_is_shown_as_it_is() -> None:
    added = [Item(AssistantMessage("One")), Item(AssistantMessage("Two"))]

    assert visible_messages([turn(*added)]) == [item.message for item in added]


@pytest.mark.parametrize(
    ("count", "instructions", "expected"),
    [
        pytest.param(3, [], [UserMessage("Hi"), AssistantMessage("Hello"), UserMessage("More")], id="all"),
        pytest.param(1, [], [UserMessage("More")], id="what is new"),
        pytest.param(2, [(0, CLOCK)], [CLOCK, UserMessage("More")], id="instructions and what is new"),
        pytest.param(
            4,
            [(2, CLOCK)],
            [UserMessage("Hi"), AssistantMessage("Hello"), CLOCK, UserMessage("More")],
            id="instructions in between",
        ),
        pytest.param(
            6,
            [(0, CLOCK), (4, CLOCK)],
            [CLOCK, UserMessage("Hi"), AssistantMessage("Hello"), CLOCK, UserMessage("More")],
            id="more than is stored",
        ),
        pytest.param(0, [], [], id="nothing known"),
    ],
)
def test_request_messages_are_rebuilt_from_stored_items(
    count: int, instructions: list[tuple[int, Message]], expected: list[Message]
) -> None:
    rebuilt = rebuild_request_messages(
        [turn(REQUESTED, ANSWERED)], [Item(UserMessage("More"))], count=count, instructions=instructions
    )

    assert rebuilt == expected
