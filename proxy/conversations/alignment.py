"""Align a message list with a stored chain on the texts of the assistant.

Frontends wrap a user message in a template and later send it without the template (``turns.wrapped_text``). Templates
of operators are not known, so a user's text only has to be part of the stored one. A client can also have appended a
continued answer to the assistant message before it (``turns.continued_text``).
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.conversations.fingerprints import hashed_answer, user_text
from proxy.conversations.visible_messages import visible_messages
from proxy.messages import AssistantMessage, Message, UserMessage, text_of
from proxy.turns.records import ChainTurn

_MIN_TEMPLATE = 40
"""Bytes that a template adds at least to a user message, without white space. A smaller difference is an edit."""
Part = tuple[bool, bytes]
"""Whether it is the assistant's text, and the text without white space."""


def is_aligned(chain: Sequence[ChainTurn], messages: Sequence[Message]) -> bool:
    """Whether the messages are those that a client has seen of the chain."""
    if not all(turn.is_stored for turn in chain):
        return False
    stored, shown = parts_of(visible_messages(chain)), parts_of(messages)
    return len(stored) == len(shown) and all(map(is_same, stored, shown))


def is_same(stored: Part, shown: Part) -> bool:
    """Whether a text of a list is the stored one, possibly without a template."""
    if stored == shown:
        return True
    is_user = not (stored[0] or shown[0])
    return is_user and len(stored[1]) - len(shown[1]) >= _MIN_TEMPLATE and shown[1] in stored[1]


def parts_of(messages: Sequence[Message]) -> list[Part]:
    """Return the texts in order; successive texts of the assistant are one."""
    parts: list[tuple[bool, list[bytes]]] = []
    for message in messages:
        if isinstance(message, AssistantMessage):
            is_assistant, text = True, hashed_answer(text_of(message))
        elif isinstance(message, UserMessage):
            is_assistant, text = False, user_text(text_of(message))
        else:
            continue
        if text and is_assistant and parts and parts[-1][0]:
            parts[-1][1].append(text)
        elif text:
            parts.append((is_assistant, [text]))
    return [(is_assistant, b"".join(texts)) for is_assistant, texts in parts]
