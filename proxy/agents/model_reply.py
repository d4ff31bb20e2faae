"""One model call of an agent: emit the deltas of the reply, and collect the reply."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Collection, Sequence

from msgspec import Struct, field

from proxy.agents.agent import Agent
from proxy.agents.call import Call, CallKind, new_call_id
from proxy.agents.compaction.compactor import exceeded, reported_size
from proxy.agents.compaction.context_view import ContextView
from proxy.agents.compaction.history import history_of
from proxy.agents.model_request import build_request, call_size, client_tools_of
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
    ProviderState,
    Usage,
)
from proxy.providers.model import (
    Finished,
    ModelDelta,
    ModelRequest,
    RemoteEvent,
    ToolCallPiece,
    UsagePiece,
    forward_of,
    with_joined_text,
)
from proxy.tracing import UNRECORDED, TraceSpan, is_traced
from proxy.turns.text_relay import TextRelay


class ModelReply(Struct):
    """The reply of a model, in pieces."""

    text: list[str] = []
    refusal: list[str] = []
    calls: list[Call] = []
    finish_reason: FinishReason = "stop"
    provider_state: ProviderState | None = None
    tokens: int | None = None
    """Size of the context after the reply, if it is known and not small."""


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
    client_tools = client_tools_of(agent, state) if state.turn.client_tools else ()
    compactor = state.compactor
    if compactor is None:
        history = history_of(agent.name, state.turn.context, state.turn.items)
        view = ContextView(history.context, history.own)
        return await _reply(agent, state, build_request(agent, state, view, own_tools, client_tools))
    if compactor.has_limit(agent, state):
        size = call_size(agent, state.turn, own_tools, client_tools)
        view = await compactor.fit(agent, state, size)
    else:
        view = compactor.view(agent, state)
    try:
        request = build_request(agent, state, view, own_tools, client_tools)
        return await _reply(agent, state, request, may_repeat=True)
    except ContextTooLong as rejected:
        size = call_size(agent, state.turn, own_tools, client_tools)
        view = await compactor.after_overflow(agent, state, size, rejected.failure)
    try:
        return await _reply(agent, state, build_request(agent, state, view, own_tools, client_tools))
    except ContextLengthExceeded as failure:
        agent.window.learn(failure, estimate=compactor.size_of(view, size))
        raise exceeded(failure) from None


class ContextTooLong(Exception):
    """The provider rejected the context before the reply began."""

    def __init__(self, failure: ContextLengthExceeded) -> None:
        super().__init__()
        self.failure = failure


def _reply(
    agent: Agent, state: TurnState, request: ModelRequest, *, may_repeat: bool = False
) -> Awaitable[ModelReply]:
    """Call the model with a request, in a separate span if the turn is traced.

    Raises:
        ContextTooLong: ``may_repeat`` is set, and the context does not fit.
    """
    if is_traced():
        return _traced_reply(agent, state, request, may_repeat=may_repeat)
    return _stream_reply(agent, state, request, UNRECORDED, may_repeat=may_repeat)


async def _traced_reply(
    agent: Agent, state: TurnState, request: ModelRequest, *, may_repeat: bool
) -> ModelReply:
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
                if call.is_finished:
                    break
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
            # As a batch: hardly a format has a frame for it that is worth the wake-up of a reader.
            state.sink.emit_batch((ModelCalled(agent.name, call.name, call.usage, seconds, call.cost),))
    if call.usage is not None:
        reply.tokens = reported_size(agent, call.usage)
    if held is not None and reply.calls:
        reply.text.clear()
    for text in held or ():
        if not reply.calls:
            state.turn.draft.append(text.text)
            state.sink.emit(text)
    return reply


class _ModelCall(Struct):
    """The facts of a call that its event reports."""

    name: str
    usage: Usage | None = None
    cost: float | None = None
    began: float = field(default_factory=time.monotonic)
    has_begun: bool = False
    is_finished: bool = False
    """Whether the last delta came."""
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
                    tools = client_tools_of(self._agent, self._state)
                    self._client_names = {tool.name for tool in tools} if tools else ()
                _add_call_piece(self._agent, self._state, reply, delta, self._client_names, events)
            case ReasoningDelta():
                events.append(delta)
            case Finished():
                call.is_finished = True
                reply.finish_reason = delta.reason
                call.usage, call.cost = delta.usage, delta.cost
                reply.provider_state = delta.state
                call.name = delta.model or call.name
                if self._traced.is_recording:
                    record_reply(self._traced, delta, reply.text, reply.calls)
            case UsagePiece():
                call.usage = delta.usage
            case RefusalDelta():
                reply.refusal.append(delta.text)
                events.append(delta)
            case ParametersIgnored():
                events.append(delta)
            case TextDelta() | RemoteEvent():
                pass


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
