"""Lists of messages: what ``TextMessages`` states of a list is what its messages are."""

from __future__ import annotations

import msgspec
from hypothesis import given

from proxy.message_lists import (
    TextMessages,
    has_instructions,
    joined_messages,
    text_messages,
    without_instructions,
)
from proxy.messages import AssistantMessage, FunctionMessage, Message, ToolMessage, is_instruction
from tests.fakes.messages import message_lists


def has_only_text(message: Message) -> bool:
    if isinstance(message, AssistantMessage) and (message.tool_calls, message.function_call) != (None, None):
        return False
    return isinstance(message.content, str) and not isinstance(message, ToolMessage | FunctionMessage)


@given(message_lists)
def test_text_messages_are_lists_in_which_each_message_has_only_text(messages: list[Message]) -> None:
    found = text_messages(messages)

    assert (found is not None) == all(map(has_only_text, messages))
    if found is not None:
        assert found == messages
        assert found.texts == [message.content for message in messages]
        assert found.kinds == [type(message) for message in messages]
        assert found.has_instructions == any(map(is_instruction, messages))


@given(message_lists)
def test_instructions_are_found_and_left_out_of_each_kind_of_list(messages: list[Message]) -> None:
    others = [message for message in messages if not is_instruction(message)]

    for one in filter(None, (messages, text_messages(messages))):
        assert has_instructions(one) == (others != messages)
        rest = without_instructions(one)
        assert rest == others
        if isinstance(one, TextMessages):
            assert isinstance(rest, TextMessages)
            assert (rest.texts, rest.has_instructions) == ([message.content for message in others], False)
            assert rest.kinds == [type(message) for message in others]


@given(message_lists, message_lists)
def test_joined_messages_have_only_text_if_both_lists_have(
    messages: list[Message], more: list[Message]
) -> None:
    whole = text_messages([*messages, *more])

    for one in filter(None, (messages, text_messages(messages))):
        for other in filter(None, (more, text_messages(more))):
            joined = joined_messages(one, other)

            assert joined == [*messages, *more]
            if isinstance(one, TextMessages) and whole is not None:
                assert isinstance(joined, TextMessages)
                assert (joined.kinds, joined.texts) == (whole.kinds, whole.texts)
                assert joined.has_instructions == whole.has_instructions


def test_text_messages_are_encoded_like_a_list() -> None:
    messages: list[Message] = [AssistantMessage("x")]
    only_text = text_messages(messages)

    assert only_text is not None
    assert msgspec.json.encode(only_text) == msgspec.json.encode(messages)
