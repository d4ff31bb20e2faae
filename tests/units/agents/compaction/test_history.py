"""What an agent sees after a handoff with options, and who gets control back."""

from __future__ import annotations

import pytest

from proxy.agents.compaction.context_view import cut_of
from proxy.agents.compaction.history import history_of, member_history, return_target
from proxy.messages import (
    AssistantMessage,
    Compaction,
    FunctionCall,
    HandoffHistory,
    HandoffRecord,
    Item,
    Message,
    ToolCall,
    ToolMessage,
    UserMessage,
    text_of,
)
from proxy.turns.plain_items import PlainItems
from tests.units.agents.compaction.test_context_view import answer, user


def handoff(
    call_id: str,
    source: str,
    target: str,
    *,
    history: HandoffHistory = "all",
    returns: bool = False,
    summary: str = "",
) -> list[Item]:
    call = AssistantMessage(content=None, tool_calls=[ToolCall(call_id, FunctionCall("go", "{}"))])
    record = HandoffRecord(source, target, history, returns, reason="asked", summary=summary)
    result = Item(ToolMessage(call_id, f"to {target}"), agent=source, visible=False, handoff=record)
    return [Item(call, agent=source, visible=False), result]


def test_plain_items_have_the_history_of_a_list() -> None:
    messages: list[Message] = [UserMessage("Hi"), AssistantMessage("Hello")]
    items = [Item(message) for message in messages]
    marked = handoff("1", "sales", "support", history="none")

    assert history_of("sales", PlainItems(messages), []) == history_of("sales", items, [])
    assert not history_of("sales", items, []).has_marks
    assert history_of("support", PlainItems(messages), marked) == history_of("support", items, marked)
    assert history_of("support", PlainItems(messages), [], view="@support").items == items


def shown(agent: str, context: list[Item], own: list[Item]) -> list[str]:
    return [text_of(item.message) for item in history_of(agent, context, own).items]


def test_without_handoffs_the_items_are_returned_as_they_are() -> None:
    context, own = [user("1")], [answer("2")]

    history = history_of("a", context, own)

    assert (history.context, history.own, history.scope) == (context, own, "")


@pytest.mark.parametrize(
    ("history", "seen"),
    [
        ("all", ["1", "2", "3", "", "to b", "4"]),
        ("since_handoff", ["3", "", "to b", "4"]),
        ("summary", ["Summary of the conversation before the handover:\n\nS", "3", "", "to b", "4"]),
        ("none", ["a hands this task over to you.\n\nasked", "4"]),
    ],
)
def test_the_target_sees_the_part_that_the_handoff_lets_it_see(
    history: HandoffHistory, seen: list[str]
) -> None:
    context = [user("1"), answer("2"), user("3")]
    summary = "S" if history == "summary" else ""
    own = [*handoff("c", "a", "b", history=history, summary=summary), answer("4")]

    assert shown("b", context, own) == seen
    assert shown("a", context, own) == ["1", "2", "3", "", "to b", "4"]


def test_a_later_turn_has_the_same_part_as_its_context() -> None:
    context = [
        user("1"),
        answer("2"),
        user("3"),
        *handoff("c", "a", "b", history="none"),
        answer("4"),
        user("5"),
    ]

    history = history_of("b", context, [answer("6")])

    assert [text_of(item.message) for item in history.context] == [
        "a hands this task over to you.\n\nasked",
        "4",
        "5",
    ]
    assert [text_of(item.message) for item in history.own] == ["6"]


def test_the_newest_handoff_to_an_agent_counts() -> None:
    context = [
        user("1"),
        *handoff("c", "a", "b", history="none"),
        *handoff("d", "b", "a"),
        user("2"),
        *handoff("e", "a", "b"),
    ]

    assert shown("b", context, [])[0] == "1"


def test_a_compaction_counts_only_for_agents_that_see_the_same_part() -> None:
    compaction = Item(
        UserMessage(content="of b"),
        agent="b",
        visible=False,
        compaction=Compaction(retained_from=1, scope="c"),
    )
    context = [user("1"), *handoff("c", "a", "b", history="none"), answer("2"), user("3"), compaction]

    assert cut_of(history_of("a", context, []).items) is None
    cut = cut_of(history_of("b", context, []).items)
    assert cut is not None
    assert cut.summary == "of b"


def test_a_compaction_for_a_member_counts_for_no_other_agent() -> None:
    compaction = Item(
        UserMessage(content="of b"),
        agent="b",
        visible=False,
        compaction=Compaction(retained_from=1, scope="@b"),
    )
    of_client = Item(UserMessage(content="of client"), compaction=Compaction(retained_from=0))
    context = [of_client, user("1"), answer("2"), user("3"), compaction]

    seen = member_history("b", context, [], has_only_text=False)
    other = history_of("a", context, [])

    assert (seen.scope, seen.items) == ("@b", context)
    assert (other.scope, other.items) == ("", context[:-1])


def test_a_member_that_gets_only_text_sees_no_hidden_items_of_others() -> None:
    hidden = Item(UserMessage(content="note"), agent="b", visible=False)
    own = Item(AssistantMessage(content="call"), agent="b", visible=False)
    other = Item(AssistantMessage(content="call"), agent="a", visible=False)
    result = Item(ToolMessage("c", "result"), agent="a", visible=False)
    context = [user("1"), other, result, hidden, answer("2")]

    seen = member_history("b", context, [own], has_only_text=True)

    assert (seen.context, seen.own) == ([user("1"), hidden, answer("2")], [own])


def test_a_member_sees_the_part_that_its_handoff_lets_it_see() -> None:
    context = [user("1"), *handoff("c", "a", "b", history="none"), answer("2"), user("3")]

    seen = member_history("b", context, [], has_only_text=True)

    assert seen.scope == "c@b"
    assert [text_of(item.message) for item in seen.items] == [
        "a hands this task over to you.\n\nasked",
        "2",
        "3",
    ]


def test_control_returns_to_the_agent_that_handed_over() -> None:
    once = [user("1"), *handoff("c", "a", "b", returns=True)]
    twice = [*once, *handoff("d", "b", "e", returns=True)]

    assert return_target(once, "b") == "a"
    assert return_target(twice, "e") == "b"
    assert return_target(twice, "b") == "a"
    assert return_target(twice, "a") is None
    assert return_target([*once, *handoff("d", "b", "e")], "e") is None
    assert return_target([user("1")], "a") is None
