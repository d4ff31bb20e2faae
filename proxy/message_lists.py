"""Lists of messages, most of which have only text, and what is found out for all messages of a list at once.

A request can have thousands of messages, so none of these functions calls another one for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from proxy.messages import INSTRUCTIONS, AssistantMessage, Message, UserMessage


class TextMessages(list[Message]):
    """Messages that have only text: their contents are strings, and there are neither tool calls nor results.

    Most lists of clients are like that, and can be long. ``text_messages`` checks a list once, and the class states the
    result to everything that reads the list later. It does not change.
    """

    __slots__ = ("has_instructions", "kinds", "texts")
    kinds: Sequence[type[Message]]
    """The types of the messages."""
    texts: Sequence[str]
    """The contents of the messages."""
    has_instructions: bool


_SAID: frozenset[type[Message]] = frozenset((UserMessage, AssistantMessage))
_WITH_TEXT = _SAID | INSTRUCTIONS


def text_messages(messages: Sequence[Message], *, may_have_calls: bool = True) -> TextMessages | None:
    """Return the messages as ``TextMessages``; None if they have more than text.

    Without ``may_have_calls``, none of them is known to have tool calls.
    """
    kinds = list(map(type, messages))
    found = set(kinds)
    has_instructions = not found <= _SAID
    if has_instructions and not found <= _WITH_TEXT:
        return None
    if may_have_calls and AssistantMessage in found and _has_calls(messages):
        return None
    contents: list[Any] = [message.content for message in messages]
    try:
        # It fails unless all are strings, and takes half the time of looking at the type of each.
        "".join(contents)
    except TypeError:
        return None
    return _text_messages(messages, kinds, contents, has_instructions=has_instructions)


def _has_calls(messages: Sequence[Message]) -> bool:
    return bool(
        [
            message
            for message in messages
            if type(message) is AssistantMessage
            and (message.tool_calls is not None or message.function_call is not None)
        ]
    )


def _text_messages(
    messages: Sequence[Message],
    kinds: Sequence[type[Message]],
    texts: Sequence[str],
    *,
    has_instructions: bool,
) -> TextMessages:
    only_text = TextMessages(messages)
    only_text.kinds, only_text.texts, only_text.has_instructions = kinds, texts, has_instructions
    return only_text


def joined_messages(messages: Sequence[Message], more: Sequence[Message]) -> Sequence[Message]:
    """Return the messages and those that follow; ``TextMessages`` if the first are, and the others have only text."""
    if type(messages) is not TextMessages:
        return [*messages, *more]
    text = more if type(more) is TextMessages else text_messages(more)
    if text is None:
        return [*messages, *more]
    has_instructions = messages.has_instructions or text.has_instructions
    kinds, texts = [*messages.kinds, *text.kinds], [*messages.texts, *text.texts]
    return _text_messages([*messages, *text], kinds, texts, has_instructions=has_instructions)


def has_instructions(messages: Iterable[Message]) -> bool:
    """Whether at least one of the messages has instructions; faster than a call of ``is_instruction`` for each."""
    if type(messages) is TextMessages:
        return messages.has_instructions
    return not INSTRUCTIONS.isdisjoint(map(type, messages))


def without_instructions(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages whose role is neither system nor developer; the same list if these are all."""
    if not has_instructions(messages):
        return messages
    others = [message for message in messages if type(message) not in INSTRUCTIONS]
    if type(messages) is not TextMessages:
        return others
    texts: list[Any] = [message.content for message in others]
    return _text_messages(others, list(map(type, others)), texts, has_instructions=False)
