"""Side requests (titles, tags): recognise them by their text, and build their turns.

The text is the last resort, if neither a model id nor a header marks the request. A false positive is cheap: one model
answers the request, and nothing is stored.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Literal

import msgspec
from msgspec import Struct

from proxy.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    UserMessage,
    has_instructions,
    is_instruction,
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


def _by_place(rules: Sequence[Rule]) -> dict[_Place, dict[str, list[Rule]]]:
    """Return the rules by place and first character; those of a place together under ``""``."""
    places: dict[_Place, dict[str, list[Rule]]] = {}
    for rule in rules:
        for start in (rule.begins[0], ""):
            places.setdefault(rule.place, {}).setdefault(start, []).append(rule)
    return places


_RULES = _by_place(load_rules())
_ONLY_AND_LAST: tuple[_Place, ...] = ("only-user", "last-user")


def has_side_request_text(request: TurnRequest) -> bool:
    """Whether the messages have the text of a known frontend's side request.

    A request that names a parent turn, adds to a conversation or runs in the background is never a side request.
    """
    can_be = request.parent is None and not request.is_addition and not request.in_background
    return can_be and is_side_request(request.messages)


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


def is_side_request(messages: Sequence[Message]) -> bool:
    """Whether the messages have the text of a known frontend's side request."""
    last = messages[-1] if messages else None
    only_user = _only_user(messages)
    if only_user is not None:
        places = _ONLY_AND_LAST if only_user is last else ("only-user",)
        if _matches(only_user, *places):
            return True
    elif isinstance(last, UserMessage) and _matches(last, "last-user"):
        return True
    if last is not None and is_instruction(last) and _matches(last, "last-system"):
        return True
    if not has_instructions(messages):
        return False
    return any(_matches(message, "system") for message in messages if is_instruction(message))


def _matches(message: Message, *places: _Place) -> bool:
    """Whether the message has the text of a side request at one of the places: those of users, or of instructions."""
    text = text_of(message)
    # Most texts differ in the first character.
    first = text[:1].lower()
    start = "" if first.isspace() else first
    for place in places:
        rules = _RULES.get(place, {}).get(start)
        if rules is not None and any(rule.matches(text) for rule in rules):
            # In a template with sources, a person wrote the text behind it.
            return place in ("last-system", "system") or unwrapped_text(text) == text
    return False


def _only_user(messages: Sequence[Message]) -> Message | None:
    """Return the user message of a list with one of them and no answer."""
    found: Message | None = None
    for message in messages:
        if isinstance(message, UserMessage):
            if found is not None:
                return None
            found = message
        elif isinstance(message, AssistantMessage):
            return None
    return found
