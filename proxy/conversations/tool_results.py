"""Results of the caller's own tools: every call that waits has one, and every result has a call.

The two halves of the official API say it in words of their own; ``list_name`` tells which half asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from proxy.errors import InvalidRequest
from proxy.messages import AssistantMessage, Message, ToolMessage
from proxy.turns.request import ListName


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


def check_calls(
    answered: Iterable[str], known: Collection[str], messages: Sequence[Message], list_name: ListName
) -> None:
    """Refuse results of calls that nobody made; ``messages`` are all that were sent.

    Raises:
        InvalidRequest: Naming the first.
    """
    call_id = next((one for one in answered if one not in known), None)
    if call_id is None:
        return
    if list_name == "input":
        raise InvalidRequest(
            f"No tool call found for function call output with call_id {call_id[:64]}.", param="input"
        )
    place = next(at for at, message in enumerate(messages) if answered_in([message]) == [call_id])
    raise InvalidRequest(
        f"No tool call with the id '{call_id[:64]}' is waiting for a result.",
        # With a dot, as the official API has it for every result that answers no call.
        param=f"messages.[{place}].role",
    )


def check_results(pending: Sequence[str], answered: Collection[str], list_name: ListName) -> None:
    """Refuse to go on while calls wait for results.

    Raises:
        InvalidRequest: Naming all of them.
    """
    missing = [call_id for call_id in pending if call_id not in answered]
    if not missing:
        return
    if list_name == "input":
        calls = "call" if len(missing) == 1 else "calls"
        sentence = f"No tool output found for function {calls} {', '.join(missing)}."
    else:
        sentence = "Results are missing for these tool calls: " + ", ".join(missing) + "."
    raise InvalidRequest(sentence, param=list_name)
