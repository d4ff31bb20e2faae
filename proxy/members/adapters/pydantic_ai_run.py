"""The events of a run of Pydantic AI, as events of a member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_ai.messages import (
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolReturnPart,
)
from pydantic_ai.run import AgentRunResultEvent
from pydantic_ai.usage import RunUsage

from proxy.members.adapters.answer_events import incomplete
from proxy.members.port import MemberEvent, ModelUsed, Reasoning, ToolBegan, ToolEnded
from proxy.messages import Usage


class PydanticAIRun:
    """Converts the events of a run. Pydantic AI adds each model call to ``usage`` before the events that follow it."""

    def __init__(self, external: set[str], model: str) -> None:
        self._external = external
        self._model = model
        self.usage = RunUsage()
        self._calls = 0
        self._reported = Usage()
        self.has_text = False
        self.result: Any = None

    def read(self, event: Any) -> list[str | MemberEvent]:
        """Return the events of an event."""
        if isinstance(event, AgentRunResultEvent):
            self.result = event.result
        found = _events(event, self._external)
        self.has_text = self.has_text or any(isinstance(one, str) for one in found)
        return [*self._used(), *found]

    def _used(self) -> list[MemberEvent]:
        """Return the model calls since the last event."""
        calls, usage = self.usage.requests - self._calls, self.usage
        if calls <= 0:
            return []
        known = self._reported
        self._calls = usage.requests
        self._reported = Usage(
            prompt=usage.input_tokens, completion=usage.output_tokens, cached=usage.cache_read_tokens
        )
        tokens = Usage(
            prompt=self._reported.prompt - known.prompt,
            completion=self._reported.completion - known.completion,
            cached=self._reported.cached - known.cached,
        )
        return [ModelUsed(self._model, tokens), *[ModelUsed(self._model, Usage())] * (calls - 1)]


def model_name(agent: Any) -> str:
    """Return the name of the agent's model, which can also be a text such as ``openai:gpt-5-mini``."""
    model = agent.model
    name = model.rpartition(":")[2] if isinstance(model, str) else getattr(model, "model_name", "")
    return name or "pydantic-ai"


def _events(event: Any, external: set[str]) -> list[str | MemberEvent]:
    match event:
        case PartStartEvent(part=TextPart(content=text)) if text:
            return [text]
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)) if text:
            return [text]
        case PartStartEvent(part=ThinkingPart(content=text)) if text:
            return [Reasoning(text)]
        case PartDeltaEvent(delta=ThinkingPartDelta(content_delta=text)) if text:
            return [Reasoning(text)]
        case FunctionToolCallEvent(part=part) if part.tool_name not in external:
            return [ToolBegan(part.tool_call_id, part.tool_name, part.args_as_json_str())]
        case FunctionToolResultEvent(part=part):
            is_error = not isinstance(part, ToolReturnPart)
            text = part.model_response() if is_error else part.model_response_str()
            return [ToolEnded(part.tool_call_id, text, is_error)]
        case _:
            return []


def incomplete_answer(messages: Sequence[ModelMessage]) -> list[MemberEvent]:
    """Return the event for an answer that the model did not complete."""
    last = next((one for one in reversed(messages) if isinstance(one, ModelResponse)), None)
    if last is None or last.tool_calls:
        return []
    # Other models, such as those for tests, can have no finish reason.
    is_reported = last.provider_name in ("openai", "azure")
    reason = last.finish_reason
    if is_reported and reason == "stop" and "finish_reason" not in (last.provider_details or {}):
        # Pydantic AI adds it to a stream that ended without one.
        reason = None
    return incomplete(reason, is_reported=is_reported)
