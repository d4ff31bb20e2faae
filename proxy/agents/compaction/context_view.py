"""The context as a model sees it after compactions: which items are left out, shortened, or replaced by a summary.

Stored items never change. The newest item with a ``Compaction`` determines the view of everything before it; what
follows it is unchanged, so that the beginning of the prompt stays the same until the next compaction. The first user
message is always part of the view, and so is the user message of a turn whose later messages are.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from proxy.messages import (
    AssistantMessage,
    Item,
    Message,
    TextPart,
    ToolMessage,
    UserMessage,
    is_instruction,
    text_of,
)

SHORTENED = "\n[… {count:,} characters of this result are not shown any more …]\n"
_HEADING = "Summary of the earlier part of this conversation, which is not shown any more:\n\n"


class Cut(Struct, frozen=True):
    """Positions in the list of all items: what is left out and shortened."""

    summary: str = ""
    retained_from: int = 0
    """Items before this one are replaced by the summary, if there is one."""
    whole: int = 0
    """Tool results before this item are shortened."""
    shortened_to: int = 1000
    behind: int = 0
    """The position behind the item that has the compaction; reported sizes before it are out of date."""


class ContextMemory(Struct):
    """The present cut of a turn's context, and whether it was searched for."""

    cut: Cut | None = None
    scope: str | None = None
    """The scope for which it was searched; None if it was not."""
    has_read_stored: bool = False
    """Whether the compactions of other branches were read from the store."""


class ContextView(Struct, frozen=True):
    """What a model sees: ``earlier`` are the items before the turn, ``own`` those of the turn."""

    earlier: Sequence[Item]
    own: Sequence[Item] = ()

    @property
    def items(self) -> Sequence[Item]:
        """All items in order."""
        return [*self.earlier, *self.own] if self.own else self.earlier


def is_group_start(items: Sequence[Item], at: int) -> bool:
    """Whether a group begins at this item; items with a compaction and instructions do not count."""
    item = items[at]
    kind = type(item.message)
    if item.compaction is not None:
        return False
    if kind is UserMessage:
        return True
    # Assistant messages in a row can be one reply, whose results follow the last of them.
    return kind is AssistantMessage and (at == 0 or type(items[at - 1].message) is not AssistantMessage)


def cut_of(items: Sequence[Item]) -> Cut | None:
    """Return the cut that the newest compaction in the items makes; None if there is none."""
    places = [at for at, item in enumerate(items) if item.compaction is not None]
    if not places:
        return None
    place = places[-1]
    marker = items[place]
    compaction = marker.compaction
    assert compaction is not None
    starts = [at for at in range(place) if is_group_start(items, at)]
    retained_from = 0 if compaction.retained_from is None else _start(starts, compaction.retained_from, place)
    return Cut(
        summary=text_of(marker.message) if compaction.retained_from is not None else "",
        retained_from=retained_from,
        whole=_start(starts, compaction.whole, place),
        shortened_to=compaction.shortened_to,
        behind=place + 1,
    )


def _start(starts: Sequence[int], count: int, end: int) -> int:
    """Return where the last ``count`` groups before ``end`` begin."""
    if count == 0:
        return end
    return starts[-count] if count <= len(starts) else 0


def view_of(context: Sequence[Item], own: Sequence[Item], cut: Cut | None) -> ContextView:
    """Return the items that a model sees; without a cut, the given ones."""
    if cut is None:
        return ContextView(context, own)
    items = [*context, *own]
    pinned = pinned_before(items, cut.retained_from) if cut.summary else []
    head = (
        [item for item in items[: cut.retained_from] if is_instruction(item.message)] if cut.summary else []
    )
    begin = cut.retained_from if cut.summary else 0
    shown = [
        shortened(item, cut.shortened_to) if at < cut.whole else item
        for at, item in enumerate(items[begin:], begin)
        if item.compaction is None
    ]
    if not cut.summary:
        own_count = sum(item.compaction is None for item in own)
        return ContextView(shown[: len(shown) - own_count], shown[len(shown) - own_count :])
    following = [*pinned[1:], *shown]
    earlier = [*head, *pinned[:1], _summary_item(cut.summary, following), *pinned[1:]]
    own_count = sum(item.compaction is None for item in items[max(len(context), begin) :])
    split = len(shown) - own_count
    return ContextView([*earlier, *shown[:split]], shown[split:])


def pinned_before(items: Sequence[Item], retained_from: int) -> list[Item]:
    """Return the user messages before a position that stay: the first one, and the one that the position continues."""
    users = [
        at
        for at in range(retained_from)
        if type(items[at].message) is UserMessage and items[at].compaction is None
    ]
    if not users:
        return []
    is_turn_start = retained_from < len(items) and type(items[retained_from].message) is UserMessage
    last = [] if is_turn_start or users[-1] == users[0] else [items[users[-1]]]
    return [items[users[0]], *last]


def _summary_item(summary: str, following: Sequence[Item]) -> Item:
    """Return the summary in the role that alternates with the message behind it, as some chat templates require."""
    follower = following[0].message if following else None
    text = _HEADING + summary
    message: Message = (
        AssistantMessage(content=text) if type(follower) is UserMessage else UserMessage(content=text)
    )
    return Item(message)


def shortened(item: Item, limit: int) -> Item:
    """Return the item with a long tool result shortened to its beginning and its end."""
    message = item.message
    if type(message) is not ToolMessage:
        return item
    text = text_of(message)
    has_only_text = isinstance(message.content, str) or all(
        isinstance(part, TextPart) for part in message.content or ()
    )
    if len(text) <= limit + 200 and has_only_text:
        return item
    head, tail = limit * 2 // 3, limit - limit * 2 // 3
    omitted = len(text) - limit
    if omitted > 0:
        text = text[:head] + SHORTENED.format(count=omitted) + (text[-tail:] if tail else "")
    return msgspec.structs.replace(item, message=ToolMessage(message.tool_call_id, text))
