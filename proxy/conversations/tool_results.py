"""Results of client tools: every pending call has one, and every result has a call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from proxy.messages import AssistantMessage, Message, ToolMessage
from proxy.request_errors import ToolCallNotFound, ToolResultsMissing


def answered_in(messages: Iterable[Message]) -> list[str]:
    """Return the ids of the calls that have a result in a list."""
    return [message.tool_call_id for message in messages if isinstance(message, ToolMessage)]


def called_in(messages: Iterable[Message]) -> set[str]:
    """Return the ids of the calls that a list holds itself."""
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
