"""Export of spans over OTLP. Imports the SDK, which is an extra of the package, only if tracing is on.

The standard variables of OpenTelemetry (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_HEADERS``,
``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES`` …) configure the exporter. The SDK reads
them from the environment, and not from ``.env``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec

from proxy.tracing import Tracing

SHUTDOWN_SECONDS = 3.0
"""How long a stop waits until the last spans are exported."""
NAME = "handoff-proxy"


def is_installed() -> bool:
    """Return whether the packages of the extra ``otel`` are installed."""
    try:
        return (
            find_spec("opentelemetry.sdk") is not None
            and find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        )
    except ModuleNotFoundError:
        return False


@asynccontextmanager
async def open_tracing(*, with_content: bool) -> AsyncIterator[Tracing]:
    """Export the spans of the block in batches from a thread; the last ones when the block ends."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = Resource({"service.name": NAME, "service.version": version(NAME)})
    # Not the global provider: libraries would send spans with exception messages to it.
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield Tracing(provider.get_tracer(NAME, version(NAME)), with_content=with_content)
    finally:
        await _shut_down(provider.shutdown)


async def _shut_down(shutdown: Callable[[], object]) -> None:
    """Call ``shutdown`` in a daemon thread: with an unreachable collector it takes longer than a stop should take."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            shutdown()
        finally:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="trace export shutdown", daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(SHUTDOWN_SECONDS):
            await ended.wait()
