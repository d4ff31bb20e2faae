"""What a client has seen of a conversation: the messages that it sends with its next request."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.messages import AssistantMessage, Item, Message, text_of
from proxy.turns.repository import ChainTurn
from proxy.wire.chat.answer_text import TextJoiner


def asked_with(
    chain: Sequence[ChainTurn],
    said: Sequence[Item],
    *,
    count: int,
    instructions: Sequence[tuple[int, Message]],
) -> list[Message]:
    """Return the messages of a request, as far as they are kept.

    ``chain`` is what came before its turn, ``said`` the turn's input. The request had ``count`` messages, among them
    ``instructions``, each with its place; no chain holds those.
    """
    shown = [*shown_of(chain), *(item.message for item in said)]
    sent = count - len(instructions)
    messages = shown[max(0, len(shown) - sent) :]
    missing = sent - len(messages)
    for place, message in instructions:
        messages.insert(max(0, place - missing), message)
    return messages


def shown_of(chain: Sequence[ChainTurn]) -> list[Message]:
    """Return the messages, oldest first; all that agents said in one turn is one message."""
    return [message for turn in chain for message in _shown_of_turn(turn)]


def _shown_of_turn(turn: ChainTurn) -> list[Message]:
    said = [item.message for item in turn.items if item.agent is None]
    answers = [item.message for item in turn.items if item.agent is not None and item.visible]
    return [*said, _answer(answers, turn.pending)] if answers else said


def _answer(messages: Sequence[Message], pending: Sequence[str]) -> AssistantMessage:
    joints = TextJoiner()
    text, refusal = "", ""
    calls = []
    for message in messages:
        if isinstance(message, AssistantMessage):
            if message.content:
                text += joints.join(text_of(message))
            refusal += message.refusal or ""
            # The others were for the server's own tools, which is not in the answer.
            calls += [call for call in message.tool_calls or () if call.id in pending]
            joints.pause()
    return AssistantMessage(
        content=text or (None if calls or refusal else ""), refusal=refusal or None, tool_calls=calls or None
    )
