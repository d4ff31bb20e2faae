"""Items in the stored format: the columns of a row, and JSON that holds several.

A stored message has further members behind its own, such as the state of the provider.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, final

import msgspec

from proxy.message_lists import text_messages
from proxy.messages import Compaction, DelegateRecord, HandoffRecord, Item, Message, ProviderState
from proxy.store.sql.tables import storable
from proxy.turns.plain_items import PlainItems
from proxy.turns.records import Progress

ItemRow = tuple[bool, str | None, bool, str]
"""The columns of an item behind turn and position, in the order of the table."""
LONG_LIST = 32
"""Items from which on one statement costs less than one for each row."""


@final
class MessageList(msgspec.Struct, frozen=True):
    """The input of a turn that is a long list: visible messages without further members, as one JSON list."""

    messages: str


StoredItems = Sequence[ItemRow] | MessageList
"""The items of a turn in the stored format."""


class _Members(msgspec.Struct, omit_defaults=True, gc=False):
    """Members of the stored message that are not part of the message, behind those that are."""

    provider_state: ProviderState | None = None
    compaction: Compaction | None = None
    context_tokens: int | None = None
    delegate: DelegateRecord | None = None
    handoff: HandoffRecord | None = None


# In the JSON of a message, quotes inside a text are escaped, so that only a member of this name contains one of these.
COMPACTION_MEMBER = '"compaction":'
_MEMBERS = tuple(f'"{name}":' for name in _Members.__struct_fields__)
_SIZE_MEMBER = '"context_tokens":'

_decode_messages = msgspec.json.Decoder(list[Message]).decode
_decode_all_members = msgspec.json.Decoder(list[_Members]).decode
_decode_rows = msgspec.json.Decoder(list[ItemRow]).decode
_decode_progress = msgspec.json.Decoder(tuple[str, list[ItemRow]]).decode
_encode = msgspec.json.Encoder().encode


def input_items(items: Sequence[Item]) -> StoredItems:
    """Return the input of a turn in the stored format."""
    if type(items) is PlainItems and len(items.messages) >= LONG_LIST and items.are_of_client:
        try:
            # One text for all messages: to encode and insert one for each takes twice as long.
            return MessageList(_encode(items.messages).decode())
        except UnicodeEncodeError:
            pass
    return item_rows(items, is_input=True)


def item_rows(items: Iterable[Item], *, is_input: bool) -> list[ItemRow]:
    """Return the items in the stored format."""
    if type(items) is PlainItems and items.are_of_client:
        return [(is_input, None, True, to_json(message)) for message in items.messages]
    return [
        (is_input, storable(item.agent) if item.agent else item.agent, item.visible, _message_json(item))
        for item in items
    ]


def to_item(message: str, agent: str | None, visible: bool) -> Item:
    """Return the item of the columns."""
    return to_items([(message, agent, visible)])[0]


def to_items(columns: Sequence[Sequence[Any]]) -> Sequence[Item]:
    """Return the items of rows that begin with message, agent and visible (true or 1)."""
    # As one JSON list: a call for every message of a long conversation takes eight times as long.
    messages = ",".join([row[0] for row in columns])
    return items_of_columns(messages, [row[1] for row in columns], [row[2] for row in columns])


def items_of_columns(messages: str, agents: Sequence[str | None], visible: Sequence[int]) -> Sequence[Item]:
    """Return the items of columns; ``messages`` are joined with commas."""
    joined = f"[{messages}]"
    if not _may_have_members(messages, len(agents)):
        decoded = _decode_messages(joined)
        # None of them has a call: that is an object in the message.
        only_text = text_messages(decoded, may_have_calls=False) if len(agents) >= LONG_LIST else None
        return PlainItems(only_text or decoded, agents, visible)
    for member in _MEMBERS:
        if member in messages:
            break
    else:
        return PlainItems(_decode_messages(joined), agents, visible)
    return [
        Item(
            message,
            agent,
            is_visible == 1,
            more.provider_state,
            more.compaction,
            more.context_tokens,
            more.delegate,
            more.handoff,
        )
        for message, more, agent, is_visible in zip(
            _decode_messages(joined), _decode_all_members(joined), agents, visible, strict=True
        )
    ]


def _may_have_members(messages: str, count: int) -> bool:
    """Whether one of the stored messages, joined with commas, may have a member that is not part of the message.

    All of these but the size are objects, so that there are more braces than messages. Counting a character takes a
    sixth of the time of the searches.
    """
    return messages.count("{") != count or ("_" in messages and _SIZE_MEMBER in messages)


def progress_json(progress: Progress) -> str:
    """Return the progress of a turn in the stored format."""
    return to_json((progress.agent, item_rows(progress.items, is_input=False)))


def to_progress(stored: str) -> tuple[str, list[ItemRow]]:
    """Return the active agent and the items of a stored progress."""
    return _decode_progress(stored)


def items_json(items: Sequence[Item]) -> str:
    """Return items in the stored format, as one JSON list."""
    return to_json(item_rows(items, is_input=False))


def decode_items(stored: str) -> list[Item]:
    """Return the items of ``items_json``."""
    return [to_item(message, agent, visible) for _, agent, visible, message in _decode_rows(stored)]


def _message_json(item: Item) -> str:
    message = to_json(item.message)
    if (
        item.state is None
        and item.compaction is None
        and item.tokens is None
        and item.delegate is None
        and item.handoff is None
    ):
        return message
    more = _Members(item.state, item.compaction, item.tokens, item.delegate, item.handoff)
    # Members of the stored message rather than columns: the message decoder of earlier versions skips them, and what
    # deletes or shortens a message deletes them too.
    return f"{message[:-1]},{to_json(more)[1:]}"


def to_json(value: object) -> str:
    """Return a value as JSON; halves of surrogate pairs are replaced."""
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        # A tool may return text with half of a surrogate pair; no encoding has it.
        whole = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
        return whole.encode("utf-8", "replace").decode()
