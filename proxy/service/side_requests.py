"""Recognises side requests by their words: the last resort, where neither a model id nor a header marks them.

Being wrong costs little on purpose: a request taken for a side request is answered by one model and not stored.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Literal

import msgspec
from msgspec import Struct

from proxy.messages import AssistantMessage, Message, UserMessage, is_instruction, text_of


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """Words that mark a side request, and where they stand; ``holds`` may come anywhere behind."""

    client: str
    place: Literal["only-user", "last-user", "last-system", "system"]
    begins: str
    holds: str = ""

    def matches(self, text: str) -> bool:
        """Whether the text begins and goes on like that."""
        beginning = text[: 2 * len(self.begins)]
        return _plain(beginning).startswith(_plain(self.begins)) and self.holds in text


class _Rules(Struct, frozen=True, forbid_unknown_fields=True):
    rule: list[Rule]


def load_rules() -> Sequence[Rule]:
    """Return the rules of the data file."""
    text = resources.files(__package__).joinpath("side_request_phrases.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), _Rules).rule


_RULES = load_rules()


def is_side_request(messages: Sequence[Message]) -> bool:
    """Whether a list is worded like a known frontend's side request."""
    system = [message for message in messages if is_instruction(message)]
    places: dict[str, Sequence[Message]] = {
        "only-user": _only_user(messages),
        "last-user": [m for m in messages[-1:] if isinstance(m, UserMessage)],
        "last-system": [message for message in messages[-1:] if is_instruction(message)],
        "system": system,
    }
    return any(rule.matches(text_of(message)) for rule in _RULES for message in places[rule.place])


def _only_user(messages: Sequence[Message]) -> Sequence[Message]:
    users: list[Message] = []
    for message in messages:
        if isinstance(message, AssistantMessage) or len(users) > 1:
            return ()
        if isinstance(message, UserMessage):
            users.append(message)
    return users if len(users) == 1 else ()


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
