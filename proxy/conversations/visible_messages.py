"""The messages of a conversation that a client has seen, and sends again with its next request."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.messages import AssistantMessage, Item, Message, text_of
from proxy.turns.records import ChainTurn
from proxy.wire.chat.answer_text import TextJoiner


def rebuild_request_messages(
    chain: Sequence[ChainTurn],
    turn_input: Sequence[Item],
    *,
    count: int,
    instructions: Sequence[tuple[int, Message]],
) -> list[Message]:
    """Return the messages of a request, as far as they are stored.

    ``chain`` ends before the turn of the request. The request had ``count`` messages; ``instructions`` are its system
    and developer messages with their indexes, which are not part of any chain.
    """
    visible = [*visible_messages(chain), *(item.message for item in turn_input)]
    sent = count - len(instructions)
    messages = visible[max(0, len(visible) - sent) :]
    missing = sent - len(messages)
    for index, message in instructions:
        messages.insert(max(0, index - missing), message)
    return messages


def visible_messages(chain: Sequence[ChainTurn]) -> list[Message]:
    """Return the messages, oldest first; all answers of the agents in one turn are one message."""
    return [message for turn in chain for message in _of_turn(turn)]


def _of_turn(turn: ChainTurn) -> list[Message]:
    turn_input = [item.message for item in turn.items if item.agent is None]
    answers = [item.message for item in turn.items if item.agent is not None and item.visible]
    return [*turn_input, _answer(answers, turn.pending)] if answers else turn_input


def _answer(messages: Sequence[Message], pending: Sequence[str]) -> AssistantMessage:
    joints = TextJoiner()
    text, refusal = "", ""
    calls = []
    for message in messages:
        if isinstance(message, AssistantMessage):
            if message.content:
                text += joints.join(text_of(message))
            refusal += message.refusal or ""
            # Calls that are not pending are calls of server tools, which clients do not see.
            calls += [call for call in message.tool_calls or () if call.id in pending]
            joints.pause()
    return AssistantMessage(
        content=text or (None if calls or refusal else ""), refusal=refusal or None, tool_calls=calls or None
    )
