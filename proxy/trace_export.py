"""Export of spans over OTLP. Imports the SDK, which is an extra of the package, only if tracing is on.

The standard variables of OpenTelemetry (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_HEADERS``,
``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES`` …) configure the exporter. The SDK reads
them from the environment, and not from ``.env``.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SHUTDOWN_SECONDS = 3.0
"""How long a stop waits until the last spans are exported."""
NAME = "handoff-proxy"
_HEADER = re.compile(r"\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*=[\x20\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
"""A member of ``OTEL_EXPORTER_OTLP_HEADERS`` that the SDK can parse (``opentelemetry.util.re``)."""
_FILES = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")


def is_installed() -> bool:
    """Return whether the packages of the extra ``otel`` are installed."""
    try:
        return (
            find_spec("opentelemetry.sdk") is not None
            and find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        )
    except ModuleNotFoundError:
        return False


def export_problems(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield what is wrong with OpenTelemetry's variables for the export.

    The SDK reports some of it only when it exports the first turn, and logs headers that it cannot parse, which may be
    secrets.
    """
    variable, endpoint = _variable(environment, "ENDPOINT")
    if endpoint and not _is_url(endpoint):
        yield f"{variable}: should be an address that begins with http:// or https://"
    variable, headers = _variable(environment, "HEADERS")
    has_headers = all(_HEADER.fullmatch(one) for one in headers.split(",") if one.strip())
    if not has_headers:
        yield f"{variable}: should be name=value pairs, separated by commas"
    for name in _FILES:
        variable, file = _variable(environment, name)
        if file and not os.access(file, os.R_OK):
            yield f"{variable}: {Path(file)} cannot be read"
    try:
        if has_headers:
            _provider().shutdown()
    except ValueError as error:
        yield f"PROXY_TRACING: OpenTelemetry rejects one of its variables: {error}"


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the variable that applies to traces, and its value (OTLP exporter specification)."""
    names = (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}")
    found = next((one for one in names if environment.get(one)), names[1])
    return found, environment.get(found, "").strip()


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _provider() -> TracerProvider:
    """Return a provider that exports in batches from a thread."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = Resource({"service.name": NAME, "service.version": version(NAME)})
    # Not the global provider: libraries would send spans with exception messages to it.
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@asynccontextmanager
async def open_tracing(*, with_content: bool) -> AsyncIterator[Tracing]:
    """Export the spans of the block in batches from a thread; the last ones when the block ends."""
    provider = _provider()
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
