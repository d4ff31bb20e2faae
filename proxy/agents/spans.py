"""The spans of an agent's work: the agent, its model calls, and its handoffs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from proxy.agents.agent import Agent
from proxy.agents.call import Call, wire_call
from proxy.agents.turn_state import TurnState
from proxy.messages import (
    AssistantMessage,
    FunctionMessage,
    Message,
    TextPart,
    ToolCall,
    ToolMessage,
    is_instruction,
    text_of,
)
from proxy.providers.model import Finished, ModelRequest
from proxy.tracing import Attribute, TraceSpan, span

Result = TypeVar("Result")


async def in_agent_span(work: Awaitable[Result], state: TurnState) -> Result:
    """Await the work of the active agent in its span."""
    name = state.turn.agent
    attributes = {
        Attribute.OPERATION: "invoke_agent",
        Attribute.AGENT: name,
        Attribute.CONVERSATION: state.turn.conversation_id,
    }
    with span(f"invoke_agent {name}", attributes):
        return await work


def record_handoff(source: str, target: str) -> None:
    """Add a span without duration for a handoff."""
    with span(
        f"handoff {source} to {target}", {Attribute.HANDOFF_FROM: source, Attribute.HANDOFF_TO: target}
    ):
        pass


def model_span(agent: Agent, state: TurnState) -> AbstractContextManager[TraceSpan]:
    """Return the block of a model call."""
    return span(
        f"chat {agent.model.name}",
        {
            Attribute.OPERATION: "chat",
            Attribute.REQUEST_MODEL: agent.model.name,
            Attribute.REQUEST_STREAM: True,
            Attribute.AGENT: agent.name,
            Attribute.CONVERSATION: state.turn.conversation_id,
        },
        is_client=True,
    )


def record_request(traced: TraceSpan, request: ModelRequest) -> None:
    """Set the attributes of a request."""
    if not traced.is_recording:
        return
    parameters = request.parameters
    traced.set(Attribute.REQUEST_MAX_TOKENS, parameters.max_completion_tokens or parameters.max_tokens)
    traced.set(Attribute.REQUEST_TEMPERATURE, parameters.temperature)
    traced.set(Attribute.REQUEST_TOP_P, parameters.top_p)
    traced.set(Attribute.REQUEST_SEED, parameters.seed)
    traced.set(Attribute.OUTPUT_TYPE, "text" if parameters.response_format is None else "json")
    instructions = [text_of(message) for message in request.messages if is_instruction(message)]
    traced.set_content(Attribute.SYSTEM_INSTRUCTIONS, lambda: [_text(text) for text in instructions])
    traced.set_content(
        Attribute.INPUT_MESSAGES,
        lambda: [_shown(message) for message in request.messages if not is_instruction(message)],
    )


def record_reply(traced: TraceSpan, finished: Finished, text: Sequence[str], calls: Sequence[Call]) -> None:
    """Set the attributes of a complete reply."""
    traced.set(Attribute.RESPONSE_MODEL, finished.model)
    traced.set(Attribute.FINISH_REASONS, [finished.reason])
    if finished.usage is not None:
        traced.set(Attribute.INPUT_TOKENS, finished.usage.prompt)
        traced.set(Attribute.OUTPUT_TOKENS, finished.usage.completion)
        traced.set(Attribute.CACHED_TOKENS, finished.usage.cached or None)
        traced.set(Attribute.REASONING_TOKENS, finished.usage.reasoning or None)
    traced.set_content(
        Attribute.OUTPUT_MESSAGES,
        lambda: [
            {
                "role": "assistant",
                "parts": [
                    *([_text("".join(text))] if text else []),
                    *(_call(wire_call(call)) for call in calls),
                ],
                "finish_reason": finished.reason,
            }
        ],
    )


# The JSON of messages: semantic conventions for generative AI, "Capturing instructions, inputs, and outputs".


def _shown(message: Message) -> dict[str, Any]:
    match message:
        case ToolMessage():
            result = {"type": "tool_call_response", "id": message.tool_call_id, "response": text_of(message)}
            return {"role": "tool", "parts": [result]}
        case FunctionMessage():
            return {"role": "tool", "parts": [{"type": "tool_call_response", "response": text_of(message)}]}
        case AssistantMessage():
            calls = [call for call in message.tool_calls or () if isinstance(call, ToolCall)]
            return {"role": "assistant", "parts": [*_parts(message), *map(_call, calls)]}
        case _:
            return {"role": message.__struct_config__.tag, "parts": _parts(message)}


def _parts(message: Message) -> list[dict[str, Any]]:
    """Return the text of a message; other parts as their type, because files are too large for a span."""
    content = message.content
    if not isinstance(content, list):
        return [_text(text)] if (text := text_of(message)) else []
    return [
        _text(part.text) if isinstance(part, TextPart) else {"type": str(part.__struct_config__.tag)}
        for part in content
    ]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = call.function.arguments
    return {"type": "tool_call", "id": call.id, "name": call.function.name, "arguments": arguments}
