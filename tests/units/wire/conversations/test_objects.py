"""Stored messages as items, their ids, and pages of lists."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxy.messages import (
    AssistantMessage,
    CustomCall,
    CustomToolCall,
    ForeignItem,
    FunctionCall,
    FunctionMessage,
    Item,
    Message,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.wire.conversations.objects import WireItem, items_of, part_of, rest_of
from proxy.wire.validation.query_params import ListQuery, included, list_query, metadata_filter

TURN = "chatcmpl-0123"


def call(call_id: str) -> ToolCall:
    return ToolCall(call_id, FunctionCall("look", "{}"))


def wired(item: Item | ForeignItem, pending: Sequence[str] = ()) -> list[WireItem]:
    return list(items_of(TURN, 3, item, pending))


def shape(items: Sequence[WireItem]) -> list[tuple[str, bool]]:
    return [(item.body["type"], item.is_hidden) for item in items]


def test_a_message_with_calls_is_several_items_and_those_of_the_server_are_hidden() -> None:
    message = AssistantMessage("Let me see.", tool_calls=[call("ours"), call("theirs")])

    items = wired(Item(message, "sales"), pending=["theirs"])

    assert shape(items) == [("message", False), ("function_call", True), ("function_call", False)]
    assert [item.body.get("handoff") for item in items] == [
        {"agent": "sales"},
        {"agent": "sales", "hidden": True},
        {"agent": "sales"},
    ]
    assert len({item.id for item in items}) == 3
    assert all(item.id == item.body["id"] for item in items)


def test_the_id_of_a_call_does_not_depend_on_the_calls_before_it() -> None:
    both = wired(Item(AssistantMessage(None, tool_calls=[call("a"), call("b")])))
    one = wired(Item(AssistantMessage(None, tool_calls=[call("b")])))

    assert both[1].id == one[0].id != both[0].id


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (AssistantMessage(""), [("message", False)]),
        (AssistantMessage(None, refusal="No."), [("message", False)]),
        (AssistantMessage(None, tool_calls=[call("a")]), [("function_call", False)]),
        (
            AssistantMessage(None, tool_calls=[CustomToolCall("a", CustomCall("look", "x"))]),
            [("custom_tool_call", False)],
        ),
        (ToolMessage("a", "found"), [("function_call_output", False)]),
        (FunctionMessage("look", "found"), [("function_call_output", False)]),
        (UserMessage("Hi"), [("message", False)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_messages_of_the_caller_are_never_hidden(message: Message, expected: list[tuple[str, bool]]) -> None:
    assert shape(wired(Item(message))) == expected


def test_other_items_are_returned_unchanged_with_a_new_id() -> None:
    (item,) = wired(ForeignItem({"type": "reasoning", "summary": [], "status": "completed"}))

    assert item.body == {"id": "rs_0123_3", "type": "reasoning", "summary": [], "status": "completed"}


def test_what_is_left_of_a_message() -> None:
    whole = AssistantMessage("Let me see.", tool_calls=[call("a"), call("b")])

    assert rest_of(whole, None) == AssistantMessage(None, tool_calls=[call("a"), call("b")])
    assert rest_of(whole, "a") == AssistantMessage("Let me see.", tool_calls=[call("b")])
    assert rest_of(AssistantMessage("Let me see.", tool_calls=[call("a")]), "a") == AssistantMessage(
        "Let me see."
    )
    assert rest_of(AssistantMessage(None, tool_calls=[call("a")]), "a") is None
    assert rest_of(AssistantMessage("Hello"), None) is None
    assert rest_of(UserMessage("Hi"), None) is None


# --- parts of a list -----------------------------------------------------------------------------------------

TURNS = ["chatcmpl-a", "items_b", "chatcmpl-c"]


def listed(*places: tuple[int, int], hidden: Sequence[tuple[int, int]] = ()) -> list[WireItem]:
    return [
        WireItem(f"msg_{TURNS[turn][-1]}_{position}", TURNS[turn], position, {}, (turn, position) in hidden)
        for turn, position in places
    ]


ALL = listed((0, 0), (0, 1), (1, 0), (2, 0), (2, 1))


def ids(items: list[WireItem], **query: object) -> tuple[list[str], bool] | None:
    found = part_of(items, ListQuery(**query), with_hidden=False, turn_ids=TURNS)  # type: ignore[arg-type]
    return None if found is None else ([item.id for item in found[0]], found[1])


def test_a_part_begins_behind_an_item_in_the_requested_order() -> None:
    assert ids(ALL, limit=2) == (["msg_a_0", "msg_a_1"], True)
    assert ids(ALL, limit=3, after="msg_a_1") == (["msg_b_0", "msg_c_0", "msg_c_1"], False)
    assert ids(ALL, limit=2, after="msg_c_0", order="desc") == (["msg_b_0", "msg_a_1"], True)
    assert ids(ALL, after="msg_c_1") == ([], False)


def test_a_part_begins_where_a_deleted_item_was() -> None:
    left = listed((0, 0), (2, 1))

    assert ids(left, after="msg_b_0") == (["msg_c_1"], False)
    assert ids(left, after="msg_b_0", order="desc") == (["msg_a_0"], False)
    assert ids(left, after="fc_c_0_0123abcd", order="desc") == (["msg_a_0"], False)


@pytest.mark.parametrize("after", ["msg_x_0", "msg_b", "nothing", "msg_b_0_zz"])
def test_there_is_no_part_behind_what_never_was(after: str) -> None:
    assert ids(ALL, after=after) is None


def test_hidden_items_do_not_count_unless_they_are_requested() -> None:
    items = listed((0, 0), (0, 1), (1, 0), hidden=[(0, 1)])

    assert ids(items, limit=2) == (["msg_a_0", "msg_b_0"], False)
    assert ids(items, limit=2, after="msg_a_1") == (["msg_b_0"], False)
    found = part_of(items, ListQuery(limit=2), with_hidden=True)
    assert found is not None
    assert [item.id for item in found[0]] == ["msg_a_0", "msg_a_1"]


# --- queries -------------------------------------------------------------------------------------------------


def test_empty_values_count_as_absent_and_the_last_of_two_counts() -> None:
    pairs = [("limit", ""), ("order", ""), ("after", ""), ("limit", "5"), ("limit", "7")]

    assert list_query(pairs, order="desc") == ListQuery(None, 7, "desc")
    assert list_query([("limit", "3.0"), ("order", "asc")], order="desc") == ListQuery(None, 3, "asc")


def test_both_forms_of_include_are_taken() -> None:
    pairs = [
        ("include[]", "reasoning.encrypted_content"),
        ("include", "handoff.hidden_items"),
        ("include", ""),
    ]

    assert included(pairs) == {"reasoning.encrypted_content", "handoff.hidden_items"}


def test_a_metadata_filter_is_read_key_by_key() -> None:
    assert metadata_filter([("metadata[a]", "1"), ("metadata[b c]", ""), ("model", "x")]) == {
        "a": "1",
        "b c": "",
    }
