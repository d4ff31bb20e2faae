"""Recognise message lists in which a client has replaced older messages by a summary (context compaction)."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Literal

import msgspec
from msgspec import Struct

from proxy.messages import AssistantMessage, Message, text_of

_MAX_READ = 2000
"""Characters of a message in which marks are searched, from the beginning of its text."""


Place = Literal["system", "first", "second"]


class Mark(Struct, frozen=True, forbid_unknown_fields=True):
    """A text, in lower case, that a summary contains."""

    client: str
    source: str
    place: Place
    text: str


class _Marks(Struct, frozen=True, forbid_unknown_fields=True):
    mark: list[Mark]


@cache
def _marks(place: Place) -> Sequence[str]:
    text = resources.files(__package__).joinpath("summaries.toml").read_text("utf-8")
    marks = msgspec.convert(tomllib.loads(text), _Marks).mark
    return [mark.text for mark in marks if mark.place == place]


def is_summarized(messages: Sequence[Message], instructions: Sequence[Message]) -> bool:
    """Whether the messages begin with a summary of older ones; ``instructions`` are system and developer messages.

    A list that begins with an assistant message has lost its beginning too.
    """
    if any(_has_mark(text_of(one), "system") for one in instructions):
        return True
    if len(messages) < 2:
        return False
    if isinstance(messages[0], AssistantMessage) or _has_mark(text_of(messages[0])[:_MAX_READ], "first"):
        return True
    second = text_of(messages[1])[:_MAX_READ].casefold()
    return any(second.startswith(mark) for mark in _marks("second"))


def _has_mark(text: str, place: Place) -> bool:
    text = text.casefold()
    return any(mark in text for mark in _marks(place))
