"""Agents of Pydantic AI (https://ai.pydantic.dev).

The messages of a run are stored with its answer, and are part of the history of the next run between those of other
agents. Handoffs and tools of the client are external tools, whose calls end a run of Pydantic AI.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar

from pydantic_ai import DeferredToolRequests, DeferredToolResults, ExternalToolset, ToolDefinition, ToolDenied
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import ReinjectSystemPrompt
from pydantic_ai.messages import (
    BinaryContent,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RunUsage, UsageLimits
from pydantic_core import to_json

from proxy.members.adapters.common import (
    NOT_EXECUTED,
    SAMPLING,
    TRANSFERRED,
    Attachment,
    FrameworkCall,
    FrameworkMember,
    answered_outside,
    attachments_of,
    hand_over_to,
    handoff_targets,
    outside_tools,
    schema_of,
    with_own_messages,
)
from proxy.members.adapters.external_calls import ExternalCalls
from proxy.members.adapters.pydantic_ai_run import PydanticAIRun, incomplete_answer, model_name
from proxy.members.port import Member, MemberContext, MemberEvent
from proxy.members.transcript import note_of_handoff
from proxy.messages import UserMessage, text_of


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of an agent."""
    return PydanticAIMember(found) if isinstance(found, AbstractAgent) else None


class PydanticAIMember(FrameworkMember):
    """An agent, which has no state, so that one object serves all turns."""

    parameters: ClassVar[Mapping[str, str]] = {**SAMPLING, "seed": "seed", "service_tier": "service_tier"}

    async def _events(self, context: MemberContext) -> AsyncGenerator[str | MemberEvent]:
        """Run the agent with the history of the conversation."""
        external = {tool.name for tool in outside_tools(context)}
        async with ExternalCalls(context) as outside:
            history = _history(context)
            deferred = await _deferred_results(history, context, outside)
            run = PydanticAIRun(external, model_name(self._found))
            async with self._agent_run(context, history, deferred, run.usage) as events:
                async for event in events:
                    for found in run.read(event):
                        if not await outside.take(found):
                            yield found
        new = run.result.new_messages()
        continues = deferred is not None
        if continues:
            new = [*chain.from_iterable(_stored(context.state)), *new]
        context.state = _dump(new, continues=continues)
        if isinstance(run.result.output, DeferredToolRequests):
            call = await _handoff(run.result.output, context)
            context.state = _dump(_closed(new, {call.tool_call_id: TRANSFERRED}), continues=continues)
            yield hand_over_to(handoff_targets(context)[call.tool_name], call.args_as_json_str())
            return
        if not run.has_text and not isinstance(run.result.output, str):
            yield to_json(run.result.output).decode()
        for event in incomplete_answer(new):
            yield event

    def _agent_run(
        self, context: MemberContext, history: list[ModelMessage], deferred: Any, usage: RunUsage
    ) -> Any:
        return self._found.run_stream_events(
            message_history=history if deferred is not None else _closed(history),
            deferred_tool_results=deferred,
            output_type=[self._found.output_type, DeferredToolRequests],
            toolsets=[_external_tools(context)],
            instructions=[text for text in (context.instructions, note_of_handoff(context)) if text],
            model_settings=self._settings(context) or None,
            deps=context if self._found.deps_type is MemberContext else None,
            capabilities=[ReinjectSystemPrompt()],
            usage=usage,
            # The limits of the team apply.
            usage_limits=UsageLimits(request_limit=None),
        )


async def _handoff(requests: DeferredToolRequests, context: MemberContext) -> ToolCallPart:
    """Return the call that hands over, if the calls with which the run ended are handoffs only.

    Otherwise the turn ends here with the other calls, and the next one continues from the stored state.
    """
    targets = handoff_targets(context)
    of_client = [_call(part) for part in requests.calls if part.tool_name not in targets]
    own = [_call(part) for part in requests.approvals]
    if own or of_client:
        # The request that answers them can have other tools.
        context.state["asking"] = [call.call_id for call in own]
        context.state["handoffs"] = [
            part.tool_call_id for part in requests.calls if part.tool_name in targets
        ]
        async with ExternalCalls(context) as outside:
            await outside.answers(own, of_client)
    return requests.calls[0]


