"""Agents of Pydantic AI (https://ai.pydantic.dev).

The messages of a run are stored with its answer, and are part of the history of the next run between those of other
agents. Handoffs and tools of the client are external tools, whose calls end a run of Pydantic AI.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from pydantic_ai import (
    DeferredToolRequests,
    DeferredToolResults,
    ExternalToolset,
    ToolDefinition,
    ToolDenied,
)
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import ReinjectSystemPrompt
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.run import AgentRunResultEvent
from pydantic_core import to_json

from proxy.members.adapters.common import NOT_EXECUTED, answered_calls, hand_over_to, unused_parameters
from proxy.members.port import (
    Member,
    MemberContext,
    MemberEvent,
    ModelUsed,
    NotApproved,
    Reasoning,
    ToolBegan,
    ToolEnded,
)
from proxy.members.transcript import note_of_handoff
from proxy.messages import AssistantMessage, ImagePart, Item, Message, Usage, UserMessage, text_of

_SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "service_tier": "service_tier",
}


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of an agent."""
    return PydanticAIMember(found) if isinstance(found, AbstractAgent) else None


class PydanticAIMember:
    """An agent, which has no state, so that one object serves all turns."""

    has_effects = True

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Run the agent with the history of the conversation."""
        unused = unused_parameters(context.parameters, _SETTINGS)
        if unused is not None:
            yield unused
        history = _history(context)
        external = {tool.name for tool in context.tools} | {tool.name for tool, _ in context.handoff_tools}
        approvals = await _approvals(history, external, context)
        results = _results(history, external, context)
        deferred = DeferredToolResults(calls=results, approvals=approvals) if results or approvals else None
        has_text = False
        result: Any = None
        async with self._agent.run_stream_events(
            message_history=history if deferred is not None else _closed(history),
            deferred_tool_results=deferred,
            output_type=[self._agent.output_type, DeferredToolRequests],
            toolsets=[_external_tools(context)],
            instructions=[text for text in (context.instructions, note_of_handoff(context)) if text],
            model_settings=_settings(context),
            deps=context if self._agent.deps_type is MemberContext else None,
            capabilities=[ReinjectSystemPrompt()],
        ) as events:
            async for event in events:
                if isinstance(event, AgentRunResultEvent):
                    result = event.result
                for found in _events(event, external):
                    has_text = has_text or isinstance(found, str)
                    yield found
        new = result.new_messages()
        for used in _used(new):
            yield used
        if isinstance(result.output, DeferredToolRequests):
            context.state = _dump(new)
            # Ends the turn with the question; the next one continues from the stored state.
            await asyncio.gather(*(_approved(call, context) for call in result.output.approvals))
            async for found in self._deferred(result.output.calls, new, context):
                yield found
            return
        if not has_text and not isinstance(result.output, str):
            yield to_json(result.output).decode()
        context.state = _dump(new)

    async def close(self) -> None:
        """Nothing is held."""

    async def _deferred(
        self, calls: Sequence[ToolCallPart], new: list[ModelMessage], context: MemberContext
    ) -> AsyncIterator[MemberEvent]:
        targets = {tool.name: target for tool, target in context.handoff_tools}
        of_client = [call for call in calls if call.tool_name not in targets]
        if of_client:
            await asyncio.gather(
                *(context.call_tool(call.tool_name, call.args_as_dict()) for call in of_client)
            )
            return
        context.state = _dump(_closed(new, "transferred"))
        yield hand_over_to(targets[calls[0].tool_name], calls[0].args_as_json_str())


# --- messages --------------------------------------------------------------------------------------------------


def _history(context: MemberContext) -> list[ModelMessage]:
    """Return the conversation, with the agent's own messages as Pydantic AI wrote them."""
    history: list[ModelMessage] = []
    for item in context.items:
        own = context.state_of(item)
        if own is not None:
            history = [*_closed(history), *ModelMessagesTypeAdapter.validate_python(own)]
        elif (message := _message(item)) is not None:
            history = [*_closed(history), message]
    for item in context.later_items:
        # What else there is belongs to questions for approval.
        if (own := context.state_of(item)) is not None:
            history += ModelMessagesTypeAdapter.validate_python(own)
    return history


