"""Detect an unambiguous yes or no in a user message, which decides pending approvals. Other text is not a decision.

Clients without support for approvals send the decision as a message.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib import resources

import msgspec
from msgspec import Struct

from proxy.events import Decision
from proxy.messages import Message, TextPart, UserMessage, text_of
from proxy.turns.wrapped_text import unwrapped_text

MAX_LENGTH = 80
"""Maximum number of characters of a decision; a longer message has more content than a yes or no."""
_QUESTION = re.compile("[?\u00bf\u061f\uff1f]")
_APOSTROPHES = str.maketrans("’‘ʼ`´", "'''''")


class _Words(Struct, frozen=True, forbid_unknown_fields=True):
    yes: list[str]
    no: list[str]
    polite: list[str]


class _Lexicon:
    def __init__(self, words: _Words) -> None:
        self.decisions: dict[tuple[str, ...], Decision] = {}
        self.decisions |= {_words_of(phrase): "approve" for phrase in words.yes}
        self.decisions |= {_words_of(phrase): "refuse" for phrase in words.no}
        self.polite = sorted(map(_words_of, words.polite), key=len, reverse=True)


@cache
def _lexicon() -> _Lexicon:
    text = resources.files(__package__).joinpath("yes_no.toml").read_text("utf-8")
    return _Lexicon(msgspec.convert(tomllib.loads(text), _Words))


def plain_decision(said: Sequence[Message]) -> Decision | None:
    """Return the decision if the messages are one user message with an unambiguous yes or no."""
    if len(said) != 1 or not isinstance(message := said[0], UserMessage):
        return None
    if isinstance(message.content, list) and not all(isinstance(part, TextPart) for part in message.content):
        return None
    text = unwrapped_text(text_of(message))
    if len(text) > MAX_LENGTH or _QUESTION.search(text):
        return None
    lexicon = _lexicon()
    words = _words_of(text)
    while words:
        if (decision := lexicon.decisions.get(words)) is not None:
            return decision
        ending = next((end for end in lexicon.polite if words[-len(end) :] == end), None)
        if ending is None:
            return None
        words = words[: -len(ending)]
    return None


def _words_of(text: str) -> tuple[str, ...]:
    """Return the words without case, punctuation and white space, in Unicode normalisation form C."""
    text = unicodedata.normalize("NFC", text).casefold().translate(_APOSTROPHES)
    plain = "".join(" " if _is_between_words(character) else character for character in text)
    return tuple(word for word in (word.strip("'") for word in plain.split()) if word)


def _is_between_words(character: str) -> bool:
    if character == "'":
        return False
    # Sk: skin tones of emoji; Cf: joiners; FE00-FE0F: variation selectors. They change only how a character looks.
    kind = unicodedata.category(character)
    return kind.startswith(("P", "Z")) or kind in ("Cc", "Sk", "Cf") or "\ufe00" <= character <= "\ufe0f"
