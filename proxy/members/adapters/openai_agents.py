"""Agents of the OpenAI Agents SDK (https://openai.github.io/openai-agents-python).

The items of a run are stored with its answer, and are part of the input of the next run between the messages of other
agents. A run begins with the agent to which the SDK's own handoffs led; its tools are extended by the handoffs of the
team and the tools of the client, which end a run of the SDK.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from agents import (
    Agent,
    AgentOutputSchemaBase,
    FunctionTool,
    ModelSettings,
    RunConfig,
    Runner,
    ToolsToFinalOutputResult,
)

from proxy.errors import MemberFailed
from proxy.members.adapters.common import NOT_EXECUTED, answered_calls, hand_over_to, unused_parameters
from proxy.members.port import (
    HandOver,
    Member,
    MemberContext,
    MemberEvent,
    ModelUsed,
    Reasoning,
    ToolBegan,
    ToolEnded,
)
from proxy.members.transcript import note_of_handoff
from proxy.messages import AssistantMessage, ImagePart, Item, Message, Usage, UserMessage, text_of
from proxy.messages import FunctionTool as ToolSpec

logger = logging.getLogger(__name__)

_SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "verbosity": "verbosity",
}


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of an agent."""
    return OpenAIAgentsMember(found) if isinstance(found, Agent) else None


class OpenAIAgentsMember:
    """An agent and those that it can reach; they have no state, so that one object serves all turns."""

    has_effects = True

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Run the agent that was active last with the conversation as input."""
        form = _form_of(context)
        known = {*_SETTINGS, "response_format"} if form is not None else _SETTINGS
        unused = unused_parameters(context.parameters, known)
        if unused is not None:
            yield unused
        external = _External(context)
        given = _input(context)
        active = self._active(context)
        run = Runner.run_streamed(
            external.extended(active, form),
            given,
            context=context,
            # Traces are sent to OpenAI, with the content of the conversation.
            run_config=RunConfig(model_settings=_settings(context), tracing_disabled=True),
        )
        try:
            async for event in run.stream_events():
                for found in _events(event, external, self._agent.name):
                    yield found
        finally:
            run.cancel()
        if run.interruptions:
            logger.warning("approvals of the SDK are not supported", extra={"agent": context.agent})
            raise MemberFailed(context.agent)
        new = run.to_input_list()[len(given) :]
        context.state = {"agent": run.last_agent.name, "items": _without_results(new, external.of_client)}
        if external.of_client:
            await asyncio.gather(
                *(context.call_tool(call.name, call.arguments) for call in external.of_client)
            )
        elif external.hand_over is not None:
            yield external.hand_over
        elif not isinstance(run.final_output, str) and not _has_text(new):
            yield msgspec.json.encode(run.final_output, enc_hook=_plain).decode()

    async def close(self) -> None:
        """Nothing is held."""

    def _active(self, context: MemberContext) -> Any:
        wanted = context.state["agent"] if isinstance(context.state, dict) else self._agent.name
        seen, waiting = [], [self._agent]
        while waiting:
            agent = waiting.pop()
            if agent.name == wanted:
                return agent
            if agent not in seen:
                seen.append(agent)
                waiting += [one for one in agent.handoffs if isinstance(one, Agent)]
        return self._agent


@dataclass(slots=True)
class _Call:
    call_id: str
    name: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class _External:
    """The tools that end a run: handoffs of the team, and tools of the client."""

    context: MemberContext
    hand_over: HandOver | None = None
    of_client: list[_Call] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        specs = (*self.context.tools, *(tool for tool, _ in self.context.handoff_tools))
        return {tool.name for tool in specs}

    def extended(self, agent: Any, form: Any) -> Any:
        """Return a copy of the agent with these tools."""
        tools = [self._of_client(spec) for spec in self.context.tools]
        tools += [self._handoff(spec, target) for spec, target in self.context.handoff_tools]
        changes: dict[str, Any] = {"tools": [*agent.tools, *tools]}
        if tools:
            changes["tool_use_behavior"] = self._behavior(agent.tool_use_behavior)
        if form is not None and agent.output_type is None:
            changes["output_type"] = form
        return agent.clone(**changes)

    def _behavior(self, original: Any) -> Any:
        names = self.names

        async def behavior(context: Any, results: Any) -> Any:
            if any(one.tool.name in names for one in results) or original == "stop_on_first_tool":
                return ToolsToFinalOutputResult(is_final_output=True, final_output="")
            if isinstance(original, dict):
                stops = [one for one in results if one.tool.name in original["stop_at_tool_names"]]
                return ToolsToFinalOutputResult(bool(stops), stops[0].output if stops else None)
            if callable(original):
                found = original(context, results)
                return await found if inspect.isawaitable(found) else found
            return ToolsToFinalOutputResult(is_final_output=False)

        return behavior

    def _of_client(self, spec: ToolSpec) -> Any:
        async def call(context: Any, arguments: str) -> str:
            self.of_client.append(_Call(context.tool_call_id, spec.name, _arguments(arguments)))
            return NOT_EXECUTED

        return _tool(spec, call)

    def _handoff(self, spec: ToolSpec, target: str) -> Any:
        async def call(context: Any, arguments: str) -> str:
            self.hand_over = self.hand_over or hand_over_to(target, arguments)
            return "transferred"

        return _tool(spec, call)


def _tool(spec: ToolSpec, call: Any) -> Any:
    schema = spec.parameters or {"type": "object", "properties": {}}
    return FunctionTool(spec.name, spec.description or "", schema, call, strict_json_schema=False)


class _Form(AgentOutputSchemaBase):  # type: ignore[misc]
    """The JSON schema of ``response_format`` as the output type of an agent."""

    def __init__(self, schema: dict[str, Any], *, is_strict: bool) -> None:
        self._schema = schema
        self._is_strict = is_strict

    def is_plain_text(self) -> bool:
        return False

    def name(self) -> str:
        return "response"

    def json_schema(self) -> dict[str, Any]:
        return self._schema

    def is_strict_json_schema(self) -> bool:
        return self._is_strict

    def validate_json(self, json_str: str) -> Any:
        # The proxy checks the answer.
        return json_str


def _form_of(context: MemberContext) -> Any:
    form = context.parameters.response_format or {}
    schema = form.get("json_schema") or {}
    if form.get("type") != "json_schema" or not isinstance(schema.get("schema"), dict):
        return None
    return _Form(schema["schema"], is_strict=bool(schema.get("strict")))


# --- items -----------------------------------------------------------------------------------------------------


def _input(context: MemberContext) -> list[Any]:
    system = "\n\n".join(filter(None, (context.instructions, note_of_handoff(context))))
    items: list[Any] = [{"role": "system", "content": system}] if system else []
    for item in context.items:
        own = context.state_of(item)
        if own is not None:
            items += own["items"]
        elif (message := _message(item)) is not None:
            items.append(message)
    for item in context.later_items:
        if (own := context.state_of(item)) is not None:
            items += own["items"]
    return _closed(items, context)


def _message(item: Item) -> Any:
    message = item.message
    if isinstance(message, UserMessage):
        return {"role": "user", "content": _content(message)}
    if isinstance(message, AssistantMessage) and item.visible and (text := text_of(message)):
        return {"role": "assistant", "content": text}
    return None


def _content(message: UserMessage) -> Any:
    if not isinstance(message.content, list):
        return text_of(message)
    images = [
        {"type": "input_image", "image_url": part.image_url.url, "detail": part.image_url.detail or "auto"}
        for part in message.content
        if isinstance(part, ImagePart)
    ]
    return [{"type": "input_text", "text": text_of(message)}, *images]


def _closed(items: list[Any], context: MemberContext) -> list[Any]:
    """Return the items with a result behind each call of a client's tool."""
    answered = {item["call_id"] for item in items if item.get("type") == "function_call_output"}
    calls = [item for item in items if item.get("type") == "function_call"]
    of_open = [
        (one["call_id"], one["name"], _arguments(one["arguments"]))
        for one in calls
        if one["call_id"] not in answered
    ]
    results = answered_calls(of_open, context.answers())
    closed: list[Any] = []
    for item in items:
        closed.append(item)
        if item.get("type") == "function_call" and item["call_id"] not in answered:
            output = results.get(item["call_id"], NOT_EXECUTED)
            closed.append({"type": "function_call_output", "call_id": item["call_id"], "output": output})
    return closed


