"""Probe of a model: one tool call and one short answer, as a turn of a team would make them.

The probe uses the model itself, without retries and fallbacks, so that it reports what the provider does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxy.errors import UpstreamFailed, UpstreamTimeout
from proxy.events import ReasoningDelta, TextDelta
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    FunctionTool,
    Message,
    Parameters,
    ProviderState,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.providers.model import Finished, Model, ModelRequest, ToolCallPiece
from proxy.providers.openai.answer import ProviderAnswer
from proxy.providers.openai.client import OpenAIWireModel

TIME_LIMIT = 60.0
"""Seconds for both calls."""
MAX_TOKENS = 1024
"""Of each call; models with reasoning need some hundred for a short answer."""
TOOL = FunctionTool(
    "report_status",
    "Report the status of the connection.",
    {
        "type": "object",
        "properties": {"status": {"type": "string", "enum": ["ok"]}},
        "required": ["status"],
        "additionalProperties": False,
    },
)
_CALL_ID = "call_0a1b2c3d4e5f6071"
"""In the form of the proxy's own ids, so that a provider that needs another form is noticed."""
_INSTRUCTIONS = (
    "Call the tool report_status once with the status ok. When you have its result, answer with: OK"
)


@dataclass(slots=True)
class Probe:
    """The result for one model; times in seconds. ``adaptations`` are what its provider was found to reject."""

    wire: str = ""
    first_delta: float | None = None
    """Until the first content of the first call."""
    total: float = 0.0
    has_answered: bool = False
    is_streamed: bool = False
    has_tools: bool = False
    has_reasoning: bool = False
    adaptations: Sequence[str] = ()
    failure: UpstreamFailed | None = None


@dataclass(slots=True)
class _Reply:
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    state: ProviderState | None = None
    batches: int = 0


async def probe(model: Model, *, time_limit: float = TIME_LIMIT) -> Probe:
    """Call the model for a tool call, and again with the result of the tool."""
    found = Probe(wire=_wire(model))
    began = time.monotonic()
    try:
        async with asyncio.timeout(time_limit):
            await _converse(model, found, began)
    except UpstreamFailed as failure:
        found.failure = failure
    except TimeoutError:
        found.failure = UpstreamTimeout("timeout_first")
    found.total = time.monotonic() - began
    if isinstance(model, OpenAIWireModel):
        found.wire = _wire(model)
        found.adaptations = sorted(str(one) for one in model.adaptations)
    return found


async def _converse(model: Model, found: Probe, began: float) -> None:
    messages: list[Message] = [SystemMessage(_INSTRUCTIONS), UserMessage("Check the connection.")]
    reply = await _call(model, messages, {}, found, began)
    found.has_answered = True
    found.has_tools = reply.name == TOOL.name
    if not reply.name:
        return
    call = ToolCall(_CALL_ID, FunctionCall(reply.name, "".join(reply.arguments) or "{}"))
    messages += [AssistantMessage(content=None, tool_calls=[call]), ToolMessage(_CALL_ID, "ok")]
    states = {_CALL_ID: reply.state} if reply.state is not None else {}
    await _call(model, messages, states, found, began)


async def _call(
    model: Model,
    messages: Sequence[Message],
    states: Mapping[str, ProviderState],
    found: Probe,
    began: float,
) -> _Reply:
    reply = _Reply()
    request = ModelRequest(
        messages, tools=[TOOL], states=states, parameters=Parameters(max_completion_tokens=MAX_TOKENS)
    )
    async with model.stream(request) as batches:
        async for batch in batches:
            if found.first_delta is None:
                found.first_delta = time.monotonic() - began
            reply.batches += 1
            for delta in batch:
                match delta:
                    case TextDelta(text=text):
                        reply.text.append(text)
                    case ReasoningDelta():
                        found.has_reasoning = True
                    case ToolCallPiece(index=0, name=name, arguments=arguments):
                        reply.name = reply.name or name or ""
                        reply.arguments.append(arguments)
                    case Finished(usage=usage, state=state):
                        reply.state = state
                        found.has_reasoning |= usage is not None and usage.reasoning > 0
                    case _:
                        pass
        is_streamed = batches.is_streamed if isinstance(batches, ProviderAnswer) else reply.batches > 1
        found.is_streamed |= is_streamed
    return reply


def _wire(model: Model) -> str:
    if isinstance(model, OpenAIWireModel):
        return "responses" if model.wire == "responses" else "chat completions"
    return "component"