async def _deferred_results(
    history: list[ModelMessage], context: MemberContext, outside: ExternalCalls
) -> DeferredToolResults | None:
    """Return the results of the calls with which the last run of this exchange ended; None if it begins."""
    state = context.state if isinstance(context.state, dict) else {}
    if not context.later_items or "asking" not in state or not (calls := _open_calls(history)):
        return None
    context.resume()
    asking, handoffs = set(state["asking"]), set(state["handoffs"])
    of_client = [_call(part) for part in calls if part.tool_call_id not in asking | handoffs]
    own = [_call(part) for part in calls if part.tool_call_id in asking]
    results: dict[str, str | None] = dict.fromkeys((part.tool_call_id for part in calls), NOT_EXECUTED)
    results |= await outside.answers(own, of_client)
    # Pydantic AI takes a refusal with a text as the result, which is also that of a call that was executed before.
    approvals = {
        call.call_id: True if results[call.call_id] is None else ToolDenied(str(results.pop(call.call_id)))
        for call in own
    }
    return DeferredToolResults(
        calls={call_id: result for call_id, result in results.items() if result is not None},
        approvals=approvals,
    )


# --- messages --------------------------------------------------------------------------------------------------


def _history(context: MemberContext) -> list[ModelMessage]:
    """Return the conversation, with the agent's own messages as Pydantic AI wrote them."""
    parts = with_own_messages(
        context, _stored, lambda message: [_of_user(message)], lambda _, text: [_of_agent(text)]
    )
    history: list[ModelMessage] = []
    for messages in parts:
        history = [*_closed(history), *messages]
    if context.later_items and context.state is not None:
        history = [*_closed(history), *chain.from_iterable(_stored(context.state))]
    for call, result in answered_outside(context):
        part = ToolCallPart(call.name, dict(call.arguments), tool_call_id=call.call_id)
        history += [
            ModelResponse(parts=[part]),
            ModelRequest(parts=[ToolReturnPart(call.name, result, tool_call_id=call.call_id)]),
        ]
    return history


def _of_user(message: UserMessage) -> ModelMessage:
    attachments = list(map(_attachment, attachments_of(message)))
    content: Any = [text_of(message), *attachments] if attachments else text_of(message)
    return ModelRequest(parts=[UserPromptPart(content)])


def _of_agent(text: str) -> ModelMessage:
    return ModelResponse(parts=[TextPart(text)])


def _stored(state: Any) -> list[list[ModelMessage]]:
    """Return the messages of a run as one part of the history."""
    messages = state["messages"] if isinstance(state, dict) else state
    return [ModelMessagesTypeAdapter.validate_python(messages)]


def _attachment(one: Attachment) -> Any:
    if one.kind == "image":
        return ImageUrl(one.url)
    content = one.content
    return BinaryContent(content, media_type=one.media_type) if content is not None else one.note


def _call(part: ToolCallPart) -> FrameworkCall:
    return FrameworkCall(part.tool_call_id, part.tool_name, part.args_as_dict())


def _open_calls(history: list[ModelMessage]) -> list[ToolCallPart]:
    """Return the calls of the last response without a result."""
    answered: set[str | None] = set()
    for message in reversed(history):
        if isinstance(message, ModelResponse):
            calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
            return [call for call in calls if call.tool_call_id not in answered]
        answered |= {
            part.tool_call_id for part in message.parts if isinstance(part, ToolReturnPart | RetryPromptPart)
        }
    return []


def _closed(history: list[ModelMessage], results: Mapping[str, str] | None = None) -> list[ModelMessage]:
    """Return the messages with a result for each call of the last response, by default ``NOT_EXECUTED``."""
    calls = _open_calls(history)
    if not calls:
        return history
    known = results or {}
    returns = [
        ToolReturnPart(
            call.tool_name, known.get(call.tool_call_id, NOT_EXECUTED), tool_call_id=call.tool_call_id
        )
        for call in calls
    ]
    if isinstance(last := history[-1], ModelRequest):
        return [*history[:-1], replace(last, parts=[*last.parts, *returns])]
    return [*history, ModelRequest(parts=returns)]


def _dump(messages: list[ModelMessage], *, continues: bool) -> Any:
    dumped = ModelMessagesTypeAdapter.dump_python(messages, mode="json")
    return {"messages": dumped, "continues": continues}


def _external_tools(context: MemberContext) -> Any:
    return ExternalToolset(
        [
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=schema_of(tool),
                strict=tool.strict,
            )
            for tool in outside_tools(context)
        ]
    )
