"""Side requests (titles, tags): recognise them by their text, and build their turns.

The text is the last resort, if neither a model id nor a header marks the request. A false positive is cheap: one model
answers the request, and nothing is stored.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Literal

import msgspec
from msgspec import Struct

from proxy.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    UserMessage,
    text_of,
)
from proxy.request_errors import BackgroundSideRequest
from proxy.service.turn_factory import requested_turn
from proxy.turns.contract import AnsweringTeam
from proxy.turns.request import TurnRequest
from proxy.turns.turn import Turn
from proxy.turns.wrapped_text import unwrapped_text

_Place = Literal["only-user", "last-user", "last-system", "system"]


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """A text that marks a side request: its place, its beginning, and texts that it contains.

    ``begins`` is in lower case, with single spaces; the case and the white space of a message do not count. ``source``
    is the file of the frontend that has the whole prompt.
    """

    client: str
    source: str
    place: _Place
    begins: str
    holds: tuple[str, ...] = ()

    def matches(self, text: str) -> bool:
        """Whether the text has this beginning and contains ``holds``."""
        beginning = text[: 2 * len(self.begins)]
        return _plain(beginning).startswith(self.begins) and all(one in text for one in self.holds)


class _Rules(Struct, frozen=True, forbid_unknown_fields=True):
    rule: list[Rule]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def load_rules() -> Sequence[Rule]:
    """Return the rules of ``side_request_phrases.toml``."""
    text = resources.files(__package__).joinpath("side_request_phrases.toml").read_text("utf-8")
    rules = msgspec.convert(tomllib.loads(text), _Rules).rule
    return [msgspec.structs.replace(rule, begins=_plain(rule.begins)) for rule in rules]


def _by_start(rules: Sequence[Rule], *places: _Place) -> Mapping[str, Sequence[Rule]]:
    """Return the rules of the places by the first character of their beginning."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        if rule.place in places:
            found.setdefault(rule.begins[0], []).append(rule)
    return found


_RULES = load_rules()
_OF_ONLY_USER = _by_start(_RULES, "only-user")
_OF_LAST_USER = _by_start(_RULES, "last-user")
_OF_ONLY_AND_LAST_USER = _by_start(_RULES, "only-user", "last-user")
_OF_SYSTEM = _by_start(_RULES, "system")
_OF_LAST_SYSTEM = _by_start(_RULES, "system", "last-system")


def has_side_request_text(request: TurnRequest) -> bool:
    """Whether the messages have the text of a known frontend's side request.

    A request that names a parent turn, adds to a conversation or runs in the background is never a side request.
    """
    messages, instructions = request.messages, request.system_messages
    if request.parent is not None or request.is_addition or request.in_background or not messages:
        return False
    last = messages[-1]
    if type(last) is UserMessage:
        # Nearly no text matches: whether there is another message counts only for those that do.
        if _matches(last, _OF_ONLY_AND_LAST_USER) and (
            _only_user(messages) is last or _matches(last, _OF_LAST_USER)
        ):
            return True
    elif (only_user := _only_user(messages)) is not None and _matches(only_user, _OF_ONLY_USER):
        return True
    return bool(instructions) and any(
        _matches(message, _OF_LAST_SYSTEM if message is last else _OF_SYSTEM) for message in instructions
    )


def side_turn(turn_id: str, request: TurnRequest, team: AnsweringTeam) -> Turn:
    """Return the turn of a side request.

    Raises:
        BackgroundSideRequest: ``background`` is set: the answer is not stored, so it could not be retrieved later.
    """
    if request.in_background:
        raise BackgroundSideRequest
    own = [SystemMessage(content=request.instructions)] if request.instructions else []
    return requested_turn(
        request,
        turn_id,
        "",
        agent=team.entry,
        context=request.items_of(request.turn_messages),
        overlay=[*own, *request.system_messages],
    )


def _matches(message: Message, rules: Mapping[str, Sequence[Rule]]) -> bool:
    """Whether the message has the text of one of the rules."""
    text = text_of(message)
    # Most texts differ in the first character.
    candidates = rules.get(text.lstrip()[:1].lower())
    if candidates is None or not any(rule.matches(text) for rule in candidates):
        return False
    # In a template with sources, a person wrote the text behind it.
    return type(message) is not UserMessage or unwrapped_text(text) == text


def _only_user(messages: Sequence[Message]) -> Message | None:
    """Return the user message of a list with one of them and no answer."""
    found: Message | None = None
    for message in messages:
        if type(message) is UserMessage:
            if found is not None:
                return None
            found = message
        elif type(message) is AssistantMessage:
            return None
    return found