def _message(item: Item) -> ModelMessage | None:
    message = item.message
    if isinstance(message, UserMessage):
        return ModelRequest(parts=[UserPromptPart(_content(message))])
    if isinstance(message, AssistantMessage) and item.visible and (text := text_of(message)):
        return ModelResponse(parts=[TextPart(text)])
    return None


def _content(message: UserMessage) -> Any:
    if not isinstance(message.content, list):
        return text_of(message)
    images = [ImageUrl(part.image_url.url) for part in message.content if isinstance(part, ImagePart)]
    return [text_of(message), *images]


def _closed(history: list[ModelMessage], result: str = NOT_EXECUTED) -> list[ModelMessage]:
    """Return the messages with a result for each call of the last one."""
    if not history or not isinstance(last := history[-1], ModelResponse):
        return history
    calls = [part for part in last.parts if isinstance(part, ToolCallPart)]
    if not calls:
        return history
    returns = [ToolReturnPart(call.tool_name, result, tool_call_id=call.tool_call_id) for call in calls]
    return [*history, ModelRequest(parts=returns)]


async def _approved(call: ToolCallPart, context: MemberContext) -> Any:
    """Return the decision of a person on a call that the agent runs itself; the turn ends if there is none yet."""
    try:
        await context.run_approved(call.tool_name, call.args_as_dict(), lambda: "approved")
    except NotApproved as refusal:
        return ToolDenied(refusal.message)
    return True


async def _approvals(
    history: list[ModelMessage], external: set[str], context: MemberContext
) -> dict[str, Any]:
    """Return the decisions on the agent's own calls with which the last run ended, by call id."""
    if not context.later_items:
        return {}
    calls = [call for call in _last_calls(history) if call.tool_name not in external]
    return {call.tool_call_id: await _approved(call, context) for call in calls}


def _last_calls(history: list[ModelMessage]) -> list[ToolCallPart]:
    if not history or not isinstance(history[-1], ModelResponse):
        return []
    return [part for part in history[-1].parts if isinstance(part, ToolCallPart)]


def _results(history: list[ModelMessage], external: set[str], context: MemberContext) -> dict[str, Any]:
    """Return the results of the calls of external tools with which the last run ended, by call id."""
    answers = context.answers()
    if not context.later_items:
        return {}
    calls = [call for call in _last_calls(history) if call.tool_name in external]
    found = answered_calls([(one.tool_call_id, one.tool_name, one.args_as_dict()) for one in calls], answers)
    return {call.tool_call_id: found.get(call.tool_call_id, NOT_EXECUTED) for call in calls}


def _dump(messages: list[ModelMessage]) -> Any:
    return ModelMessagesTypeAdapter.dump_python(messages, mode="json")


# --- the run ---------------------------------------------------------------------------------------------------


def _external_tools(context: MemberContext) -> Any:
    specs = [*context.tools, *(tool for tool, _ in context.handoff_tools)]
    schema = {"type": "object", "properties": {}}
    return ExternalToolset(
        [
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=tool.parameters or schema,
                strict=tool.strict,
            )
            for tool in specs
        ]
    )


def _settings(context: MemberContext) -> Any:
    settings: dict[str, Any] = {}
    for name, theirs in _SETTINGS.items():
        value = getattr(context.parameters, name)
        if value is not None:
            settings[theirs] = value
    return settings or None


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


def _used(messages: Sequence[ModelMessage]) -> list[ModelUsed]:
    return [
        ModelUsed(
            message.model_name or "pydantic-ai",
            Usage(
                prompt=message.usage.input_tokens,
                completion=message.usage.output_tokens,
                cached=message.usage.cache_read_tokens,
            ),
        )
        for message in messages
        if isinstance(message, ModelResponse)
    ]
