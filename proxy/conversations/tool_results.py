"""Results of client tools: every pending call has one, and every result has a call.

Calls of the deprecated form, ``function_call``, have no id, and their results name only a function. They are stored as
tool calls; ``wire.chat.message_validation`` gives those of a message list ids with the prefix ``TRANSLATED_ID``, which
the store does not know. Such a call is found by its content and the transcript before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from proxy.messages import AssistantMessage, FunctionMessage, Item, Message, ToolCall, ToolMessage
from proxy.request_errors import ToolCallNotFound, ToolResultsMissing
from proxy.turns.records import ChainTurn
from proxy.wire.chat.message_validation import TRANSLATED_ID


def answered_in(messages: Iterable[Message]) -> list[str]:
    """Return the ids of the calls whose results are in a list."""
    return [message.tool_call_id for message in messages if isinstance(message, ToolMessage)]


def called_in(messages: Iterable[Message]) -> set[str]:
    """Return the ids of the calls in a list."""
    return {
        call.id
        for message in messages
        if isinstance(message, AssistantMessage)
        for call in message.tool_calls or ()
    }


def check_calls(answered: Iterable[str], known: Collection[str], messages: Sequence[Message]) -> None:
    """Check that every result has a call; ``messages`` are all messages of the request.

    Raises:
        ToolCallNotFound: Has the first result without a call.
    """
    call_id = next((one for one in answered if one not in known), None)
    if call_id is not None:
        index = next(at for at, message in enumerate(messages) if answered_in([message]) == [call_id])
        raise ToolCallNotFound(call_id, index)


def check_results(pending: Sequence[str], answered: Collection[str]) -> None:
    """Check that all pending calls have results.

    Raises:
        ToolResultsMissing: Has all calls without results.
    """
    missing = [call_id for call_id in pending if call_id not in answered]
    if missing:
        raise ToolResultsMissing(missing)


# --- calls of the deprecated form ---


def is_function_result(message: Message) -> bool:
    """Whether a message is the result of a ``function_call``."""
    match message:
        case FunctionMessage():
            return True
        case ToolMessage():
            return message.tool_call_id.startswith(TRANSLATED_ID)
        case _:
            return False


def function_call_in(message: Message) -> ToolCall | None:
    """Return the ``function_call`` of a message."""
    return next((call for call in _calls(message) if call.id.startswith(TRANSLATED_ID)), None)


def pending_call(items: Sequence[Item], pending: Sequence[str]) -> ToolCall | None:
    """Return the last call of the items that is pending; None also if the items are not stored."""
    calls = [call for item in items for call in _calls(item.message) if call.id in pending]
    return calls[-1] if calls else None


def pending_call_of(turn: ChainTurn) -> ToolCall | None:
    """Return the last call of the turn that is pending; None also if the turn has no stored content."""
    return pending_call(turn.items, turn.pending)


def is_result_of(result: Message, pending: ToolCall, shown: ToolCall | None) -> bool:
    """Whether this is the result of the pending call; ``shown`` is the call before it in the message list, if any."""
    if shown is not None:
        return shown.function.name == pending.function.name
    return isinstance(result, FunctionMessage) and result.name == pending.function.name


def with_call_id(call: ToolCall, message: Message) -> Message:
    """Return the result of a ``function_call`` as the result of the stored call; other messages unchanged."""
    if isinstance(message, FunctionMessage | ToolMessage) and is_function_result(message):
        return ToolMessage(call.id, message.content)
    return message


def _calls(message: Message) -> list[ToolCall]:
    calls = message.tool_calls if isinstance(message, AssistantMessage) else None
    return [call for call in calls or () if isinstance(call, ToolCall)]
