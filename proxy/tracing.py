"""Spans of turns in OpenTelemetry, named by its semantic conventions for generative AI.

Tracing belongs to a turn: ``turn_span`` enables it for the task of the turn and the tasks that it starts. Everywhere
else, and if tracing is off, ``span`` and ``current_span`` only read a context variable and return an object that does
nothing.

Spans contain names, counts and ids; message contents, arguments and results only with ``with_content``.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Any

from msgspec import Struct
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Value = str | bool | int | float | Sequence[str]

MAX_CONTENT = 128 * 1024
"""Maximum number of characters of one attribute with contents."""
_MAX_TRACE_STATE = 512
"""Maximum length of ``tracestate``; that many characters have to be propagated (W3C Trace Context, section 3.3.1.5)."""

_MAX_TRACE_STATES = 32
_TRACE_STATE = re.compile(
    r"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class Attribute(StrEnum):
    """All attribute names.

    ``gen_ai.*`` and ``mcp.*``: OpenTelemetry, semantic conventions for generative AI (spans, agent spans, MCP);
    ``error.type`` and ``server.*``: its general conventions; ``handoff_proxy.*``: what they do not define.
    """

    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    WORKFLOW = "gen_ai.workflow.name"
    AGENT = "gen_ai.agent.name"
    CONVERSATION = "gen_ai.conversation.id"
    OUTPUT_TYPE = "gen_ai.output.type"
    REQUEST_MODEL = "gen_ai.request.model"
    REQUEST_STREAM = "gen_ai.request.stream"
    REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
    REQUEST_TEMPERATURE = "gen_ai.request.temperature"
    REQUEST_TOP_P = "gen_ai.request.top_p"
    REQUEST_SEED = "gen_ai.request.seed"
    RESPONSE_MODEL = "gen_ai.response.model"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
    REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
    SYSTEM_INSTRUCTIONS = "gen_ai.system_instructions"
    INPUT_MESSAGES = "gen_ai.input.messages"
    OUTPUT_MESSAGES = "gen_ai.output.messages"
    TOOL = "gen_ai.tool.name"
    TOOL_TYPE = "gen_ai.tool.type"
    TOOL_CALL_ID = "gen_ai.tool.call.id"
    TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
    TOOL_RESULT = "gen_ai.tool.call.result"
    MCP_METHOD = "mcp.method.name"
    NETWORK_TRANSPORT = "network.transport"
    SERVER_ADDRESS = "server.address"
    SERVER_PORT = "server.port"
    ERROR_TYPE = "error.type"
    TURN = "handoff_proxy.turn.id"
    OUTCOME = "handoff_proxy.turn.outcome"
    HANDOFF_FROM = "handoff_proxy.handoff.from"
    HANDOFF_TO = "handoff_proxy.handoff.to"
    ATTEMPT = "handoff_proxy.model.attempt"
    APPROVAL = "handoff_proxy.approval.id"
    DECISION = "handoff_proxy.approval.decision"
    MCP_SERVER = "handoff_proxy.mcp.server"
    CANCELLED = "handoff_proxy.cancelled"


class Tracing(Struct, frozen=True):
    """Where spans go, and whether they have contents."""

    tracer: trace.Tracer
    with_content: bool = False


_tracing: ContextVar[Tracing | None] = ContextVar("tracing", default=None)
"""Set in the task of a turn that is traced."""
_request_headers: ContextVar[Mapping[str, str] | None] = ContextVar("trace_context", default=None)
_propagator = TraceContextTextMapPropagator()


class TraceSpan:
    """A span. The instance without an OpenTelemetry span ignores everything."""

    __slots__ = ("_span", "_with_content", "is_recording")

    def __init__(self, span: trace.Span | None, *, with_content: bool = False) -> None:
        self._span = span
        self._with_content = with_content
        self.is_recording = span is not None and span.is_recording()
        """Whether attributes have an effect."""

    def set(self, name: Attribute, value: Value | None) -> None:
        """Set an attribute, unless the value is None."""
        if self._span is not None and value is not None:
            self._span.set_attribute(name.value, value)

    def set_content(self, name: Attribute, make: Callable[[], object]) -> None:
        """Set an attribute to the string or the JSON of what ``make`` returns, if contents are traced."""
        if self._with_content and self.is_recording:
            assert self._span is not None
            self._span.set_attribute(name.value, _content(make()))

    def add_event(self, name: str, attributes: Mapping[Attribute, Value]) -> None:
        """Add an event."""
        if self._span is not None:
            self._span.add_event(name, {key.value: value for key, value in attributes.items()})

    def fail(self, error_type: str) -> None:
        """Mark the operation as failed; ``error_type`` is one of a limited number of values."""
        if self._span is not None:
            self._span.set_attribute(Attribute.ERROR_TYPE.value, error_type)
            self._span.set_status(Status(StatusCode.ERROR))


UNRECORDED = TraceSpan(None)
"""A span that is not recorded."""


class _NoBlock(AbstractContextManager[TraceSpan]):
    """The block of a span that is not recorded. Static methods: waiting coroutines hold no bound ``__exit__`` of it."""

    @staticmethod
    def __enter__() -> TraceSpan:
        return UNRECORDED

    @staticmethod
    def __exit__(*_: object) -> None:
        pass


NO_SPAN = _NoBlock()


is_traced: Callable[[], object] = _tracing.get
"""Returns a true value if spans of this task are recorded. Otherwise, their attributes need not be collected."""


def span(
    name: str, attributes: Mapping[Attribute, Value], *, is_client: bool = False
) -> AbstractContextManager[TraceSpan]:
    """Return a block that is a child span of the current one. An exception that leaves it marks the span as failed.

    ``is_client`` is for calls of another process.
    """
    tracing = _tracing.get()
    if tracing is None:
        return NO_SPAN
    return _block(tracing, name, attributes, SpanKind.CLIENT if is_client else SpanKind.INTERNAL)


def current_span() -> TraceSpan:
    """Return the innermost span of this task."""
    tracing = _tracing.get()
    return (
        UNRECORDED
        if tracing is None
        else TraceSpan(trace.get_current_span(), with_content=tracing.with_content)
    )


def turn_span(
    tracing: Tracing | None, name: str, attributes: Mapping[Attribute, Value]
) -> AbstractContextManager[TraceSpan]:
    """Return the block of a turn: the root span, or a child of the caller's span if the request names one."""
    return NO_SPAN if tracing is None else _turn_block(tracing, name, attributes)


