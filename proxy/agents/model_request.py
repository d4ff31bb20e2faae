"""The request of a model call: the messages, tools and parameters that an agent's model gets in a turn."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.compaction.compactor import CallSize
from proxy.agents.compaction.context_view import ContextView
from proxy.agents.compaction.size import message_tokens, text_tokens, tools_tokens
from proxy.agents.prompt import messages_for, provider_states, text_states
from proxy.agents.turn_state import TurnState
from proxy.messages import FunctionTool, NamedToolChoice, Parameters, ToolChoice
from proxy.providers.model import NO_STATES, ModelRequest
from proxy.turns.plain_items import PlainItems
from proxy.turns.turn import Turn

_NO_PARAMETERS = Parameters()
_OF_EACH_REQUEST = frozenset(("messages.name",))
"""Names of participants are always the caller's."""


def visible_client_tools(
    agent: Agent, client_tools: Sequence[FunctionTool], max_client_tools: int
) -> Sequence[FunctionTool]:
    """Return the client tools passed to this agent's model.

    With ``client_tools: auto``, none if the request has more than ``max_client_tools``.
    """
    policy = agent.client_tools
    if policy == "ignore" or (policy == "auto" and len(client_tools) > max_client_tools):
        return ()
    if policy in ("pass", "auto"):
        return client_tools
    return [tool for tool in client_tools if tool.name in policy]


def client_tools_of(agent: Agent, state: TurnState) -> Sequence[FunctionTool]:
    """Return the client tools passed to the model in this turn; none with ``tool_choice: none``."""
    if not state.turn.client_tools or state.turn.tool_choice == "none":
        return ()
    return visible_client_tools(agent, state.turn.client_tools, state.max_client_tools)


def call_size(
    agent: Agent, turn: Turn, own_tools: Sequence[FunctionTool], client_tools: Sequence[FunctionTool]
) -> CallSize:
    """Return the size of instructions and tools, and what the answer may need."""
    parameters = _merged(agent.parameters, turn.parameters, has_tools=False)
    fixed = tools_tokens((*own_tools, *client_tools)) + text_tokens(agent.instructions)
    fixed += sum(map(message_tokens, turn.overlay))
    return CallSize(fixed, parameters.max_completion_tokens or parameters.max_tokens or 0)


def build_request(
    agent: Agent,
    state: TurnState,
    view: ContextView,
    own_tools: Sequence[FunctionTool],
    client_tools: Sequence[FunctionTool],
) -> ModelRequest:
    """Return the request for the next call of the agent's model; see ``call_model`` for ``own_tools``."""
    turn = state.turn
    tools = (*own_tools, *client_tools)
    # ``PlainItems`` have no state.
    items = view.own if type(view.earlier) is PlainItems else view.items
    with_state = [item for item in items if item.state is not None] if items else ()
    choice, parameters, requested = turn.tool_choice, agent.parameters, _OF_EACH_REQUEST
    if choice is not None or turn.parameters != _NO_PARAMETERS:
        parameters = _merged(parameters, turn.parameters, has_tools=bool(tools))
        requested = _requested(turn)
    cacheable = None
    if state.cacheable_prompt is not None:
        seen = () if choice == "none" else _seen_by_any(state)
        cacheable = state.cacheable_prompt.layout(agent, turn, view, seen)
    request = ModelRequest(
        messages=messages_for(agent.instructions, turn.overlay, view.earlier, view.own),
        tools=tools,
        tool_choice=None if choice is None else _tool_choice(choice, client_tools),
        parallel_tool_calls=False if tools and not turn.parallel_tool_calls else None,
        parameters=parameters,
        team=state.team,
        agent=agent.name,
        states=provider_states(with_state) if with_state else NO_STATES,
        text_states=text_states(with_state) if with_state else NO_STATES,
        requested=requested,
        is_strict=turn.is_strict,
        cacheable=cacheable,
    )
    if state.client_state_model is None:
        state.client_state_model = agent.model
    # What the client sent belongs to the model that it knows, and not to that of an agent that is handed off to.
    return request if agent.model is state.client_state_model else request.without_client_state()


def _seen_by_any(state: TurnState) -> Sequence[FunctionTool]:
    """Return the client tools that at least one agent of the team sees."""
    assert state.cacheable_prompt is not None
    tools = state.turn.client_tools
    agents = state.cacheable_prompt.agents.values()
    names = {
        tool.name for agent in agents for tool in visible_client_tools(agent, tools, state.max_client_tools)
    }
    return [tool for tool in tools if tool.name in names]


def _tool_choice(requested: ToolChoice, client_tools: Sequence[FunctionTool]) -> ToolChoice | None:
    """Return the caller's ``tool_choice``, which applies to client tools only; None if the agent does not see them."""
    if requested == "required" and client_tools:
        return requested
    if isinstance(requested, NamedToolChoice) and any(tool.name == requested.name for tool in client_tools):
        return requested
    return None


def _requested(turn: Turn) -> frozenset[str]:
    """Return the names of the parameters that the caller set."""
    names = list(msgspec.to_builtins(turn.parameters))
    if turn.tool_choice not in (None, "auto", "none"):
        names.append("tool_choice")
    return _OF_EACH_REQUEST.union(names)


def _merged(own: Parameters, requested: Parameters, *, has_tools: bool) -> Parameters:
    """Return the agent's parameters, overridden by those of the request."""
    if requested.prediction is not None and has_tools:
        # OpenAI rejects a prediction together with tools (predicted outputs guide, limitations).
        requested = msgspec.structs.replace(requested, prediction=None)
    if requested == _NO_PARAMETERS:
        return own
    if own == _NO_PARAMETERS:
        return requested
    changes = {
        name: value for name in requested.__struct_fields__ if (value := getattr(requested, name)) is not None
    }
    return msgspec.structs.replace(own, **changes)
