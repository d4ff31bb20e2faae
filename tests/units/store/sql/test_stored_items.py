"""Items in the stored format: a list has the same text in one piece as message by message."""

from __future__ import annotations

import sqlite3

import msgspec
import pytest

from proxy.messages import (
    AssistantMessage,
    Compaction,
    DelegateRecord,
    FunctionCall,
    HandoffRecord,
    Item,
    Message,
    ProviderState,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.store.sql.stored_items import LONG_LIST, MessageList, input_items, item_rows, to_items
from proxy.turns.plain_items import PlainItems, joined_items

MESSAGES: list[Message] = [
    UserMessage('"Quoted" \\u0041 € 🦄 nul \0 \x1b[0m \x7f \u2028 </b> [{,\n'),
    UserMessage([TextPart("one"), TextPart("two")], name="erin"),
    AssistantMessage(None, tool_calls=[ToolCall("c", FunctionCall("f", '{"a": [1.0, 1e400]}'))]),
    ToolMessage("c", ""),
]
LONG = PlainItems(MESSAGES * LONG_LIST)


def test_database_reads_the_same_text_from_a_list_as_it_would_get_for_each_message() -> None:
    stored = input_items(LONG)
    assert isinstance(stored, MessageList)

    found = sqlite3.connect(":memory:").execute("SELECT value FROM json_each(?)", [stored.messages])

    assert [text for (text,) in found] == [row[3] for row in item_rows(LONG, is_input=True)]


@pytest.mark.parametrize(
    "other",
    [
        Item(UserMessage("x"), agent="sales"),
        Item(UserMessage("x"), visible=False),
        Item(UserMessage("x"), compaction=Compaction()),
        Item(UserMessage("x"), tokens=1),
    ],
    ids=["agent", "hidden", "compaction", "tokens"],
)
def test_items_that_are_more_than_messages_of_a_client_are_rows(other: Item) -> None:
    items = joined_items(LONG, [other])

    assert input_items(items) == item_rows(items, is_input=True)


def test_text_that_has_no_encoding_is_stored_in_rows() -> None:
    items = PlainItems([*LONG.messages, UserMessage("half \ud800 a pair")])

    assert input_items(items) == item_rows(items, is_input=True)


@pytest.mark.parametrize(
    "others",
    [
        [],
        [Item(AssistantMessage("x"), "sales", state=ProviderState("p", {"reasoning_content": "y"}))],
        [Item(UserMessage("x"), compaction=Compaction(2))],
        [Item(AssistantMessage("x"), "sales", tokens=9)],
        [
            Item(
                ToolMessage("c", "x"),
                "sales",
                False,
                delegate=DelegateRecord("b", [Item(UserMessage("y"))], []),
            )
        ],
        [Item(ToolMessage("c", "x"), "sales", False, handoff=HandoffRecord("sales", "support"))],
    ],
    ids=["none", "state", "compaction", "tokens", "delegate", "handoff"],
)
def test_items_are_read_as_they_were_stored(others: list[Item]) -> None:
    text = ', "compaction": {}, "handoff":{}'
    said = [
        Item(AssistantMessage(text, name='"delegate":'), "sales"),
        Item(UserMessage("\ud800"), visible=False),
    ]
    items = [*LONG, *said, *others]
    rows = [(message, agent, visible) for _, agent, visible, message in item_rows(items, is_input=False)]

    read = to_items(rows)

    assert read == [*LONG, said[0], Item(UserMessage("?"), visible=False), *others]
    assert isinstance(read, PlainItems) == (not others)


def test_rows_of_plain_items_are_those_of_a_list() -> None:
    stored = PlainItems(LONG.messages[:2], ["sales", None], [0, 1])

    assert item_rows(LONG, is_input=True) == item_rows(list(LONG), is_input=True)
    assert item_rows(stored, is_input=False) == item_rows(list(stored), is_input=False)


def test_a_short_list_is_rows() -> None:
    assert input_items(LONG[: LONG_LIST - 1]) == item_rows(LONG[: LONG_LIST - 1], is_input=True)
    assert msgspec.json.decode(item_rows(LONG[:1], is_input=True)[0][3], type=UserMessage) == MESSAGES[0]


def test_each_member_is_read_that_one_of_many_plain_messages_has() -> None:
    plain = [Item(UserMessage("Hi.")), Item(AssistantMessage("Hello!"), "sales")] * LONG_LIST
    said = AssistantMessage("x")
    members = [
        Item(said, "sales", state=ProviderState("p")),
        Item(said, "sales", compaction=Compaction()),
        Item(said, "sales", tokens=9),
        Item(said, "sales", delegate=DelegateRecord("b", [], [])),
        Item(said, "sales", handoff=HandoffRecord("sales", "support")),
    ]
    # A further member of stored messages needs a case here, and in the search for members.
    assert len(members) == len(Item.__struct_fields__) - len(("message", "agent", "visible"))

    for member in members:
        rows = [
            (text, name, visible) for _, name, visible, text in item_rows([*plain, member], is_input=False)
        ]

        assert to_items(rows) == [*plain, member]
