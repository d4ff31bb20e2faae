"""Items that have only a message, an author and a visibility, held by column.

Nearly all items are like that, and a request can have thousands. What needs only their messages reads the column; an
``Item`` for each of them takes longer to create than most of what is done with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from proxy.message_lists import joined_messages
from proxy.messages import Item, Message


class PlainItems(Sequence[Item]):
    """Items without provider state, compaction, size, delegate and handoff; their number and order do not change.

    They are created when the first one is read. It equals a list with the same items.
    """

    __slots__ = ("_agents", "_items", "_visible", "messages")

    def __init__(
        self,
        messages: Sequence[Message],
        agents: Sequence[str | None] | None = None,
        visible: Sequence[bool | int] | None = None,
    ) -> None:
        """Without ``agents`` and ``visible``, they are visible messages of the client."""
        self.messages = messages
        self._agents = agents
        self._visible = visible
        self._items: list[Item] | None = None

    @property
    def are_of_client(self) -> bool:
        """Whether they are known to be visible messages of the client."""
        return self._agents is None

    def __len__(self) -> int:
        return len(self.messages)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> PlainItems: ...
    def __getitem__(self, index: int | slice) -> Item | PlainItems:
        if not isinstance(index, slice):
            return self._all()[index]
        if self._agents is None or self._visible is None:
            return PlainItems(self.messages[index])
        return PlainItems(self.messages[index], self._agents[index], self._visible[index])

    def __iter__(self) -> Iterator[Item]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return self._all() == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: PlainItems) -> PlainItems:
        """Return these items and the others."""
        messages = joined_messages(self.messages, other.messages)
        if self._agents is None and other._agents is None:
            return PlainItems(messages)
        agents, visible = self._authors()
        more_agents, more_visible = other._authors()
        return PlainItems(messages, [*agents, *more_agents], [*visible, *more_visible])

    def _authors(self) -> tuple[Sequence[str | None], Sequence[bool | int]]:
        if self._agents is None or self._visible is None:
            return [None] * len(self.messages), [True] * len(self.messages)
        return self._agents, self._visible

    def _all(self) -> list[Item]:
        if self._items is None:
            columns: list[Any] = [self.messages]
            if self._agents is not None and self._visible is not None:
                # SQLite has no Booleans.
                columns += [self._agents, map(bool, self._visible)]
            self._items = list(map(Item, *columns))
        return self._items


def messages_of(items: Sequence[Item]) -> Sequence[Message]:
    """Return the messages of the items in order."""
    return items.messages if type(items) is PlainItems else [item.message for item in items]


def joined_items(items: Sequence[Item], more: Sequence[Item]) -> Sequence[Item]:
    """Return the items and those that follow; ``PlainItems`` if both are."""
    if not items:
        return more
    if type(items) is PlainItems and type(more) is PlainItems:
        return items + more
    return [*items, *more]
