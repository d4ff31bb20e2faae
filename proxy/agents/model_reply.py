"""One model call of an agent: build the request, emit the deltas of the reply, and collect the reply."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.call import Call, CallKind, new_call_id
from proxy.agents.compaction.compactor import CallSize, exceeded, reported_size
from proxy.agents.compaction.context_view import ContextView
from proxy.agents.compaction.history import history_of
from proxy.agents.compaction.size import message_tokens, text_tokens, tools_tokens
from proxy.agents.prompt import messages_for, provider_states, text_states
from proxy.agents.spans import model_span, record_reply, record_request
from proxy.agents.turn_state import TurnState
from proxy.errors import ContextLengthExceeded
from proxy.events import (
    ClientToolArguments,
    ClientToolCall,
    Event,
    ModelCalled,
    ParametersIgnored,
    ReasoningDelta,
    RefusalDelta,
    TextBatch,
    TextDelta,
)
from proxy.messages import (
    FinishReason,
    FunctionTool,
    NamedToolChoice,
    Parameters,
    ProviderState,
    ToolChoice,
    Usage,
)
from proxy.providers.model import (
    NO_STATES,
    Finished,
    ModelDelta,
    ModelRequest,
    RemoteEvent,
    ToolCallPiece,
    UsagePiece,
    forward_of,
    with_joined_text,
)
from proxy.tracing import TraceSpan
from proxy.turns.text_relay import TextRelay
from proxy.turns.turn import Turn

_NO_PARAMETERS = Parameters()
_OF_EACH_REQUEST = frozenset(("messages.name",))
"""Names of participants are always the caller's."""


@dataclass(slots=True)
class ModelReply:
    """The reply of a model, in pieces."""

    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    provider_state: ProviderState | None = None
    tokens: int | None = None
    """Size of the context after the reply, if it is known and not small."""


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


async def call_model(agent: Agent, state: TurnState, own_tools: Sequence[FunctionTool]) -> ModelReply:
    """Call the agent's model once: emit the deltas of its reply, and return the reply.

    ``own_tools`` are the tools and delegates that the agent may call, without the client tools. If the provider rejects
    the context as too long, it is shortened and the call repeated once.

    Raises:
        UpstreamFailed: The model call failed.
    """
    # Counted before other delegates of the turn check the limit.
    state.add_model_call()
    await state.sink.attended()
    client_tools = _client_tools(agent, state)
    compactor = state.compactor
    if compactor is None:
        history = history_of(agent.name, state.turn.context, state.turn.items)
        view = ContextView(history.context, history.own)
        return await _traced(agent, state, _request(agent, state, view, own_tools, client_tools))
    measure = partial(call_size, agent, state.turn, own_tools, client_tools)
    view = await compactor.fit(agent, state, measure)
    try:
        request = _request(agent, state, view, own_tools, client_tools)
        return await _traced(agent, state, request, may_repeat=True)
    except ContextTooLong as rejected:
        size = measure()
        view = await compactor.after_overflow(agent, state, size, rejected.failure)
    try:
        return await _traced(agent, state, _request(agent, state, view, own_tools, client_tools))
    except ContextLengthExceeded as failure:
        agent.window.learn(failure, estimate=compactor.size_of(view, size))
        raise exceeded(failure) from None


class ContextTooLong(Exception):
    """The provider rejected the context before the reply began."""

    def __init__(self, failure: ContextLengthExceeded) -> None:
        super().__init__()
        self.failure = failure


async def _traced(
    agent: Agent, state: TurnState, request: ModelRequest, *, may_repeat: bool = False
) -> ModelReply:
    """Call the model with a request, in a separate span.

    Raises:
        ContextTooLong: ``may_repeat`` is set, and the context does not fit.
    """
    with model_span(agent, state) as traced:
        record_request(traced, request)
        return await _stream_reply(agent, state, request, traced, may_repeat=may_repeat)


