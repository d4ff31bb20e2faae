"""``PlainItems`` are the same items as a list of them, whatever is read first."""

from __future__ import annotations

import pytest

from proxy.messages import AssistantMessage, Compaction, Item, Message, UserMessage
from proxy.turns.plain_items import PlainItems, joined_items, messages_of

MESSAGES: list[Message] = [UserMessage("a"), AssistantMessage("b"), AssistantMessage("c"), UserMessage("d")]
AGENTS = [None, "sales", "sales", None]
VISIBLE = [1, 1, 0, 1]
OF_CLIENT = PlainItems(MESSAGES), [Item(message) for message in MESSAGES]
STORED = (
    PlainItems(MESSAGES, AGENTS, VISIBLE),
    [
        Item(message, agent, visible == 1)
        for message, agent, visible in zip(MESSAGES, AGENTS, VISIBLE, strict=True)
    ],
)
NONE = PlainItems([]), list[Item]()
KINDS = pytest.mark.parametrize(
    ("plain", "items"), [OF_CLIENT, STORED, NONE], ids=["client", "stored", "none"]
)


@KINDS
def test_items_are_those_of_the_columns(plain: PlainItems, items: list[Item]) -> None:
    assert list(plain) == items
    assert plain == items
    assert items == plain
    assert len(plain) == len(items)
    assert bool(plain) == bool(items)
    assert list(reversed(plain)) == items[::-1]
    assert messages_of(plain) == messages_of(items) == [item.message for item in items]


@KINDS
@pytest.mark.parametrize("part", [slice(1, 3), slice(-2, None), slice(None, None, -1), slice(9, 12)])
def test_a_part_has_the_items_of_the_part(plain: PlainItems, items: list[Item], part: slice) -> None:
    assert plain[part] == items[part]
    assert isinstance(plain[part], PlainItems)


@pytest.mark.parametrize("one", [OF_CLIENT, STORED, NONE], ids=["client", "stored", "none"])
@pytest.mark.parametrize("other", [OF_CLIENT, STORED, NONE], ids=["client", "stored", "none"])
def test_joined_items_are_in_order(
    one: tuple[PlainItems, list[Item]], other: tuple[PlainItems, list[Item]]
) -> None:
    joined = joined_items(one[0], other[0])

    assert isinstance(joined, PlainItems)
    assert joined == [*one[1], *other[1]]
    assert joined_items(one[0], other[1]) == joined_items(one[1], other[0]) == [*one[1], *other[1]]


def test_items_with_more_than_a_message_stay_as_they_are() -> None:
    marked = [Item(UserMessage("summary"), compaction=Compaction(retained_from=0))]

    assert joined_items(OF_CLIENT[0], marked) == [*OF_CLIENT[1], *marked]
    assert joined_items([], marked) is marked


def test_only_items_without_authors_are_known_to_be_of_the_client() -> None:
    assert OF_CLIENT[0].are_of_client
    assert (OF_CLIENT[0] + OF_CLIENT[0]).are_of_client
    assert not STORED[0].are_of_client
    assert not (OF_CLIENT[0] + STORED[0]).are_of_client
