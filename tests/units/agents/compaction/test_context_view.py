"""Which items a model sees after a compaction."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.agents.compaction.context_view import Cut, cut_of, shortened, view_of
from proxy.conversations.summaries import is_summarized
from proxy.messages import (
    AssistantMessage,
    Compaction,
    FunctionCall,
    Item,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
    text_of,
)


def user(text: str) -> Item:
    return Item(UserMessage(content=text))


def answer(text: str) -> Item:
    return Item(AssistantMessage(content=text), agent="a")


def call(call_id: str, result: str) -> list[Item]:
    message = AssistantMessage(content=None, tool_calls=[ToolCall(call_id, FunctionCall("f", "{}"))])
    return [
        Item(message, agent="a", visible=False),
        Item(ToolMessage(call_id, result), agent="a", visible=False),
    ]


def marker(summary: str, *, retained_from: int | None, whole: int = 0) -> Item:
    compaction = Compaction(retained_from=retained_from, whole=whole)
    return Item(UserMessage(content=summary), agent="a", visible=False, compaction=compaction)


def shown(items: Sequence[Item], own: Sequence[Item] = ()) -> list[str]:
    view = view_of(items, own, cut_of([*items, *own]))
    return [f"{type(item.message).__name__[0]} {text_of(item.message)[:60]}".strip() for item in view.items]


HEADING = "Summary of the earlier part of this conversation, which is n"


def test_without_a_compaction_the_view_is_the_items_themselves() -> None:
    items, own = [user("1"), answer("2")], [answer("3")]

    view = view_of(items, own, cut_of([*items, *own]))

    assert (view.earlier, view.own) == (items, own)


def test_the_summary_replaces_everything_between_the_first_user_message_and_the_retained_groups() -> None:
    items = [
        user("1"),
        answer("2"),
        user("3"),
        answer("4"),
        user("5"),
        marker("S", retained_from=1),
        answer("6"),
    ]

    assert shown(items) == ["U 1", f"A {HEADING}", "U 5", "A 6"]


def test_the_user_message_of_a_turn_stays_if_only_its_later_steps_do() -> None:
    items = [
        user("1"),
        answer("2"),
        user("3"),
        *call("x", "r1"),
        *call("y", "r2"),
        marker("S", retained_from=1),
    ]

    assert shown(items) == ["U 1", f"A {HEADING}", "U 3", "A", "T r2"]


def test_a_summary_before_an_assistant_message_has_the_role_of_the_user() -> None:
    items = [user("1"), *call("x", "r1"), *call("y", "r2"), marker("S", retained_from=1)]

    assert shown(items) == ["U 1", f"U {HEADING}", "A", "T r2"]


def test_groups_are_counted_so_that_a_deleted_item_never_parts_a_call_from_its_result() -> None:
    items = [
        user("1"),
        *call("x", "r1"),
        answer("2"),
        user("3"),
        *call("y", "r2"),
        marker("S", retained_from=2),
    ]
    assert shown(items) == ["U 1", f"A {HEADING}", "U 3", "A", "T r2"]

    del items[4]

    assert shown(items) == ["U 1", f"U {HEADING}", "A", "T r1", "A 2", "A", "T r2"]


def test_another_server_recognises_the_summary() -> None:
    items = [user("1"), answer("2"), user("3"), answer("4"), user("5"), marker("S", retained_from=1)]

    view = view_of(items, (), cut_of(items))

    assert is_summarized([item.message for item in view.items], [])


def test_the_newest_compaction_counts_and_older_ones_are_not_shown() -> None:
    items = [
        user("1"),
        answer("2"),
        marker("old", retained_from=1),
        user("3"),
        marker("new", retained_from=1),
        answer("4"),
    ]

    view = view_of(items, (), cut_of(items))

    assert [text_of(item.message)[-3:] for item in view.items] == ["1", "new", "3", "4"]


def test_results_before_the_whole_groups_are_shortened() -> None:
    long = "x" * 5000
    items = [
        user("1"),
        *call("x", long),
        user("2"),
        *call("y", long),
        marker("", retained_from=None, whole=1),
    ]

    view = view_of(items, (), cut_of(items))

    first, second = (item.message for item in view.items if isinstance(item.message, ToolMessage))
    assert 1000 < len(text_of(first)) < 1100
    assert "4,000 characters of this result are not shown any more" in text_of(first)
    assert second.content == long


def test_instructions_inside_the_conversation_stay() -> None:
    items = [
        Item(SystemMessage(content="Be brief.")),
        user("1"),
        answer("2"),
        user("3"),
        marker("S", retained_from=1),
    ]

    assert shown(items) == ["S Be brief.", "U 1", f"A {HEADING}", "U 3"]


def test_items_of_the_turn_are_separate_from_earlier_ones() -> None:
    items, own = [user("1"), answer("2"), user("3")], [marker("S", retained_from=1), answer("4")]

    view = view_of(items, own, cut_of([*items, *own]))

    assert [text_of(item.message) for item in view.own] == ["4"]
    assert len(view.earlier) == 3


def test_a_cut_behind_all_items_leaves_the_first_user_message_and_the_summary() -> None:
    items = [user("1"), answer("2"), user("3"), answer("4"), marker("S", retained_from=0)]

    view = view_of(items, (), cut_of(items))

    assert [text_of(item.message)[-1] for item in view.items] == ["1", "S"]


def test_short_results_and_other_messages_are_not_shortened() -> None:
    item = call("x", "short")[1]

    assert shortened(item, 1000) is item
    assert shortened(user("x" * 9000), 1000) == user("x" * 9000)


def test_a_cut_has_its_own_summary_only() -> None:
    assert cut_of([user("1"), marker("", retained_from=None, whole=0)]) == Cut("", 0, 1, 1000, 2)
