"""Calls of the deprecated form, ``function_call``: they have no id, so that their results name only a function.

Inside, they are tool calls like all others (``wire.checking`` gives those of a list ids that mean nothing to the
store). A call is found again by what it was and by what a client had been shown when it was made.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.messages import AssistantMessage, FunctionMessage, Item, Message, ToolCall, ToolMessage
from proxy.turns.repository import ChainTurn
from proxy.wire.chat.message_validation import TRANSLATED_ID


def is_function_result(message: Message) -> bool:
    """Whether a message is the result of such a call."""
    match message:
        case FunctionMessage():
            return True
        case ToolMessage():
            return message.tool_call_id.startswith(TRANSLATED_ID)
        case _:
            return False


def shown_call(message: Message) -> ToolCall | None:
    """Return the call that a client shows in this message, if it is one."""
    return next((call for call in _calls(message) if call.id.startswith(TRANSLATED_ID)), None)


def waiting_call(turn: ChainTurn) -> ToolCall | None:
    """Return the call that a turn ended with; None also for a turn without content."""
    return call_of(turn.items, turn.pending)


def call_of(items: Sequence[Item], pending: Sequence[str]) -> ToolCall | None:
    """Return the last call of the items that waits for its result."""
    calls = [call for item in items for call in _calls(item.message) if call.id in pending]
    return calls[-1] if calls else None


def answers(result: Message, waiting: ToolCall, shown: ToolCall | None) -> bool:
    """Whether a result is that of the waiting call; the list may show which call it belongs to."""
    if shown is not None:
        return shown.function.name == waiting.function.name
    return isinstance(result, FunctionMessage) and result.name == waiting.function.name


def as_result_of(call: ToolCall, message: Message) -> Message:
    """Return a result of the deprecated form as that of the call; other messages stay as they are."""
    if isinstance(message, FunctionMessage | ToolMessage) and is_function_result(message):
        return ToolMessage(call.id, message.content)
    return message


def _calls(message: Message) -> list[ToolCall]:
    calls = message.tool_calls if isinstance(message, AssistantMessage) else None
    return [call for call in calls or () if isinstance(call, ToolCall)]
