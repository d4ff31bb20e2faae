"""Fingerprints of lists that continue: the same as without what is known of earlier lists, within a limit of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.conversations.fingerprints import Transcript, scope_of
from proxy.conversations.known_beginnings import MIN_MESSAGES, KnownBeginnings
from proxy.conversations.resolver_query import ResolverQuery
from proxy.message_lists import TextMessages, text_messages
from proxy.messages import AssistantMessage, Message, UserMessage
from proxy.turns.request import TurnRequest
from tests.fakes.messages import message_lists
from tests.fakes.store.turns import MemoryHistory

SCOPE = scope_of("alice", "shop", "")
DIALOGUE: list[Message] = [UserMessage("Hi."), AssistantMessage("Hello!")] * MIN_MESSAGES


@dataclass
class NamedTeam:
    name: str
    has_tools: bool


def query_of(
    messages: list[Message], beginnings: KnownBeginnings | None, *, has_tools: bool = False, **fields: Any
) -> ResolverQuery:
    request = TurnRequest("alice", "shop", text_messages(messages) or messages, **fields)
    team = cast(Any, NamedTeam("shop", has_tools))
    return ResolverQuery(request, team, MemoryHistory(), None, beginnings=beginnings)


def only_text(messages: list[Message]) -> TextMessages:
    found = text_messages(messages)
    assert found is not None
    return found


def add(beginnings: KnownBeginnings, messages: list[Message], scope: bytes = SCOPE) -> None:
    boundaries = Transcript(scope).extend(messages)
    beginnings.add(scope, only_text(messages), len(messages), boundaries, None)


@given(st.lists(st.tuples(st.integers(0, 80), message_lists, st.booleans()), max_size=6))
def test_fingerprints_are_those_without_earlier_lists(
    changes: list[tuple[int, list[Message], bool]],
) -> None:
    beginnings = KnownBeginnings()
    messages = DIALOGUE

    for shared, added, has_tools in changes:
        messages = [*messages[:shared], *added, *DIALOGUE[: MIN_MESSAGES - shared]]
        query, expected = [query_of(messages, one, has_tools=has_tools) for one in (beginnings, None)]

        assert query.boundaries == expected.boundaries
        assert query.inputs == expected.inputs
        assert query.transcript.state() == expected.transcript.state()
        assert query.transcript.input_fingerprint() == expected.transcript.input_fingerprint()


def test_a_list_that_continues_is_known_up_to_its_last_answer() -> None:
    beginnings = KnownBeginnings()
    query = query_of([*DIALOGUE, UserMessage("And?")], beginnings)
    assert query.boundaries

    longer = only_text([*DIALOGUE, UserMessage("And?"), AssistantMessage("Yes."), UserMessage("Bye")])
    known = beginnings.find(SCOPE, longer, len(longer))

    assert known is not None
    assert list(known.boundaries) == query.boundaries
    assert len(known.texts) == len(DIALOGUE)
    assert beginnings.find(SCOPE, longer, len(DIALOGUE)) == known
    assert beginnings.find(SCOPE, longer, len(DIALOGUE) - 1) is None


@pytest.mark.parametrize(
    ("scope", "other"),
    [
        (scope_of("bob", "shop", ""), DIALOGUE),
        (SCOPE, DIALOGUE[:-1]),
        (SCOPE, [*DIALOGUE[:-1], AssistantMessage("Hello?")]),
        (SCOPE, [*DIALOGUE[:-1], UserMessage("Hello!")]),
        (SCOPE, [AssistantMessage("Hi."), *DIALOGUE[1:]]),
    ],
    ids=["caller", "shorter", "text", "role", "first role"],
)
def test_only_lists_of_the_scope_with_equal_messages_are_known(scope: bytes, other: list[Message]) -> None:
    beginnings = KnownBeginnings()
    add(beginnings, DIALOGUE)

    assert beginnings.find(scope, only_text(other), len(other)) is None


def test_texts_that_are_not_stored_are_not_cached() -> None:
    beginnings = KnownBeginnings()

    assert query_of(DIALOGUE, beginnings, is_stored=False).boundaries
    assert query_of(DIALOGUE[: MIN_MESSAGES - 1], beginnings).boundaries

    assert beginnings.size == 0


def test_a_longer_list_replaces_its_beginning() -> None:
    beginnings, whole = KnownBeginnings(), KnownBeginnings()
    for length in range(MIN_MESSAGES, len(DIALOGUE) + 1, 2):
        assert query_of(DIALOGUE[:length], beginnings).boundaries
    add(whole, DIALOGUE)

    # The parts were measured one by one.
    assert whole.size <= beginnings.size < 2 * whole.size


def test_the_oldest_lists_are_dropped_beyond_the_limit() -> None:
    beginnings = KnownBeginnings(max_bytes=100_000)
    lists = [[UserMessage(f"I am {number}."), *DIALOGUE[1:]] for number in range(20)]

    for messages in lists:
        add(beginnings, messages)
        assert 0 < beginnings.size <= 100_000
    known = [beginnings.find(SCOPE, only_text(one), len(one)) is not None for one in lists]
    assert known == sorted(known)
    assert 1 < sum(known) < 20

    before = beginnings.size
    add(beginnings, [UserMessage("x" * 100_000), *DIALOGUE[1:]])
    assert beginnings.size == before
