"""Message lists that begin with a summary."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxy.conversations.summaries import is_summarized
from proxy.messages import AssistantMessage, Message, SystemMessage, UserMessage

HEADING = "Summary of the earlier part of this conversation, which is not shown any more:\n\n"
"""Of a compaction of this server."""
NEXT = UserMessage("Go on")


@pytest.mark.parametrize(
    ("messages", "instructions", "expected"),
    [
        ([NEXT], ["Be brief.\n[CONVERSATION SUMMARY]\nA rocket."], True),
        ([AssistantMessage("A rocket was sold."), NEXT], [], True),
        ([UserMessage("Summary of the conversation: a rocket."), NEXT], [], True),
        (
            [UserMessage("<state_snapshot>a rocket</state_snapshot>"), AssistantMessage("Got it."), NEXT],
            [],
            True,
        ),
        ([UserMessage("Hello"), AssistantMessage(f"{HEADING}A rocket was sold."), NEXT], [], True),
        ([UserMessage("Hello"), AssistantMessage("Here is a summary of the conversation."), NEXT], [], False),
        ([UserMessage("Hello"), NEXT], ["Be brief."], False),
        # The only message is a question, even about a summary.
        ([UserMessage("Write a summary of the conversation.")], [], False),
        ([], [], False),
    ],
)
def test_marks_and_a_missing_beginning(
    messages: Sequence[Message], instructions: Sequence[str], expected: bool
) -> None:
    assert is_summarized(messages, [SystemMessage(text) for text in instructions]) is expected
