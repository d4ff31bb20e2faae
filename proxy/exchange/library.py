"""What was kept, to be looked at and looked after: stored completions, conversations and their items.

Beside ``History``, which serves turns, this is the rest of the store: nothing here is on the path of a turn. The
same promises hold: a method is one transaction, ``caller`` is in every query, ``StoreUnavailable`` is all that
escapes. Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from proxy.exchange.history import Conversation, TurnRecord
from proxy.messages import Item

Order = Literal["asc", "desc"]
Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Page(Generic[Entry]):
    """A part of a list; ``has_more`` tells whether there are others behind it in the order asked for."""

    data: Sequence[Entry]
    has_more: bool


@dataclass(frozen=True, slots=True)
class KeptItem:
    """An item of a conversation where it stands: the public id of its turn, and its position in it (0, 1, …)."""

    turn_id: str
    position: int
    item: Item


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
    ) -> Page[TurnRecord]:
        """Return stored completions by time; ``after`` is a completion's id. All of ``metadata`` has to match."""
        ...

    async def update_completion(
        self, caller: str, completion_id: str, metadata: Mapping[str, str]
    ) -> TurnRecord | None:
        """Replace the metadata; None when there is no such stored completion."""
        ...

    async def delete_completion(self, caller: str, completion_id: str) -> bool:
        """Forget the stored completion (what was asked, the journal, metadata); its conversation keeps its items."""
        ...

    # --- conversations ---

    async def create_conversation(
        self, caller: str, conversation_id: str, *, metadata: Mapping[str, str], items: Sequence[Item], now: float
    ) -> Conversation:
        """Make a conversation, perhaps with items; its team is that of the first turn."""
        ...

    async def list_conversations(
        self, caller: str, *, after: str | None, limit: int, order: Order
    ) -> Page[Conversation]:
        """Return the caller's conversations, by when they were made."""
        ...

    async def update_conversation(
        self, caller: str, conversation_id: str, metadata: Mapping[str, str]
    ) -> Conversation | None:
        """Replace the metadata; None when there is no such conversation."""
        ...

    async def delete_conversation(self, caller: str, conversation_id: str) -> bool:
        """Delete the conversation and everything in it.

        Raises:
            ConversationBusy: A turn of it is running.
        """
        ...

    async def items(self, caller: str, conversation_id: str) -> Sequence[KeptItem] | None:
        """Return everything said on the way to the head, oldest first, hidden items too; None when there is none."""
        ...

    async def add_items(
        self, caller: str, conversation_id: str, items: Sequence[Item], *, now: float
    ) -> Sequence[KeptItem] | None:
        """Append items behind the head; None when there is no such conversation.

        Raises:
            ConversationBusy: A turn of it is running.
        """
        ...

    async def delete_item(self, caller: str, conversation_id: str, turn_id: str, position: int) -> bool:
        """Delete one item; False when there is none.

        Raises:
            ConversationBusy: A turn of the conversation is running.
        """
        ...

    # --- retention ---

    async def remove_older(self, before: float) -> int:
        """Delete conversations in which nothing happened since ``before``; return how many."""
        ...
