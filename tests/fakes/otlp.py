"""An OpenTelemetry collector: receives spans over OTLP/HTTP in protobuf, and shows them as trees.

In a test, in the same loop::

    async with FakeCollector() as collector:
        ...                                    # export to collector.url
        trace = await collector.trace(trace_id)
        assert trace.tree == ("invoke_workflow shop", [("invoke_agent triage", [("chat gpt", [])])])
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.polling import until

ERROR = 2
"""``STATUS_CODE_ERROR``."""
SERVER, CLIENT, INTERNAL = 2, 3, 1
"""Values of ``SpanKind`` in the protocol."""

Tree = tuple[str, list["Tree"]]


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was exported; ids are hexadecimal."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    is_error: bool
    resource: dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """The spans of a trace, in the order of their start."""

    spans: list[ReceivedSpan]

    @property
    def tree(self) -> Tree:
        """Names of the spans, each with its children."""
        return self._tree(self.root)

    @property
    def root(self) -> ReceivedSpan:
        ids = {span.span_id for span in self.spans}
        (root,) = [span for span in self.spans if span.parent_id not in ids]
        return root

    def _tree(self, root: ReceivedSpan) -> Tree:
        return root.name, [self._tree(span) for span in self.spans if span.parent_id == root.span_id]

    def one(self, name: str) -> ReceivedSpan:
        """Return the only span with this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span


class FakeCollector:
    """The collector, as a context manager."""

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.url = ""
        self._runner: web.ServerRunner | None = None

    async def trace(self, trace_id: str) -> Trace:
        """Wait for the root of a trace, which is exported after its children, and return the trace."""
        await until(lambda: any(span.trace_id == trace_id and span.kind == SERVER for span in self.spans))
        found = [span for span in self.spans if span.trace_id == trace_id]
        return Trace(sorted(found, key=lambda span: span.start))

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._receive))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _receive(self, request: web.BaseRequest) -> web.Response:
        exported = ExportTraceServiceRequest.FromString(await request.read())
        for group in exported.resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [_received(span, resource) for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


def _received(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=[(event.name, _attributes(event.attributes)) for event in span.events],
        is_error=span.status.code == ERROR,
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
