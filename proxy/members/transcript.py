"""The conversation as members outside of the proxy see it: the text of users and agents, without hidden tool calls."""

from __future__ import annotations

import json
from collections.abc import Sequence

from proxy.members.port import MemberContext
from proxy.messages import AssistantMessage, Item, Message, ToolMessage, UserMessage, text_of


def visible_messages(items: Sequence[Item]) -> list[Message]:
    """Return the messages of users and the text of agents, without calls of tools and their results."""
    messages: list[Message] = []
    for item in items:
        message = item.message
        if isinstance(message, UserMessage):
            messages.append(message)
        elif isinstance(message, AssistantMessage) and item.visible and (text := text_of(message)):
            messages.append(AssistantMessage(content=text))
    return messages


def own_calls(items: Sequence[Item]) -> list[Message]:
    """Return the calls of client tools that a member made in this exchange, and their results."""
    visible = [item for item in items if item.visible]
    return [item.message for item in visible if isinstance(item.message, AssistantMessage | ToolMessage)]


def note_of_handoff(context: MemberContext) -> str:
    """Return a sentence about the handoff to the member in this turn; empty if there was none."""
    if not context.handed_over_by:
        return ""
    reason = f": {context.handoff_reason}" if context.handoff_reason else ""
    data = context.handoff_input
    return (
        f"{context.handed_over_by} has handed the conversation over to you{reason}. "
        "Answer the last user message yourself, without mentioning it."
        + (f"\n\nHandover data: {json.dumps(data, ensure_ascii=False)}" if data else "")
    )
