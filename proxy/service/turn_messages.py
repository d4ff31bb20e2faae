"""The messages about turns that workers send each other, as JSON."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from proxy.events import Entry


class FollowTurn(Struct, frozen=True, tag="follow", omit_defaults=True):
    """``worker`` has a reader of a turn and needs its entries after the position ``after``.

    Repeated while there is a reader. ``is_renewal``: the entries arrive, and the worker only still has its reader.
    """

    worker: str
    turn_id: str
    after: int = 0
    is_observer: bool = False
    is_renewal: bool = False


class UnfollowTurn(Struct, frozen=True, tag="unfollow", omit_defaults=True):
    """``worker`` has no reader of a turn any more."""

    worker: str
    turn_id: str
    is_observer: bool = False


class ForwardedEvents(Struct, frozen=True, tag="events"):
    """Entries of a turn; ``after`` is the position of the entry before them."""

    turn_id: str
    after: int
    entries: list[Entry]


class CancelTurn(Struct, frozen=True, tag="cancel"):
    """A caller cancelled a turn."""

    turn_id: str


class ListenToConversations(Struct, frozen=True, tag="listen"):
    """``worker`` waits for new turns of the conversations with these keys. Repeated while it does."""

    worker: str
    conversations: list[int]


class TurnBegan(Struct, frozen=True, tag="began"):
    """A turn of a conversation began."""

    conversation: int


TurnMessage = FollowTurn | UnfollowTurn | ForwardedEvents | CancelTurn | ListenToConversations | TurnBegan

encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[TurnMessage] = msgspec.json.Decoder(TurnMessage)


def decode(message: bytes) -> TurnMessage | None:
    """Return the message; None for one of a newer version."""
    try:
        return _decoder.decode(message)
    except msgspec.ValidationError:
        return None