async def _stream_reply(
    agent: Agent, state: TurnState, request: ModelRequest, traced: TraceSpan, *, may_repeat: bool
) -> ModelReply:
    reply = ModelReply()
    # Text next to a tool call would make a structured answer invalid JSON: hold it until the reply is complete.
    held: list[TextDelta] | None = [] if state.turn.response_format is not None and request.tools else None
    call = _ModelCall(agent.model.name)
    receiver = _ReplyReceiver(agent, state, reply, held, call, traced)
    try:
        async with agent.model.stream(request) as batches:
            forward = forward_of(batches)
            async for batch in batches:
                if not receiver.take(batch):
                    await state.sink.drain()
                # Not held while the next ones are waited for.
                del batch
                while forward is not None and not await forward(receiver.take, receiver.open_relay):
                    await state.sink.drain()
    except ContextLengthExceeded as failure:
        call.is_repeated = may_repeat and not call.has_begun
        if call.is_repeated:
            raise ContextTooLong(failure) from None
        raise
    finally:
        if not call.is_repeated:
            state.add_tokens(call.usage.completion if call.usage else 0)
            seconds = time.monotonic() - call.began
            state.sink.emit(ModelCalled(agent.name, call.name, call.usage, seconds, call.cost))
    if call.usage is not None:
        # Reasoning is not part of the next request.
        reply.tokens = reported_size(agent, call.usage.total - call.usage.reasoning)
    if held is not None and reply.calls:
        reply.text.clear()
    for text in held or ():
        if not reply.calls:
            state.turn.draft.append(text.text)
            state.sink.emit(text)
    return reply


@dataclass(slots=True)
class _ModelCall:
    """The facts of a call that its event reports."""

    name: str
    usage: Usage | None = None
    cost: float | None = None
    began: float = field(default_factory=time.monotonic)
    has_begun: bool = False
    is_repeated: bool = False


class _ReplyReceiver:
    """Adds the deltas of a model to the reply, and emits their events."""

    def __init__(
        self,
        agent: Agent,
        state: TurnState,
        reply: ModelReply,
        held: list[TextDelta] | None,
        call: _ModelCall,
        traced: TraceSpan,
    ) -> None:
        """``held`` gets the text that is not emitted; None to emit all of it."""
        self._agent = agent
        self._state = state
        self._reply = reply
        self._held = held
        self._call = call
        self._traced = traced
        self._is_streamed = state.turn.is_streamed
        self._emit_batch = state.sink.emit_batch
        self._client_names: Collection[str] | None = None

    def take(self, batch: Sequence[ModelDelta]) -> bool:
        """Process one batch; return False if ``drain`` of the sink would wait."""
        self._call.has_begun = True
        reply, draft = self._reply, self._state.turn.draft
        if type(batch) is TextBatch and self._held is None and self._is_streamed:
            reply.text += batch.texts
            draft += batch.texts
            return self._emit_batch(batch)
        events: list[Event] = []
        for delta in batch if self._is_streamed else with_joined_text(batch):
            if type(delta) is TextDelta:
                reply.text.append(delta.text)
                if self._held is None:
                    draft.append(delta.text)
                    events.append(delta)
                else:
                    self._held.append(delta)
            else:
                self._take_other(delta, events)
        return self._emit_batch(events)

    def open_relay(self) -> TextRelay | None:
        """Return a relay of the sink for text that is emitted as it arrives."""
        if self._held is not None or not self._is_streamed:
            return None
        relay = self._state.sink.open_relay()
        if relay is not None:
            relay.add_record(self._record)
        return relay

    def _record(self, texts: Sequence[str], times: Sequence[float]) -> None:
        self._reply.text += texts
        self._state.turn.draft += texts

    def _take_other(self, delta: ModelDelta, events: list[Event]) -> None:
        reply, call = self._reply, self._call
        match delta:
            case ToolCallPiece():
                if self._client_names is None:
                    self._client_names = {tool.name for tool in _client_tools(self._agent, self._state)}
                _add_call_piece(self._agent, self._state, reply, delta, self._client_names, events)
            case RefusalDelta():
                reply.refusal.append(delta.text)
                events.append(delta)
            case ReasoningDelta() | ParametersIgnored():
                events.append(delta)
            case UsagePiece():
                call.usage = delta.usage
            case Finished():
                reply.finish_reason = delta.reason
                call.usage, call.cost = delta.usage, delta.cost
                reply.provider_state = delta.state
                call.name = delta.model or call.name
                record_reply(self._traced, delta, reply.text, reply.calls)
            case TextDelta() | RemoteEvent():
                pass