def _without_results(items: list[Any], calls: Sequence[_Call]) -> list[Any]:
    ids = {call.call_id for call in calls}
    return [
        item
        for item in items
        if not (item.get("type") == "function_call_output" and item.get("call_id") in ids)
    ]


def _has_text(items: list[Any]) -> bool:
    return any(item.get("type") == "message" and item.get("role") == "assistant" for item in items)


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else str(value)


# --- the run ---------------------------------------------------------------------------------------------------


def _settings(context: MemberContext) -> Any:
    settings: dict[str, Any] = {}
    for name, theirs in _SETTINGS.items():
        value = getattr(context.parameters, name)
        if value is not None:
            settings[theirs] = value
    return ModelSettings(**settings, include_usage=True)


def _events(event: Any, external: _External, root: str) -> list[str | MemberEvent]:
    if event.type == "raw_response_event":
        return _deltas(event.data)
    if event.type != "run_item_stream_event":
        return []
    item, raw = event.item, event.item.raw_item
    match event.name:
        case "tool_called" if _member_of(raw, "name") not in external.names:
            agent = item.agent.name if item.agent.name != root else ""
            arguments = _member_of(raw, "arguments") or "{}"
            return [
                ToolBegan(_member_of(raw, "call_id"), _member_of(raw, "name") or "tool", arguments, agent)
            ]
        case "tool_output":
            return [ToolEnded(_member_of(raw, "call_id"), str(item.output))]
        case "handoff_occured":
            return [Reasoning(f"{item.source_agent.name} hands over to {item.target_agent.name}\n")]
        case _:
            return []


def _member_of(raw: Any, name: str) -> Any:
    return raw.get(name) if isinstance(raw, dict) else getattr(raw, name, None)


def _deltas(data: Any) -> list[str | MemberEvent]:
    match data.type:
        case "response.output_text.delta" | "response.refusal.delta":
            return [data.delta]
        case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
            return [Reasoning(data.delta)]
        case "response.completed" if data.response.usage is not None:
            usage = data.response.usage
            details = usage.input_tokens_details
            cached = details.cached_tokens if details is not None else 0
            return [
                ModelUsed(
                    data.response.model or "openai-agents",
                    Usage(prompt=usage.input_tokens, completion=usage.output_tokens, cached=cached or 0),
                )
            ]
        case _:
            return []
