"""One model call of an agent: emit the deltas of the reply, and collect the reply."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from msgspec import Struct

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


class ModelReply(Struct, frozen=True):
    """The reply of a model, in pieces."""

    text: list[str]
    refusal: list[str]
    calls: list[Call]
    finish_reason: FinishReason
    provider_state: ProviderState | None
    tokens: int | None
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
    turn, sink = state.turn, state.sink
    # Text next to a tool call would make a structured answer invalid JSON: hold it until the reply is complete.
    held: list[TextDelta] | None = [] if turn.response_format is not None and request.tools else None
    receiver = _ReplyReceiver(agent, state, traced, held, turn.draft, turn.is_streamed, sink.emit_batch)
    began = time.monotonic()
    has_begun = is_repeated = False
    try:
        async with agent.model.stream(request) as batches:
            async for batch in batches:
                has_begun = True
                if not receiver.take(batch):
                    await sink.drain()
                if receiver.finished is not None:
                    break
                # Not held while the next ones are waited for.
                del batch
                forward = forward_of(batches)
                while forward is not None and not await forward(receiver.take, receiver.open_relay):
                    await sink.drain()
    except ContextLengthExceeded as failure:
        is_repeated = may_repeat and not has_begun
        if is_repeated:
            raise ContextTooLong(failure) from None
        raise
    finally:
        if not is_repeated:
            called = receiver.called(time.monotonic() - began)
            if called.usage is not None:
                state.add_tokens(called.usage.completion)
            # As a batch: hardly a format has a frame for it that is worth the wake-up of a reader.
            sink.emit_batch((called,))
    if held is not None:
        receiver.release_held()
    return receiver.reply()


class _ReplyReceiver(Struct):
    """Collects the deltas of a model, and emits their events."""

    _agent: Agent
    _state: TurnState
    _traced: TraceSpan
    _held: list[TextDelta] | None
    """Gets the text that is not emitted; None to emit all of it."""
    _draft: list[str]
    _is_streamed: bool
    _emit_batch: Callable[[Sequence[Event]], bool]
    finished: Finished | None = None
    """The last delta, once it has arrived."""
    _text: list[str] = []
    _refusal: list[str] = []
    _calls: list[Call] = []
    _usage: Usage | None = None
    _client_names: Collection[str] | None = None

    def called(self, seconds: float) -> ModelCalled:
        """Return the event of the call, which took ``seconds``. The call may have failed."""
        agent, finished = self._agent, self.finished
        if finished is None:
            return ModelCalled(agent.name, agent.model.name, self._usage, seconds)
        return ModelCalled(
            agent.name, finished.model or agent.model.name, finished.usage, seconds, finished.cost
        )

    def reply(self) -> ModelReply:
        """Return the complete reply."""
        finished = self.finished or Finished("stop")
        usage, window = finished.usage, self._agent.window.tokens
        tokens = None if usage is None or window is None else reported_size(usage, window)
        return ModelReply(self._text, self._refusal, self._calls, finished.reason, finished.state, tokens)

    def release_held(self) -> None:
        """Emit the text that was held, or drop all text of a reply with calls."""
        if self._calls:
            self._text.clear()
            return
        for delta in self._held or ():
            self._draft.append(delta.text)
            self._state.sink.emit(delta)

    def take(self, batch: Sequence[ModelDelta]) -> bool:
        """Process one batch; return False if ``drain`` of the sink would wait."""
        text, draft, held = self._text, self._draft, self._held
        if type(batch) is TextBatch and held is None and self._is_streamed:
            text += batch.texts
            draft += batch.texts
            return self._emit_batch(batch)
        events: list[Event] = []
        for delta in batch if self._is_streamed else with_joined_text(batch):
            if type(delta) is TextDelta:
                text.append(delta.text)
                if held is None:
                    draft.append(delta.text)
                    events.append(delta)
                else:
                    held.append(delta)
            elif type(delta) is Finished:
                self.finished = delta
                if self._traced.is_recording:
                    record_reply(self._traced, delta, text, self._calls)
            else:
                self._take_other(delta, events)
        # Arguments of own tools, and the end of the answer, are not events.
        return self._emit_batch(events) if events else True

    def open_relay(self) -> TextRelay | None:
        """Return a relay of the sink for text that is emitted as it arrives."""
        if self._held is not None or not self._is_streamed:
            return None
        relay = self._state.sink.open_relay()
        if relay is not None:
            relay.add_record(self._record)
        return relay

    def _record(self, texts: Sequence[str], times: Sequence[float]) -> None:
        self._text += texts
        self._draft += texts

    def _take_other(self, delta: ModelDelta, events: list[Event]) -> None:
        match delta:
            case ToolCallPiece():
                self._add_call_piece(delta, events)
            case ReasoningDelta() | ParametersIgnored():
                events.append(delta)
            case UsagePiece():
                self._usage = delta.usage
            case RefusalDelta():
                self._refusal.append(delta.text)
                events.append(delta)
            case TextDelta() | RemoteEvent() | Finished():
                pass

    def _add_call_piece(self, piece: ToolCallPiece, events: list[Event]) -> None:
        state, calls = self._state, self._calls
        if piece.index == len(calls):
            name = piece.name or ""
            kind = self._kind(name)
            if kind == "client" and not state.turn.parallel_tool_calls and self._has_client_call():
                kind = "surplus"
            call = Call(new_call_id(), name, kind)
            calls.append(call)
            if kind == "client":
                call.client_index = state.client_calls
                state.client_calls += 1
                events.append(ClientToolCall(call.client_index, call.id, name))
        call = calls[piece.index]
        if piece.arguments:
            call.arguments.append(piece.arguments)
            if call.kind == "client":
                events.append(ClientToolArguments(call.client_index, piece.arguments))

    def _kind(self, name: str) -> CallKind:
        agent, state = self._agent, self._state
        if name in agent.delegations and state.can_delegate:
            return "server"
        if name in agent.tools:
            return "approval" if name in agent.approvals else "server"
        if name in agent.handoff_targets and state.handoffs < state.limits.max_handoffs:
            return "handoff"
        if self._client_names is None:
            self._client_names = {tool.name for tool in client_tools_of(agent, state)}
        return "client" if name in self._client_names else "unknown"

    def _has_client_call(self) -> bool:
        return any(call.kind == "client" for call in self._calls)
