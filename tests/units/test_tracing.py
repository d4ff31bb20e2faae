"""Spans that do nothing while tracing is off, and the limits of contents."""

from __future__ import annotations

import json
import re
from contextvars import copy_context
from pathlib import Path

import pytest

from proxy import trace_export
from proxy.providers.span import provider_name
from proxy.settings_check import tracing_problems
from proxy.trace_export import export_problems
from proxy.tracing import (
    MAX_CONTENT,
    Attribute,
    Tracing,
    accept_trace_context,
    current_span,
    current_trace_id,
    span,
    trace_headers,
    turn_span,
)
from tests.server import settings_for

DOCUMENT = Path(__file__).parents[2] / "docs" / "tracing.md"


CALLER = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"


@pytest.mark.parametrize(
    ("traceparent", "sent"), [(CALLER, {"traceparent": CALLER.decode()}), (b"nonsense", {}), (b"", {})]
)
def test_requests_outside_of_a_turn_have_the_span_of_the_caller_as_parent(
    traceparent: bytes, sent: dict[str, str]
) -> None:
    def headers() -> object:
        accept_trace_context([(b"traceparent", traceparent)] if traceparent else [])
        return trace_headers()

    assert copy_context().run(headers) == sent


def test_nothing_is_recorded_while_tracing_is_off() -> None:
    with turn_span(None, "turn", {}) as turn, span("child", {}) as child:
        child.fail("error")
        child.set_content(Attribute.TOOL_RESULT, lambda: 1 / 0)

        assert turn is child is current_span()
        assert not child.is_recording
        assert (trace_headers(), current_trace_id()) == ({}, "")


def test_the_documentation_has_exactly_the_attributes_of_the_table() -> None:
    documented = set(
        re.findall(r"`((?:gen_ai|mcp|server|network|error|handoff_proxy)\.[a-z_.]+)`", DOCUMENT.read_text())
    )

    assert documented == {attribute.value for attribute in Attribute}


def test_provider_names_are_those_of_the_conventions_or_the_host() -> None:
    hosts = (
        "api.openai.com",
        "mine.openai.azure.com",
        "eu.api.openai.com",
        "llm.example.com",
        "openai.com.example",
    )

    assert [provider_name(host) for host in hosts] == [
        "openai",
        "azure.ai.openai",
        "openai",
        "llm.example.com",
        "openai.com.example",
    ]


def test_contents_that_are_too_long_lose_their_oldest_messages() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    messages = [{"number": number, "text": "x" * 20_000} for number in range(20)]

    with turn_span(Tracing(provider.get_tracer("tests"), with_content=True), "turn", {}) as traced:
        traced.set_content(Attribute.INPUT_MESSAGES, lambda: messages)
        traced.set_content(Attribute.TOOL_RESULT, lambda: "y" * (MAX_CONTENT + 1))

    (exported,) = exporter.get_finished_spans()
    attributes = exported.attributes or {}
    shown = json.loads(str(attributes["gen_ai.input.messages"]))
    assert [message["number"] for message in shown] == [15, 16, 17, 18, 19]
    assert attributes["gen_ai.tool.call.result"] == "y" * MAX_CONTENT


PARENT = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
LONGEST = b"k=" + b"v" * 256


@pytest.mark.parametrize(
    ("states", "accepted"),
    [
        ([b"vendor=1"], "vendor=1"),
        ([b"one=1", b"two@v=2"], "one=1,two@v=2"),
        ([b" one=1 ,, two=a b "], "one=1,two=a b"),
        ([LONGEST], LONGEST.decode()),
        ([b"secret words"], None),
        ([b"one=1,secret words"], None),
        ([b"one=1,One=secret"], None),
        ([b"one=1,one=secret"], None),
        ([b"one=secret\xff"], None),
        ([LONGEST + b"v"], None),
        ([b",".join(b"k%d=secret" % number for number in range(33))], None),
        ([b"one=" + b"1" * 250, b"two=" + b"2" * 250, b"three=secret"], None),
        ([], None),
    ],
)
def test_an_invalid_trace_state_is_dropped_and_not_logged(
    states: list[bytes], accepted: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    def propagated() -> dict[str, str]:
        accept_trace_context([(b"traceparent", PARENT), *((b"tracestate", state) for state in states)])
        return dict(trace_headers())

    headers = copy_context().run(propagated)

    assert headers == {"traceparent": PARENT.decode()} | ({"tracestate": accepted} if accepted else {})
    assert caplog.records == []


@pytest.mark.parametrize(
    ("variables", "problems"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://[::1]:4318/v1"}, []),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            ["OTEL_EXPORTER_OTLP_ENDPOINT: should be an address that begins with http:// or https://"],
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1"},
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: should be an address that begins with http:// or https://"],
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:1"}, []),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20key, x-scope = a=b,"}, []),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "Bearer secret"},
            ["OTEL_EXPORTER_OTLP_HEADERS: should be name=value pairs, separated by commas"],
        ),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": 'key="secret"'},
            ["OTEL_EXPORTER_OTLP_HEADERS: should be name=value pairs, separated by commas"],
        ),
        (
            {"OTEL_EXPORTER_OTLP_CERTIFICATE": "no.pem", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "no.key"},
            [
                "OTEL_EXPORTER_OTLP_CERTIFICATE: no.pem cannot be read",
                "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY: no.key cannot be read",
            ],
        ),
        (
            {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-4"},
            [
                "PROXY_TRACING: OpenTelemetry rejects one of its variables: "
                "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer but got -4"
            ],
        ),
    ],
)
def test_variables_of_the_export_are_checked(
    variables: dict[str, str],
    problems: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The SDK reads the environment.
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert list(export_problems()) == problems
    assert "secret" not in caplog.text


def test_tracing_without_its_packages_is_a_configuration_error(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, None, tracing=True)

    assert list(tracing_problems(settings)) == []
    assert list(tracing_problems(settings, is_installed=lambda: False)) == [
        "PROXY_TRACING: the packages for it are not installed; install handoff-proxy[otel]"
    ]
    assert trace_export.is_installed()
