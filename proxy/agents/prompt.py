"""What an agent is shown: its instructions, then everything said, as a chain that every provider accepts.

A chain is complete when every tool call has exactly one answer, right behind the message that made it. Turns that were
stopped, and callers that did not run their tools, leave calls without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

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

NOT_EXECUTED = "not executed: no result was given for this call"


def messages_for(
    instructions: str,
    overlay: Sequence[SystemMessage | DeveloperMessage],
    context: Iterable[Item],
    items: Iterable[Item],
) -> list[Message]:
    """Return the whole chain: one system message, then the rest.

    One message, because several providers take no second one, and none but the first place. It holds the agent's
    instructions, those that the conversation keeps, and the client's of this turn, in this order.
    """
    said = [item.message for item in context]
    kept = [message for message in said if is_instruction(message)]
    if kept:
        said = [message for message in said if not is_instruction(message)]
    told = "\n\n".join(text for text in (instructions, *map(text_of, kept), *map(text_of, overlay)) if text)
    chain: list[Message] = [SystemMessage(content=told)] if told else []
    chain.extend(said)
    chain.extend(item.message for item in items)
    return closed(chain)


def provider_states(items: Iterable[Item]) -> dict[str, ProviderState]:
    """Return the provider state of the items that have one, by the id of the first call of each message."""
    return {
        item.message.tool_calls[0].id: item.state
        for item in items
        if item.state is not None and isinstance(item.message, AssistantMessage) and item.message.tool_calls
    }


def state_of_repeated(message: AssistantMessage, context: Sequence[Item]) -> ProviderState | None:
    """Return the provider state for calls that are made again, from the newest reply that made the first of them.

    Reasoning items are left out: the Responses API rejects an item that occurs twice, and accepts calls without one.
    """
    wanted = [call.function for call in message.tool_calls or () if isinstance(call, ToolCall)]
    for item in reversed(context):
        if item.state is None or not isinstance(item.message, AssistantMessage):
            continue
        made = [
            call.function if isinstance(call, ToolCall) else None for call in item.message.tool_calls or ()
        ]
        if wanted and wanted[0] in made:
            of_calls = dict(zip(range(len(made)), item.state.calls, strict=False))
            calls = [of_calls.get(made.index(one), {}) if one in made else {} for one in wanted]
            return msgspec.structs.replace(item.state, calls=calls, items=[])
    return None


def _calls_or_answers(message: Message) -> bool:
    kind = type(message)
    if kind is UserMessage or kind is SystemMessage:
        return False
    if isinstance(message, AssistantMessage):
        return bool(message.tool_calls or message.function_call)
    return kind is ToolMessage or kind is FunctionMessage


def closed(chain: list[Message]) -> list[Message]:
    """Return the chain with an answer behind every call, and without answers to calls that nobody made.

    The usual chain has none of these troubles and comes back as it is.
    """
    if not any(map(_calls_or_answers, chain)):
        return chain
    mended: list[Message] = []
    at = 0
    while at < len(chain):
        message = chain[at]
        at += 1
        if isinstance(message, ToolMessage):
            continue
        if not isinstance(message, AssistantMessage):
            mended.append(message)
            continue
        while message.tool_calls and at < len(chain) and (further := _further_calls(chain[at])):
            # Calls that were kept one by one were made at once; apart, only the last of them would have its answer.
            message = msgspec.structs.replace(message, tool_calls=[*message.tool_calls, *further])
            at += 1
        answers: dict[str, ToolMessage] = {}
        while at < len(chain) and isinstance(answer := chain[at], ToolMessage):
            answers.setdefault(answer.tool_call_id, answer)
            at += 1
        mended.append(message)
        mended.extend(
            answers.get(call.id) or ToolMessage(call.id, NOT_EXECUTED) for call in message.tool_calls or ()
        )
    return mended


def _further_calls(message: Message) -> list[ToolCall | CustomToolCall] | None:
    """The calls of a message that holds nothing else."""
    return message.tool_calls if isinstance(message, AssistantMessage) and not text_of(message) else None


def assistant_message(text: str, refusal: str, calls: Sequence[ToolCall]) -> AssistantMessage:
    """Return one reply as a message; content is null when there are only calls or a refusal."""
    return AssistantMessage(
        content=text if text or not (calls or refusal) else None,
        refusal=refusal or None,
        tool_calls=list(calls) or None,
    )
