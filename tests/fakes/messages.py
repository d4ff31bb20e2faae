"""Random lists of messages, to compare what is done with a whole list with what it means for each message."""

from __future__ import annotations

from hypothesis import strategies as st
from msgspec import UNSET

from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    FunctionCall,
    FunctionMessage,
    ImagePart,
    ImageUrl,
    Message,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)

_TEXTS = ("", " \n", "a", "b c", "Größe?", "<think>x</think>y", "<context>z</context>w", "\0", "\ud83d")
_TEXT = [kind(text) for kind in (UserMessage, AssistantMessage) for text in _TEXTS]
_CALL = FunctionCall("look", "{}")
_OTHERS: list[Message] = [
    UserMessage("named", name="erin"),
    UserMessage([TextPart("one"), ImagePart(ImageUrl("https://x/y.png")), TextPart("two")]),
    UserMessage([]),
    AssistantMessage(None),
    AssistantMessage(UNSET),
    AssistantMessage(None, refusal="No."),
    AssistantMessage("", refusal="No."),
    AssistantMessage([TextPart("parts")], name="sales"),
    AssistantMessage(None, tool_calls=[ToolCall("1", _CALL)]),
    AssistantMessage("Let me see.", tool_calls=[ToolCall("1", _CALL), ToolCall("2", _CALL)]),
    AssistantMessage("", tool_calls=[]),
    AssistantMessage("", function_call=_CALL),
    ToolMessage("1", "found"),
    ToolMessage("2", [TextPart("found")]),
    FunctionMessage("look", "found"),
    SystemMessage("It is 9:00."),
    DeveloperMessage([TextPart("Be kind.")]),
    DeveloperMessage("Be brief."),
]

text_lists = st.lists(st.sampled_from([*_TEXT, SystemMessage("It is 9:00."), DeveloperMessage("Hm.")]))
"""Lists that have only text."""
message_lists = text_lists | st.lists(st.sampled_from([*_TEXT, *_OTHERS]))
"""Lists of any messages, in any order."""
