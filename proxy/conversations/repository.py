"""What was kept, to be looked at and looked after: stored completions, conversations and their items.

Beside ``History``, which serves turns, this is the rest of the store: nothing here is on the path of a turn. The
same promises hold (every implementation passes ``tests/contracts/test_library.py``): a method is one transaction,
``caller`` is in every query, ``StoreUnavailable`` is all that escapes. Times are seconds since the epoch.

An ``end_user`` narrows a list to what is that person's or nobody's; ``""`` sees all of the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from proxy.messages import ForeignItem, Item, Message, text_of
from proxy.turns.repository import Conversation, Order, Page, TurnRecord

Entry = TypeVar("Entry")
TITLE_LENGTH = 80
"""Characters of what a user wrote first that stand for a title."""
Rest = Callable[[Message], Message | None]
"""What is left of a message when a part of it is deleted; None when that was all."""


@dataclass(frozen=True, slots=True)
class KeptItem:
    """An item of a conversation where it stands: the public id of its turn, and its position in it (0, 1, …).

    Positions stay what they are when others are deleted. ``pending`` are the ids of the calls for which the turn
    asked the caller; the other calls of its agents are for the server's own tools.
    """

    turn_id: str
    position: int
    item: Item | ForeignItem
    pending: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outline:
    """What a list tells of a conversation; ``first_words`` is the beginning of what its user wrote first.

    ``team`` and ``agent`` are those at its head, ``""`` when there is none; ``turns`` counts those that agents worked
    at, on all branches; ``updated_at`` is when the last of them ended, or began.
    """

    first_words: str
    team: str
    agent: str
    turns: int
    updated_at: float

    @classmethod
    def of(cls, words: str, *, team: str, agent: str, turns: int, updated_at: float) -> Outline:
        """Return the outline of a conversation whose user began with these words."""
        line = " ".join(words[:1000].split())
        first = line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1].rstrip()}…"
        return cls(first, team, agent, turns, updated_at)


def is_about(words: str, metadata: Mapping[str, str], said: Iterable[Item]) -> bool:
    """Whether a conversation holds the words, whatever their case: in its ``title``, or in what a client saw of it."""
    wanted = words.casefold()
    return wanted in metadata.get("title", "").casefold() or any(
        wanted in text_of(item.message).casefold() for item in said if item.visible
    )


class Library(Protocol):
    """The store, as its readers and keepers need it."""

    # --- stored completions: turns asked for with ``store: true`` that completed ---

    async def list_completions(
        self,
        caller: str,
        *,
        after: str | None,
        limit: int,
        order: Order,
        model: str | None,
        metadata: Mapping[str, str],
        end_user: str = "",
    ) -> Page[TurnRecord] | None:
        """Return stored completions by time, without their items. All of ``metadata`` has to match.

        ``after`` is a completion's id, perhaps of one that was deleted since; None when there never was one.
        """
        ...

    async def update_completion(
        self, caller: str, completion_id: str, metadata: Mapping[str, str]
    ) -> TurnRecord | None:
        """Replace the metadata; None when there is no such stored completion."""
        ...

    async def delete_completion(self, caller: str, completion_id: str) -> bool:
        """Forget the stored completion (journal, options, metadata, keys); False when there is none.

        Its conversation keeps its items, but nobody finds the turn by its id any more.
        """
        ...

    async def delete_response(self, caller: str, turn_id: str) -> bool:
        """Forget the answer of any turn with content that has ended, as for a completion; False when there is none."""
        ...

    # --- conversations ---

    async def create_conversation(
        self,
        caller: str,
        conversation_id: str,
        *,
        metadata: Mapping[str, str],
        items: Sequence[Item | ForeignItem],
        now: float,
        end_user: str = "",
    ) -> Conversation:
        """Make a conversation under a new id, perhaps with items; it belongs to no team."""
        ...

    async def list_conversations(
        self,
        caller: str,
        *,
        after: str | None,
        limit: int,
        order: Order,
        end_user: str = "",
        search: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Page[Conversation] | None:
        """Return the caller's conversations, by when they were made; None when there is no ``after``.

        With ``search``, those that hold these words (``is_about``); with ``metadata``, those that have all of it.
        """
        ...

    async def outlines(self, keys: Sequence[int]) -> Mapping[int, Outline]:
        """Return what lists tell of the conversations with these keys; nothing of those without turns."""
        ...

    async def tree(self, caller: str, conversation_id: str) -> Sequence[TurnRecord]:
        """Return all turns of a conversation, on all branches and however they ended, the oldest first."""
        ...

    async def update_conversation(
        self, caller: str, conversation_id: str, metadata: Mapping[str, str]
    ) -> Conversation | None:
        """Replace the metadata; None when there is no such conversation."""
        ...

    async def delete_conversation(self, caller: str, conversation_id: str, *, now: float) -> bool:
        """Delete the conversation and everything in it; False when there is none.

        Raises:
            ConversationBusy: A turn of it is running.
        """
        ...

    async def items(self, caller: str, conversation_id: str) -> Sequence[KeptItem] | None:
        """Return everything said on the way to the head, oldest first, hidden items too; None when there is none."""
        ...

    async def turn_ids(self, caller: str, conversation_id: str) -> Sequence[str]:
        """Return the ids of all turns on the way to the head, oldest first, also of those without items."""
        ...

    async def turns_behind(
        self, caller: str, conversation_id: str, after: int, *, limit: int
    ) -> Sequence[tuple[int, str]]:
        """Return (key, id) of the turns that began behind the turn with the key ``after``, oldest first.

        All that agents worked at and that can be asked for by their ids: those of other branches, and those that
        failed, too.
        """
        ...

    async def turn_key(self, caller: str, conversation_id: str, turn_id: str) -> int | None:
        """Return the key of a turn of the conversation, also when its answer was deleted; None when there is none."""
        ...

    async def add_items(
        self, caller: str, conversation_id: str, items: Sequence[Item | ForeignItem], *, now: float
    ) -> Sequence[KeptItem] | None:
        """Append items behind the head, as a turn of their own; None when there is no such conversation.

        Without items, nothing is appended.

        Raises:
            ConversationBusy: A turn of it is running.
        """
        ...

    async def delete_item(
        self,
        caller: str,
        conversation_id: str,
        turn_id: str,
        position: int,
        *,
        now: float,
        rest: Rest | None = None,
    ) -> bool:
        """Delete one item, or leave the rest of it; False when there is none.

        When an agent said it, the turn's answer can no longer be asked for by its id, unless it is a stored completion.

        Raises:
            ConversationBusy: A turn of the conversation is running.
        """
        ...

    # --- retention ---

    async def remove_older(self, before: float) -> int:
        """Delete conversations in which nothing happened since ``before``; return how many.

        Works in many short transactions, so that turns go on meanwhile. Several workers may do it at once.
        """
        ...
