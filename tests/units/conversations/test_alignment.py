"""Message lists that are a stored chain, apart from templates and joined answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxy.conversations.alignment import is_aligned
from proxy.messages import AssistantMessage, Item, Message, UserMessage
from proxy.turns.records import ChainTurn

TEMPLATE = "Use what these documents say, and nothing that they do not say: {} (be brief)"


def turn(key: int, question: str, *answers: str, is_stored: bool = True) -> ChainTurn:
    said = [Item(UserMessage(question))] if question else []
    return ChainTurn(
        turn=key,
        agent="sales",
        is_stored=is_stored,
        items=[*said, *(Item(AssistantMessage(answer), "sales") for answer in answers)],
        pending=(),
    )


CHAIN = [turn(1, TEMPLATE.format("A rocket?"), "Red."), turn(2, "", "Or black."), turn(3, "Black", "Sold.")]
LAST: Sequence[Message] = [UserMessage("Black"), AssistantMessage("Sold.")]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ([UserMessage("A rocket?"), AssistantMessage("Red.\n\nOr black.")], True),
        ([UserMessage(" A  rocket?"), AssistantMessage("Red."), AssistantMessage("Or black.")], True),
        ([UserMessage(TEMPLATE.format("A rocket?")), AssistantMessage("Red. Or black.")], True),
        ([UserMessage("A boat?"), AssistantMessage("Red. Or black.")], False),
        ([UserMessage("A rocket?"), AssistantMessage("Red.")], False),
        ([AssistantMessage("Red. Or black.")], False),
        # A small difference is an edit, not a template.
        ([UserMessage(TEMPLATE.format("A rocket?")[:-5]), AssistantMessage("Red. Or black.")], False),
    ],
)
def test_answers_are_equal_and_user_messages_part_of_the_stored_ones(
    first: Sequence[Message], expected: bool
) -> None:
    assert is_aligned(CHAIN, [*first, *LAST]) is expected


def test_a_chain_without_stored_content_is_not_aligned() -> None:
    assert not is_aligned([turn(1, "", is_stored=False)], [])