@contextmanager
def _turn_block(tracing: Tracing, name: str, attributes: Mapping[Attribute, Value]) -> Iterator[TraceSpan]:
    parent = _propagator.extract(_request_headers.get() or {}, context=Context())
    token = _tracing.set(tracing)
    try:
        with _block(tracing, name, attributes, SpanKind.SERVER, parent) as traced:
            yield traced
    finally:
        _tracing.reset(token)


@contextmanager
def _block(
    tracing: Tracing,
    name: str,
    attributes: Mapping[Attribute, Value],
    kind: SpanKind,
    parent: Context | None = None,
) -> Iterator[TraceSpan]:
    with tracing.tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes={key.value: value for key, value in attributes.items()},
        # The message of an exception can have contents, and its stack trace has paths of the server.
        record_exception=False,
        set_status_on_exception=False,
    ) as opened:
        traced = TraceSpan(opened, with_content=tracing.with_content)
        try:
            yield traced
        except asyncio.CancelledError:
            traced.set(Attribute.CANCELLED, True)
            raise
        except Exception as error:
            traced.fail(
                str(getattr(error, "label", None) or getattr(error, "code", None) or type(error).__qualname__)
            )
            raise


# --- W3C Trace Context ---


def accept_trace_context(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Make the span that the headers of a request name the parent of the turns that the request starts."""
    parent = next((value for name, value in headers if name == b"traceparent"), None)
    if parent is None:
        _request_headers.set(None)
        return
    context = {"traceparent": parent.decode("latin-1")}
    if states := [value.decode("latin-1") for name, value in headers if name == b"tracestate"]:
        # Several fields are one list (Trace Context, 3.3.1).
        state = ",".join(states)
        if _is_trace_state(state):
            context["tracestate"] = state
    _request_headers.set(context)


def _is_trace_state(state: str) -> bool:
    """Return whether ``tracestate`` is valid (Trace Context, 3.3.1). OpenTelemetry logs what is invalid in it."""
    if len(state) > _MAX_TRACE_STATE:
        return False
    members = [member for one in state.split(",") if (member := one.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    return len(keys) == len(members) <= _MAX_TRACE_STATES and all(map(_TRACE_STATE.fullmatch, members))


def trace_headers() -> Mapping[str, str]:
    """Return the headers that make the current span the parent of a request's span; empty if there is none.

    Outside of a turn, as in a request to a passthrough model, it is the span of the caller.
    """
    request_headers = _request_headers.get()
    context = None
    if _tracing.get() is None:
        if request_headers is None:
            return {}
        context = _propagator.extract(request_headers, context=Context())
    headers: dict[str, str] = {}
    _propagator.inject(headers, context=context)
    return headers


async def add_trace_headers(request: Any) -> None:
    """Add ``trace_headers`` to a request: a request hook of an httpx client."""
    request.headers.update(trace_headers())


def current_trace_id() -> str:
    """Return the trace id of the current turn in hexadecimal, for the log; empty if it is not traced."""
    if _tracing.get() is None:
        return ""
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


def _content(value: object) -> str:
    """Return a string as it is, anything else as JSON; of a list that is too long, the last elements."""
    text = value if isinstance(value, str) else _encode(value)
    while len(text) > MAX_CONTENT and isinstance(value, list) and len(value) > 1:
        value = value[(len(value) + 1) // 2 :]
        text = _encode(value)
    return text[:MAX_CONTENT]


def _encode(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
