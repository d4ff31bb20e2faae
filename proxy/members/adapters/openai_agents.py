"""Agents of the OpenAI Agents SDK (https://openai.github.io/openai-agents-python).

The items of a run are stored with its answer, and are part of the input of the next run between the messages of other
agents. A run begins with the agent to which the SDK's own handoffs led; its tools are extended by the handoffs of the
team and the tools of the client, which end a run of the SDK.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any, ClassVar

from agents import Agent, FunctionTool, ModelSettings, RunConfig, RunContextWrapper, Runner, RunState

from proxy.members.adapters.answer_events import InnerAgents
from proxy.members.adapters.common import (
    NOT_EXECUTED,
    SAMPLING,
    TRANSFERRED,
    FrameworkCall,
    FrameworkMember,
    arguments_of,
    hand_over_to,
    handoff_targets,
    json_text,
    outside_tools,
    schema_of,
)
from proxy.members.adapters.external_calls import ExternalCalls
from proxy.members.adapters.openai_agents_items import ends_with_text, form_of, input_of
from proxy.members.port import Member, MemberContext, MemberEvent, ModelUsed, Reasoning, ToolBegan, ToolEnded
from proxy.messages import FunctionTool as ToolSpec
from proxy.messages import Usage


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of an agent."""
    return OpenAIAgentsMember(found) if isinstance(found, Agent) else None


class OpenAIAgentsMember(FrameworkMember):
    """An agent and those that it can reach; they have no state, so that one object serves all turns."""

    parameters: ClassVar[Mapping[str, str]] = {**SAMPLING, "verbosity": "verbosity"}

    def _known(self, context: MemberContext) -> Collection[str]:
        return [*self.parameters, "response_format"] if form_of(context) is not None else self.parameters

    async def _events(self, context: MemberContext) -> AsyncGenerator[str | MemberEvent]:
        """Run the agent that was active last with the conversation as input, or resume its interrupted run."""
        external = _External(context, _stored_run(context))
        given = input_of(context)
        active = self._active(context)
        agent = external.extended(active, form_of(context))
        events = _Events(external.names, self._found.name, active.name)
        async with ExternalCalls(context) as outside:
            interrupted = await _restored(context, agent, given, external, outside)
            run = Runner.run_streamed(
                agent,
                given if interrupted is None else interrupted,
                # The context of an interrupted run is part of its state.
                context=context if interrupted is None else None,
                # The limits of the team apply. That of the SDK is 10 model calls, and an error.
                max_turns=None,
                # Traces are sent to OpenAI, with the content of the conversation.
                run_config=RunConfig(
                    model_settings=ModelSettings(**self._settings(context), include_usage=True),
                    tracing_disabled=True,
                ),
            )
            try:
                async for event in run.stream_events():
                    for found in events.read(event):
                        if not await outside.take(found):
                            yield found
            finally:
                run.cancel()
        new = run.to_input_list()[len(run.input) if isinstance(run.input, list) else 1 :]
        # The items of a resumed run are those of all its turns.
        context.state = {"agent": run.last_agent.name, "items": new, "continues": interrupted is not None}
        if run.interruptions:
            async for event in _interrupted(run, given, context):
                yield event
        elif not ends_with_text(new):
            yield json_text(run.final_output)

    def _active(self, context: MemberContext) -> Any:
        wanted = context.state["agent"] if isinstance(context.state, dict) else self._found.name
        seen, waiting = [], [self._found]
        while waiting:
            agent = waiting.pop()
            if agent.name == wanted:
                return agent
            if agent not in seen:
                seen.append(agent)
                waiting += [one for one in agent.handoffs if isinstance(one, Agent)]
        return self._found


class _External:
    """The tools that interrupt a run: handoffs of the team, and tools of the client, whose results resume it."""

    def __init__(self, context: MemberContext, stored: Any) -> None:
        specs = {spec.name: spec for spec in outside_tools(context)}
        # The request that answers calls can have other tools.
        missing = [] if stored is None else [*stored["client_tools"], *stored["handoffs"]]
        specs = {name: ToolSpec(name) for name in missing} | specs
        self._specs = list(specs.values())
        self.names = set(specs)
        self.results: dict[str, str] = {}
        """Results by call id."""

    def extended(self, agent: Any, form: Any) -> Any:
        """Return a copy of the agent with these tools."""
        changes: dict[str, Any] = {"tools": [*agent.tools, *map(self._tool, self._specs)]}
        if form is not None and agent.output_type is None:
            changes["output_type"] = form
        return agent.clone(**changes)

    def _tool(self, spec: ToolSpec) -> Any:
        async def call(context: Any, arguments: str) -> str:
            return self.results.get(context.tool_call_id, NOT_EXECUTED)

        return FunctionTool(
            spec.name,
            spec.description or "",
            schema_of(spec),
            call,
            strict_json_schema=False,
            needs_approval=True,
        )