def call_size(
    agent: Agent, turn: Turn, own_tools: Sequence[FunctionTool], client_tools: Sequence[FunctionTool]
) -> CallSize:
    """Return the size of instructions and tools, and what the answer may need."""
    parameters = _merged(agent.parameters, turn.parameters, has_tools=False)
    fixed = tools_tokens((*own_tools, *client_tools)) + text_tokens(agent.instructions)
    fixed += sum(map(message_tokens, turn.overlay))
    return CallSize(fixed, parameters.max_completion_tokens or parameters.max_tokens or 0)


def _add_call_piece(
    agent: Agent,
    state: TurnState,
    reply: ModelReply,
    piece: ToolCallPiece,
    client_names: Collection[str],
    events: list[Event],
) -> None:
    if piece.index == len(reply.calls):
        name = piece.name or ""
        kind = _kind(agent, state, name, client_names)
        if kind == "client" and not state.turn.parallel_tool_calls and _has_client_call(reply):
            kind = "surplus"
        call = Call(new_call_id(), name, kind)
        reply.calls.append(call)
        if kind == "client":
            call.client_index = state.client_calls
            state.client_calls += 1
            events.append(ClientToolCall(call.client_index, call.id, name))
    call = reply.calls[piece.index]
    if piece.arguments:
        call.arguments.append(piece.arguments)
        if call.kind == "client":
            events.append(ClientToolArguments(call.client_index, piece.arguments))


def _kind(agent: Agent, state: TurnState, name: str, client_names: Collection[str]) -> CallKind:
    if name in agent.delegations and state.can_delegate:
        return "server"
    if name in agent.tools:
        return "approval" if name in agent.approvals else "server"
    if name in agent.handoff_targets and state.handoffs < state.limits.max_handoffs:
        return "handoff"
    return "client" if name in client_names else "unknown"


def _has_client_call(reply: ModelReply) -> bool:
    return any(call.kind == "client" for call in reply.calls)


def _client_tools(agent: Agent, state: TurnState) -> Sequence[FunctionTool]:
    if not state.turn.client_tools or state.turn.tool_choice == "none":
        return ()
    return visible_client_tools(agent, state.turn.client_tools, state.max_client_tools)


def _request(
    agent: Agent,
    state: TurnState,
    view: ContextView,
    own_tools: Sequence[FunctionTool],
    client_tools: Sequence[FunctionTool],
) -> ModelRequest:
    turn = state.turn
    tools = (*own_tools, *client_tools)
    with_state = [item for item in view.items if item.state is not None]
    cacheable = None
    if state.cacheable_prompt is not None:
        seen = () if turn.tool_choice == "none" else _seen_by_any(state)
        cacheable = state.cacheable_prompt.layout(agent, turn, view, seen)
    request = ModelRequest(
        messages=messages_for(agent.instructions, turn.overlay, view.earlier, view.own),
        tools=tools,
        tool_choice=_tool_choice(turn.tool_choice, client_tools),
        parallel_tool_calls=False if tools and not turn.parallel_tool_calls else None,
        parameters=_merged(agent.parameters, turn.parameters, has_tools=bool(tools)),
        team=state.team,
        agent=agent.name,
        states=provider_states(with_state) if with_state else NO_STATES,
        text_states=text_states(with_state) if with_state else NO_STATES,
        requested=_requested(turn),
        is_strict=turn.is_strict,
        cacheable=cacheable,
    )
    state.client_state_model = state.client_state_model or agent.model
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


def _tool_choice(requested: ToolChoice | None, client_tools: Sequence[FunctionTool]) -> ToolChoice | None:
    """Return the caller's ``tool_choice``, which applies to client tools only; None if the agent does not see them."""
    if requested is None:
        return None
    if requested == "required" and client_tools:
        return requested
    if isinstance(requested, NamedToolChoice) and any(tool.name == requested.name for tool in client_tools):
        return requested
    return None


def _requested(turn: Turn) -> frozenset[str]:
    """Return the names of the parameters that the caller set."""
    chooses = turn.tool_choice not in (None, "auto", "none")
    if turn.parameters == _NO_PARAMETERS and not chooses:
        return _OF_EACH_REQUEST
    names = list(msgspec.to_builtins(turn.parameters))
    if chooses:
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
