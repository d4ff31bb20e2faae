"""The user's text in a message that a frontend has wrapped in a template with sources."""

from __future__ import annotations

import pytest

from proxy.turns.wrapped_text import unwrapped_text

SOURCES = (
    '### Task:\nUse the context.\n<context>\n<source id="1">A </context> in a text.</source>\n</context>\n'
)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("yes", "yes"),
        (f"{SOURCES}\nyes", "yes"),
        (f"{SOURCES}\n<user_query>\nyes\n</user_query>\n", "yes"),
        (f"{SOURCES}\n<user_query>\nyes\n</user_query>\nyes", "yes"),
        (f"{SOURCES}\n<user_query>\nyes", "yes"),
        # Nothing behind the block: the message is not a template around a text.
        (SOURCES, SOURCES),
        ("<context>no elements</context> yes", "<context>no elements</context> yes"),
        ("</context><source <context> yes", "</context><source <context> yes"),
        ("<source id='1'> <context></context> yes", "<source id='1'> <context></context> yes"),
    ],
)
def test_the_text_behind_the_sources_is_the_users(text: str, own: str) -> None:
    assert unwrapped_text(text) == own