# --- interruptions ---------------------------------------------------------------------------------------------


async def _interrupted(run: Any, given: list[Any], context: MemberContext) -> AsyncGenerator[MemberEvent]:
    """End the turn with the calls that interrupted the run."""
    targets = handoff_targets(context)
    names = {spec.name for spec in outside_tools(context)}
    own, of_client, of_handoffs = _sorted(run.interruptions, names, targets)
    if own or of_client:
        state = run.to_state().to_json(context_serializer=lambda _: {})
        if state["original_input"] == given:
            # The conversation is the input of the resumed run too. Its images would not fit into the state.
            del state["original_input"]
        context.state["run"] = {
            "state": state,
            "client_tools": [call.name for call in of_client],
            "handoffs": [call.name for call in of_handoffs],
        }
        async with ExternalCalls(context) as outside:
            await outside.answers(own, of_client)
    call = of_handoffs[0]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": TRANSFERRED}
    context.state["items"].append(output)
    yield hand_over_to(targets[call.name], json_text(call.arguments))


async def _restored(
    context: MemberContext, agent: Any, given: list[Any], external: _External, outside: ExternalCalls
) -> Any:
    """Return the interrupted run of this exchange with the answers to its calls; None if a new one begins."""
    stored = _stored_run(context)
    if stored is None:
        return None
    context.resume()
    state = await RunState.from_json(
        agent, {"original_input": given, **stored["state"]}, context_override=RunContextWrapper(context)
    )
    interruptions = state.get_interruptions()
    names = {*stored["client_tools"], *stored["handoffs"]}
    own, of_client, of_handoffs = _sorted(interruptions, names, stored["handoffs"])
    answers = await outside.answers(own, of_client)
    answers |= {call.call_id: NOT_EXECUTED for call in of_handoffs}
    external.results |= {call.call_id: str(answers[call.call_id]) for call in (*of_client, *of_handoffs)}
    of_team = {call.call_id for call in own}
    for interruption in interruptions:
        result = answers[_id_of(interruption)]
        if result is not None and _id_of(interruption) in of_team:
            state.reject(interruption, rejection_message=result)
        else:
            state.approve(interruption)
    return state


def _stored_run(context: MemberContext) -> Any:
    """Return what is stored of the interrupted run of this exchange; None if there is none."""
    state = context.state if isinstance(context.state, dict) and context.later_items else {}
    return state.get("run")


def _sorted(
    interruptions: list[Any], outside: Collection[str], handoffs: Collection[str]
) -> tuple[list[FrameworkCall], list[FrameworkCall], list[FrameworkCall]]:
    """Return the calls of the agent's own tools, of tools of the client, and of handoffs of the team."""
    calls = [
        FrameworkCall(_id_of(one), one.name or "tool", arguments_of(one.arguments)) for one in interruptions
    ]
    return (
        [call for call in calls if call.name not in outside],
        [call for call in calls if call.name in outside and call.name not in handoffs],
        [call for call in calls if call.name in handoffs],
    )


def _id_of(interruption: Any) -> str:
    return interruption.call_id or ""


# --- the run ---------------------------------------------------------------------------------------------------


class _Events:
    """Converts the events of a run that begins with ``active``; ``root`` is the agent of the team file."""

    def __init__(self, external: Collection[str], root: str, active: str) -> None:
        self._external = external
        self._root = root
        self._agents = InnerAgents(root)
        self._active = active

    def read(self, event: Any) -> list[str | MemberEvent]:
        """Return the events of an event."""
        if event.type == "raw_response_event":
            found = _deltas(event.data)
            has_text = any(isinstance(one, str) for one in found)
            return [*(self._agents.write(self._active) if has_text else ()), *found]
        if event.type != "run_item_stream_event":
            return []
        item, raw = event.item, event.item.raw_item
        match event.name:
            case "tool_called" if _member_of(raw, "name") not in self._external:
                agent = item.agent.name if item.agent.name != self._root else ""
                arguments = _member_of(raw, "arguments") or "{}"
                # Tools of the provider, such as a web search, have a type instead of a name.
                name = _member_of(raw, "name") or _member_of(raw, "type") or "tool"
                return [ToolBegan(_call_id_of(raw), name, json_text(arguments), agent)]
            case "tool_output":
                return [ToolEnded(_call_id_of(raw), str(item.output))]
            case "handoff_occured":
                self._active = item.target_agent.name
                return [*self._agents.hand_over(item.source_agent.name, self._active)]
            case _:
                return []


def _member_of(raw: Any, name: str) -> Any:
    return raw.get(name) if isinstance(raw, dict) else getattr(raw, name, None)


def _call_id_of(raw: Any) -> str:
    return _member_of(raw, "call_id") or _member_of(raw, "id") or ""


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
