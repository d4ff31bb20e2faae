"""The messages of a model call: the instructions of the agent, then the conversation.

Providers reject a list in which a tool call has no result directly after its message. Cancelled turns, and clients that
do not run their tools, leave such calls; ``closed`` adds a result to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from proxy.message_lists import TextMessages, has_instructions, without_instructions
from proxy.messages import (
    AssistantMessage,
    CustomToolCall,
    DeveloperMessage,
    FunctionMessage,
    Item,
    Message,
    ProviderState,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
    is_instruction,
    text_of,
)
from proxy.turns.plain_items import messages_of

NOT_EXECUTED = "not executed: no result was given for this call"


def messages_for(
    instructions: str,
    overlay: Sequence[SystemMessage | DeveloperMessage],
    context: Sequence[Item],
    items: Sequence[Item],
) -> list[Message]:
    """Return all messages of a model call, beginning with one system message.

    Several providers accept only one system message, and only as the first message. It contains the agent's
    instructions, those stored in the conversation, and those of the client for this turn, in this order.
    """
    earlier = messages_of(context)
    if type(earlier) is TextMessages and not (items or overlay or earlier.has_instructions):
        # The first call of most turns.
        return [SystemMessage(content=instructions), *earlier] if instructions else list(earlier)
    parts = (earlier, messages_of(items)) if items else (earlier,)
    stored = [
        message for part in parts if has_instructions(part) for message in part if is_instruction(message)
    ]
    text = instructions
    if stored or overlay:
        text = "\n\n".join(
            part for part in (instructions, *map(text_of, stored), *map(text_of, overlay)) if part
        )
    chain: list[Message] = [SystemMessage(content=text)] if text else []
    for part in parts:
        chain += without_instructions(part) if stored else part
    return _with_results(chain) if any(map(_has_calls_or_results, parts)) else chain


def provider_states(items: Iterable[Item]) -> dict[str, ProviderState]:
    """Return the provider state of all items that have one, by the id of the first tool call of the message."""
    return {
        item.message.tool_calls[0].id: item.state
        for item in items
        if item.state is not None and isinstance(item.message, AssistantMessage) and item.message.tool_calls
    }


def text_states(items: Iterable[Item]) -> dict[int, ProviderState]:
    """Return the provider state of messages without calls, by ``id()`` of the message."""
    return {
        id(item.message): item.state
        for item in items
        if item.state is not None
        and isinstance(item.message, AssistantMessage)
        and not item.message.tool_calls
    }


def state_of_repeated(message: AssistantMessage, context: Sequence[Item]) -> ProviderState | None:
    """Return the provider state for repeated calls, taken from the newest message with the first of them.

    Reasoning items are omitted: the Responses API rejects an item that occurs twice, and accepts calls without one.
    """
    wanted = [call.function for call in message.tool_calls or () if isinstance(call, ToolCall)]
    for item in reversed(context):
        if item.state is None or not isinstance(item.message, AssistantMessage):
            continue
        functions = [
            call.function if isinstance(call, ToolCall) else None for call in item.message.tool_calls or ()
        ]
        if wanted and wanted[0] in functions:
            of_calls = dict(zip(range(len(functions)), item.state.calls, strict=False))
            calls = [of_calls.get(functions.index(one), {}) if one in functions else {} for one in wanted]
            return msgspec.structs.replace(item.state, calls=calls, items=[])
    return None


def _has_calls_or_results(messages: Sequence[Message]) -> bool:
    """Whether there are calls or results; without a call for each of thousands of messages."""
    if type(messages) is TextMessages:
        return False
    for message in [message for message in messages if type(message) is not UserMessage]:
        if type(message) is AssistantMessage:
            if message.tool_calls or message.function_call:
                return True
        elif type(message) is ToolMessage or type(message) is FunctionMessage:
            return True
    return False


def closed(chain: list[Message]) -> list[Message]:
    """Return the messages with exactly one result after every call, and without results of unknown calls."""
    return _with_results(chain) if _has_calls_or_results(chain) else chain


def _with_results(chain: list[Message]) -> list[Message]:
    complete: list[Message] = []
    at = 0
    while at < len(chain):
        message = chain[at]
        at += 1
        if type(message) is ToolMessage:
            continue
        if type(message) is not AssistantMessage:
            complete.append(message)
            continue
        while message.tool_calls and at < len(chain) and (further := _further_calls(chain[at])):
            # A conversation item contains one call, so the calls of one reply can be stored as several messages. As
            # separate messages, all but the last would lack a result.
            message = msgspec.structs.replace(message, tool_calls=[*message.tool_calls, *further])
            at += 1
        results: dict[str, ToolMessage] = {}
        while at < len(chain) and type(result := chain[at]) is ToolMessage:
            results.setdefault(result.tool_call_id, result)
            at += 1
        complete.append(message)
        complete.extend(
            results.get(call.id) or ToolMessage(call.id, NOT_EXECUTED) for call in message.tool_calls or ()
        )
    return complete


def _further_calls(message: Message) -> list[ToolCall | CustomToolCall] | None:
    """Return the calls of a message that contains nothing else."""
    return message.tool_calls if type(message) is AssistantMessage and not text_of(message) else None


def assistant_message(
    text: str, refusal: str, calls: list[ToolCall | CustomToolCall] | None = None
) -> AssistantMessage:
    """Return one reply as a message; ``content`` is None if there are only calls or a refusal."""
    return AssistantMessage(
        content=text if text or not (calls or refusal) else None,
        refusal=refusal or None,
        tool_calls=calls or None,
    )
