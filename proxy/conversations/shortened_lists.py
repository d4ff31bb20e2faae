"""Message lists from which the client has removed older messages: place what is left in the stored conversation.

Such a list is the end of a stored transcript, optionally after its first messages. The turn continues the conversation,
and its context has only what the list shows, with the hidden items (handoffs, server tool calls and their results,
summaries) of the turns that the list shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.conversations.alignment import Part, is_same, parts_of
from proxy.conversations.visible_messages import visible_messages
from proxy.messages import Item, Message, UserMessage, is_instruction
from proxy.turns.records import ChainTurn

_LEAST = 2
"""Texts at the end of the list that have to match: a user message and its answer."""
END_ITEMS = 8
"""Items at the end of a turn that are compared with a list before its conversation is read."""
_MOST_FIRST = 4
"""Texts at the beginning that a client may leave in the list."""


def may_be_end(items: Sequence[Item], messages: Sequence[Message]) -> bool:
    """Whether the texts at the end of the list are those of these items, the last ``END_ITEMS`` of a turn.

    True also if the items have too few texts to decide. Many conversations end with the same answer, so this saves
    most new lists the read of a conversation.
    """
    stored = _certain_parts(visible_messages([ChainTurn(0, "", True, items, ())]))
    shown = _certain_parts(messages[-END_ITEMS:])
    count = min(len(stored), len(shown), _LEAST)
    return all(is_same(stored[-at], shown[-at]) for at in range(1, count + 1))


def _certain_parts(messages: Sequence[Message]) -> list[Part]:
    """Return the texts of messages, without a text of the assistant that messages before them can continue."""
    parts = parts_of(messages)
    return parts[1:] if parts and parts[0][0] else parts


def items_of_shortened(
    chain: Sequence[ChainTurn], messages: Sequence[Message], first_items: Sequence[Item]
) -> list[Item] | None:
    """Return the context for a shortened list; None if the list is not the end of the chain.

    ``messages`` end with the last answer of the chain; ``first_items`` are the same messages as items.
    """
    if not all(turn.is_stored for turn in chain):
        return None
    stored, shown = parts_of(visible_messages(chain)), parts_of(messages)
    same = 0
    while same < min(len(stored), len(shown)) and is_same(stored[-1 - same], shown[-1 - same]):
        same += 1
    first = len(shown) - same
    if same < _LEAST or first > _MOST_FIRST or len(shown) >= len(stored):
        return None
    if not all(map(is_same, stored[:first], shown[:first])):
        return None
    remaining = _first_messages(first_items, messages, first)
    return [*remaining, *_items_of_end(chain, same)]


def _first_messages(items: Sequence[Item], messages: Sequence[Message], count: int) -> list[Item]:
    """Return the items of the first texts of the list."""
    end = next(
        (at for at in range(1, len(messages) + 1) if len(parts_of(messages[:at])) > count), len(messages)
    )
    return list(items[: end - 1]) if count else []


def _items_of_end(chain: Sequence[ChainTurn], count: int) -> list[Item]:
    """Return the items of the turns that have the last texts of the chain."""
    found: list[Item] = []
    missing = count
    for turn in reversed(chain):
        if missing <= 0:
            break
        items = [item for item in turn.items if not is_instruction(item.message)]
        texts = len(parts_of(visible_messages([turn])))
        if texts > missing:
            # The list shows the answer of the turn without its user message.
            items = [
                item for item in items if not (item.agent is None and isinstance(item.message, UserMessage))
            ]
        found[:0] = items
        missing -= texts
    return found
