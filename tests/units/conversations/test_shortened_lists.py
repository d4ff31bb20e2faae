"""Lists without older messages, placed in the stored conversation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxy.conversations.shortened_lists import items_of_shortened, may_be_end
from proxy.messages import AssistantMessage, Item, Message, ToolMessage, UserMessage, text_of
from proxy.turns.records import ChainTurn


def turn(number: int, *, is_stored: bool = True) -> ChainTurn:
    items = [
        Item(UserMessage(content=f"question {number}")),
        Item(ToolMessage(f"c{number}", f"hidden {number}"), agent="a", visible=False),
        Item(AssistantMessage(content=f"answer {number}"), agent="a"),
    ]
    return ChainTurn(number, "a", is_stored, items, (), "conv_1", "", None)


CHAIN = [turn(number) for number in range(5)]


def listed(*texts: str) -> list[Message]:
    return [
        UserMessage(content=text) if text.startswith("q") else AssistantMessage(content=text)
        for text in texts
    ]


def context(*texts: str, chain: Sequence[ChainTurn] = CHAIN) -> list[str] | None:
    messages = listed(*texts)
    found = items_of_shortened(chain, messages, [Item(message) for message in messages])
    return None if found is None else [text_of(item.message) for item in found]


def test_the_end_of_the_chain_has_its_hidden_items() -> None:
    assert context("question 3", "answer 3", "question 4", "answer 4") == [
        *("question 3", "hidden 3", "answer 3"),
        *("question 4", "hidden 4", "answer 4"),
    ]


def test_a_list_that_begins_with_an_answer_has_no_user_message_for_it() -> None:
    assert context("answer 3", "question 4", "answer 4") == [
        *("hidden 3", "answer 3"),
        *("question 4", "hidden 4", "answer 4"),
    ]


def test_the_first_messages_can_stay() -> None:
    assert context("question 0", "answer 0", "question 4", "answer 4") == [
        *("question 0", "answer 0"),
        *("question 4", "hidden 4", "answer 4"),
    ]


@pytest.mark.parametrize(
    "texts",
    [
        ("answer 4",),
        ("question x", "answer 4"),
        ("question x", "answer 3", "question 4", "answer 4"),
        ("question 1", "answer 1", "question 4", "answer 4"),
        tuple(text for n in range(5) for text in (f"question {n}", f"answer {n}")),
    ],
    ids=["one answer", "another question", "an edit before", "not the first messages", "the whole list"],
)
def test_other_lists_are_not_placed(texts: tuple[str, ...]) -> None:
    assert context(*texts) is None


def test_turns_without_content_cannot_be_compared() -> None:
    assert context("question 4", "answer 4", chain=[*CHAIN[:-1], turn(4, is_stored=False)]) is None


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("question 3", "answer 3", "question 4", "answer 4"), True),
        (("question 4", "answer 4"), True),
        # The user text before the list is not known.
        (("answer 4",), True),
        (("question 3", "answer 4"), False),
        (("question 4", "answer 3"), False),
        (("question 3", "answer 3", "question 5", "answer 4"), False),
    ],
)
def test_the_last_items_of_a_turn_distinguish_it_from_most_lists(
    texts: Sequence[str], expected: bool
) -> None:
    assert may_be_end(CHAIN[-1].items, listed(*texts)) is expected


def test_an_answer_of_which_only_the_end_is_known_does_not_decide() -> None:
    end = [Item(AssistantMessage(content="answer 4"), agent="a")]
    assert may_be_end(end, listed("question 5", "answer 5"))


def test_a_turn_without_stored_content_does_not_decide() -> None:
    assert may_be_end([], listed("question 4", "answer 4"))
