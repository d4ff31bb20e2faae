"""The chain that agents are shown: one system message, and exactly one result behind every call."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis.strategies import sampled_from

from proxy.agents.prompt import NOT_EXECUTED, messages_for
from proxy.message_lists import text_messages
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    FunctionCall,
    Item,
    Message,
    OpenCalls,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.turns.plain_items import PlainItems
from tests.fakes.messages import message_lists


def calling(*ids: str, text: str | None = None) -> AssistantMessage:
    return AssistantMessage(text, tool_calls=[ToolCall(one, FunctionCall("look", "{}")) for one in ids])


def chain(*messages: Message) -> list[Message]:
    return messages_for("", [], [Item(message) for message in messages], [])


def open_after(*messages: Message) -> list[str]:
    calls = OpenCalls()
    for message in messages:
        calls.observe(message)
    return calls.ids


def test_instructions_of_agent_conversation_and_client_are_one_message() -> None:
    context: list[Message] = [
        DeveloperMessage("Speak like a pirate."),
        UserMessage("Hi"),
        SystemMessage("Be kind."),
    ]

    assert messages_for("You are sales.", [SystemMessage("Be brief.")], [Item(m) for m in context], []) == [
        SystemMessage("You are sales.\n\nSpeak like a pirate.\n\nBe kind.\n\nBe brief."),
        UserMessage("Hi"),
    ]


@given(message_lists, message_lists, sampled_from(((), (SystemMessage("Be brief."),))))
def test_messages_are_the_same_from_each_kind_of_list(
    context: list[Message], own: list[Message], overlay: Sequence[SystemMessage]
) -> None:
    items = [Item(message) for message in context], [Item(message) for message in own]

    first = messages_for("You are sales.", overlay, items[0], [])
    expected = messages_for("You are sales.", overlay, *items)

    for plain in filter(None, (context, text_messages(context))):
        assert messages_for("You are sales.", overlay, PlainItems(plain), []) == first
        assert messages_for("You are sales.", overlay, PlainItems(plain), items[1]) == expected
        assert messages_for("You are sales.", overlay, PlainItems(plain), PlainItems(own)) == expected
    whole = chain(*context, *own)
    assert expected[1:] == (whole[1:] if whole and isinstance(whole[0], SystemMessage) else whole)


def test_without_instructions_there_is_no_system_message() -> None:
    said: list[Message] = [UserMessage("Hi")]

    assert messages_for("", [], PlainItems(text_messages(said) or said), []) == chain(*said) == said


def test_separately_stored_calls_have_all_their_results() -> None:
    messages = (calling("a", text="Let me see."), calling("b"), ToolMessage("b", "B"), ToolMessage("a", "A"))

    assert chain(*messages) == [
        calling("a", "b", text="Let me see."),
        ToolMessage("a", "A"),
        ToolMessage("b", "B"),
    ]
    assert open_after(*messages) == []


def test_calls_behind_another_text_are_separate_calls() -> None:
    messages = (calling("a"), calling("b", text="And now?"), ToolMessage("b", "B"))

    assert chain(*messages) == [
        calling("a"),
        ToolMessage("a", NOT_EXECUTED),
        calling("b", text="And now?"),
        ToolMessage("b", "B"),
    ]
    assert open_after(*messages) == []


def test_a_call_without_result_and_a_result_without_call_are_repaired() -> None:
    assert chain(ToolMessage("gone", "x"), calling("a", "b"), ToolMessage("b", "B"), UserMessage("Hi")) == [
        calling("a", "b"),
        ToolMessage("a", NOT_EXECUTED),
        ToolMessage("b", "B"),
        UserMessage("Hi"),
    ]


def test_only_the_newest_calls_are_open_until_the_next_message() -> None:
    assert open_after(calling("a", "b")) == ["a", "b"]
    assert open_after(calling("a"), calling("b"), SystemMessage("It is 10:00.")) == ["a", "b"]
    assert open_after(calling("a", "b"), ToolMessage("a", "A")) == ["b"]
    assert open_after(calling("a"), ToolMessage("a", "A"), calling("b")) == ["b"]
    assert open_after(calling("a", "b"), ToolMessage("a", "A"), calling("c")) == ["c"]
    assert open_after(calling("a"), UserMessage("Hi")) == []
    assert open_after(calling("a"), AssistantMessage("Hi")) == []
