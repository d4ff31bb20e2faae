"""Traces of turns, exported to a collector over OTLP: the tree of each scenario, and what the spans contain."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from proxy.tools.mcp.discovery import discover_tools
from proxy.tools.mcp.lock import write_lock
from proxy.tools.mcp.setup import HttpEndpoint, ServerSetup
from tests.behaviour.chat_client import WEATHER, assistant, result, user
from tests.fakes.mcp_http import FakeMcp, says
from tests.fakes.otlp import CLIENT, INTERNAL, SERVER, FakeCollector, Trace
from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEAM = """\
mcp_servers:
  shop: {{url: "{mcp}"}}
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
  direct: {{model: test-model, base_url: "{upstream}", api_key: upstream-key, expose: true}}
teams:
  desk:
    entry: triage
    agents:
      triage:
        instructions: Secret instructions.
        tools: [calculate, "mcp:shop/echo", {{name: "tests.fakes.payment_tool:pay", approval: required}}]
        handoffs: [{{to: sales, tool: transfer_to_sales}}, {{to: crashing, tool: transfer_to_crashing}}]
      crashing:
        python: tests.fakes.failing_tool:crash
      sales:
        instructions: You are sales.
        tools: ["tests.fakes.failing_tool:fail"]
"""


@dataclass
class Desk:
    """A traced server, its provider, its MCP server and its collector."""

    served: Served
    upstream: FakeUpstream
    mcp: FakeMcp
    collector: FakeCollector

    async def ask(self, *messages: Any, trace_id: str = "", **more: Any) -> tuple[Any, Trace]:
        """Send the messages as a caller with a trace of its own; return the answer and the trace."""
        trace_id = trace_id or secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace_id}-{'1' * 16}-01", **more.pop("headers", {})}
        answer: Any = None
        try:
            answer = await self.client.chat.completions.create(
                model="desk", messages=list(messages), extra_headers=headers, **more
            )
        except openai.APIStatusError as failure:
            answer = failure
        return answer, await self.collector.trace(trace_id)

    @property
    def client(self) -> AsyncOpenAI:
        return self.served.client()


@asynccontextmanager
async def traced_desk(folder: Path, **settings: Any) -> AsyncIterator[Desk]:
    async with FakeCollector() as collector, FakeUpstream() as upstream, FakeMcp() as mcp:
        (folder / "teams.yaml").write_text(TEAM.format(upstream=upstream.base_url, mcp=mcp.url))
        (found,) = await discover_tools([ServerSetup("shop", HttpEndpoint(mcp.url))])
        write_lock(folder, {"shop": {tool.name: tool for tool in found.tools}})
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
            environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
            async with serve(folder, teams=folder, tracing=True, **settings) as served:
                yield Desk(served, upstream, mcp, collector)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    async with traced_desk(tmp_path_factory.mktemp("desk")) as desk:
        yield desk


@pytest.fixture
def desk(opened: Desk) -> Desk:
    opened.upstream.forget()
    return opened


async def test_a_handoff_is_a_span_between_two_agents(desk: Desk) -> None:
    desk.upstream.reply(calls(("transfer_to_sales", {})), text("Which rocket?"))

    answer, trace = await desk.ask(user("I want a rocket"))

    assert trace.tree == (
        "invoke_workflow desk",
        [
            ("invoke_agent triage", [("chat test-model", []), ("handoff triage to sales", [])]),
            ("invoke_agent sales", [("chat test-model", [])]),
        ],
    )
    assert trace.root.parent_id == "1" * 16
    assert [span.kind for span in trace.spans] == [SERVER, INTERNAL, CLIENT, INTERNAL, INTERNAL, CLIENT]
    assert trace.one("handoff triage to sales").attributes == {
        "handoff_proxy.handoff.from": "triage",
        "handoff_proxy.handoff.to": "sales",
    }
    conversation = trace.root.attributes["gen_ai.conversation.id"]
    assert trace.root.attributes == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "desk",
        "gen_ai.agent.name": "sales",
        "gen_ai.conversation.id": conversation,
        "handoff_proxy.turn.id": answer.id,
        "handoff_proxy.turn.outcome": "completed",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
    }
    resource = trace.root.resource
    assert resource["service.name"] == "handoff-proxy"
    assert resource["deployment.environment.name"] == "test"


async def test_the_span_of_a_model_call_has_the_model_the_provider_and_the_usage(desk: Desk) -> None:
    desk.upstream.reply(text("Hello"))

    answer, trace = await desk.ask(user("Hi"), temperature=0.5, max_tokens=50)

    attributes = dict(trace.one("chat test-model").attributes)
    assert attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    port = int(desk.upstream.base_url.split(":")[2].split("/")[0])
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "127.0.0.1",
        "gen_ai.request.model": "test-model",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.output.type": "text",
        "gen_ai.agent.name": "triage",
        "gen_ai.conversation.id": trace.root.attributes["gen_ai.conversation.id"],
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        "server.address": "127.0.0.1",
        "server.port": port,
        "handoff_proxy.model.attempt": 1,
    }


async def test_parallel_tools_are_siblings_with_the_ids_of_their_calls(desk: Desk) -> None:
    desk.upstream.reply(
        calls(("calculate", {"expression": "1+1"}), ("calculate", {"expression": "2+2"})), text("2 and 4")
    )

    _, trace = await desk.ask(user("Add"))

    tools: Any = [("execute_tool calculate", []), ("execute_tool calculate", [])]
    chat: Any = ("chat test-model", [])
    assert trace.tree == ("invoke_workflow desk", [("invoke_agent triage", [chat, *tools, chat])])
    sent = [call["id"] for call in desk.upstream.requests[1].body["messages"][-3]["tool_calls"]]
    spans = [span for span in trace.spans if span.name == "execute_tool calculate"]
    assert [span.attributes["gen_ai.tool.call.id"] for span in spans] == sent
    assert not any(span.is_error for span in spans)


async def test_a_call_of_an_mcp_server_is_a_span_that_the_server_gets_as_its_parent(desk: Desk) -> None:
    desk.mcp.reply("echo", says("done"))
    desk.upstream.reply(calls(("shop__echo", {"text": "x"})), text("done"))

    _, trace = await desk.ask(user("Echo"))

    span = trace.one("tools/call echo")
    tool = trace.one("execute_tool shop__echo")
    assert (span.parent_id, span.kind) == (tool.span_id, CLIENT)
    assert desk.mcp.calls[-1]["_meta"]["traceparent"] == f"00-{span.trace_id}-{span.span_id}-01"
    assert span.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "echo",
        "handoff_proxy.mcp.server": "shop",
        "mcp.method.name": "tools/call",
        "network.transport": "tcp",
    }


async def test_the_provider_gets_the_span_of_the_model_call_as_parent(desk: Desk) -> None:
    desk.upstream.reply(text("Hello"))

    _, trace = await desk.ask(user("Hi"), headers={"tracestate": "vendor=1"})

    span = trace.one("chat test-model")
    headers = desk.upstream.requests[0].headers
    assert headers["traceparent"] == f"00-{span.trace_id}-{span.span_id}-01"
    assert headers["tracestate"] == "vendor=1"


COMPONENTS = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
  component:
    provider: autogen_ext.models.openai.OpenAIChatCompletionClient
    config: {{model: gpt-4o, base_url: "{upstream}", api_key: upstream-key}}
teams:
  component: {{entry: one, agents: {{one: {{model: component, instructions: Be brief.}}}}}}
  remote: {{entry: one, agents: {{one: {{remote: {{base_url: "{upstream}", model: far}}}}}}}}
  delegating:
    entry: one
    agents:
      one: {{instructions: Delegate., delegates: [{{to: two, when: always}}]}}
      two: {{remote: {{base_url: "{upstream}", model: far}}}}
"""


@pytest.mark.parametrize("team", ["component", "remote", "delegating"])
async def test_components_remote_agents_and_delegates_send_the_trace(tmp_path: Path, team: str) -> None:
    async with FakeCollector() as collector, FakeUpstream() as upstream:
        (tmp_path / "teams.yaml").write_text(COMPONENTS.format(upstream=upstream.base_url))
        if team == "delegating":
            upstream.reply(calls(("ask_two", {"task": "x"})))
        upstream.reply(text("Hello"), text("Hello"))
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
            async with serve(tmp_path, teams=tmp_path, tracing=True) as served:
                await served.client().chat.completions.create(
                    model=team,
                    messages=[user("Hi")],
                    extra_headers={"traceparent": f"00-{'a' * 32}-{'1' * 16}-01"},
                )
                trace = await collector.trace("a" * 32)

    spans = {span.span_id for span in trace.spans}
    sent = [request.headers["traceparent"].split("-") for request in upstream.requests]
    assert len(sent) == (3 if team == "delegating" else 1)
    assert all(trace_id == "a" * 32 and parent in spans for _, trace_id, parent, _ in sent)


async def test_a_passthrough_model_gets_the_span_of_the_caller_as_parent(desk: Desk) -> None:
    desk.upstream.reply(text("Hello"))
    traceparent = f"00-{secrets.token_hex(16)}-{'1' * 16}-01"

    await desk.client.chat.completions.create(
        model="direct", messages=[user("Hi")], extra_headers={"traceparent": traceparent}
    )

    assert desk.upstream.requests[0].headers["traceparent"] == traceparent


async def test_client_tools_end_a_trace_and_their_results_begin_another(desk: Desk) -> None:
    desk.upstream.reply(calls(("weather", {"city": "Oslo"})))
    first, paused = await desk.ask(user("Weather?"), tools=[WEATHER])
    message = first.choices[0].message
    desk.upstream.reply(text("Rain"))

    _, resumed = await desk.ask(
        user("Weather?"),
        assistant(None, tool_calls=[message.tool_calls[0].model_dump()]),
        result(message.tool_calls[0].id, "rain"),
        tools=[WEATHER],
    )

    expected: Any = ("invoke_workflow desk", [("invoke_agent triage", [("chat test-model", [])])])
    assert paused.tree == resumed.tree == expected
    assert paused.root.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    conversations = {trace.root.attributes["gen_ai.conversation.id"] for trace in (paused, resumed)}
    assert len(conversations) == 1


async def test_an_approval_is_an_event_and_the_approved_call_a_span_of_the_next_turn(desk: Desk) -> None:
    desk.upstream.reply(calls(("pay", {"amount": 7, "to": "Ann"})))
    first, requested = await desk.ask(user("Pay"))
    desk.upstream.reply(text("Paid"))

    _, decided = await desk.ask(user("Pay"), assistant(first.choices[0].message.content), user("yes"))

    ((event, attributes),) = requested.one("invoke_agent triage").events
    assert (event, attributes["gen_ai.tool.name"]) == ("approval requested", "pay")
    agent = decided.one("invoke_agent triage")
    assert agent.events == [
        ("approval decided", {**attributes, "handoff_proxy.approval.decision": "approve"})
    ]
    assert decided.tree == (
        "invoke_workflow desk",
        [("invoke_agent triage", [("execute_tool pay", []), ("chat test-model", [])])],
    )


async def test_a_cancelled_turn_ends_its_spans_without_an_error(desk: Desk) -> None:
    desk.upstream.reply(hang())
    trace_id = secrets.token_hex(16)
    request = asyncio.create_task(
        desk.ask(user("Hi"), trace_id=trace_id, headers={"X-On-Disconnect": "cancel"})
    )
    await desk.upstream.received(1)
    await desk.served.running_turn()

    request.cancel()

    trace = await desk.collector.trace(trace_id)
    assert trace.tree == ("invoke_workflow desk", [("invoke_agent triage", [("chat test-model", [])])])
    assert not any(span.is_error for span in trace.spans)
    assert trace.root.attributes["handoff_proxy.turn.outcome"] == "client_left"
    assert trace.one("chat test-model").attributes["handoff_proxy.cancelled"] is True


async def test_a_failed_tool_is_an_error_of_its_span_only(desk: Desk) -> None:
    desk.upstream.reply(calls(("transfer_to_sales", {})), calls(("fail", {})), text("Sorry"))

    _, trace = await desk.ask(user("Fail"))

    failed = [span for span in trace.spans if span.is_error]
    assert [(span.name, span.attributes["error.type"]) for span in failed] == [
        ("execute_tool fail", "tool_error")
    ]
    assert "a secret of the tool" not in repr(trace)


async def test_a_crash_of_an_agent_is_an_error_up_to_the_turn_without_its_message(desk: Desk) -> None:
    desk.upstream.reply(calls(("transfer_to_crashing", {})))

    failure, trace = await desk.ask(user("Crash"))

    assert isinstance(failure, openai.APIStatusError)
    assert trace.tree == (
        "invoke_workflow desk",
        [
            ("invoke_agent triage", [("chat test-model", []), ("handoff triage to crashing", [])]),
            ("invoke_agent crashing", []),
        ],
    )
    errors = {span.name: span.attributes["error.type"] for span in trace.spans if span.is_error}
    assert errors == {"invoke_workflow desk": failure.code, "invoke_agent crashing": failure.code}
    assert "a secret of the agent" not in repr(trace)


async def test_a_failed_model_call_is_an_error_up_to_the_turn(desk: Desk) -> None:
    desk.upstream.reply(error(400, message="private details"))

    failure, trace = await desk.ask(user("Hi"))

    assert isinstance(failure, openai.APIStatusError)
    errors = {span.name: span.attributes["error.type"] for span in trace.spans if span.is_error}
    assert errors == {
        "invoke_workflow desk": failure.code,
        "invoke_agent triage": "bad_request",
        "chat test-model": "bad_request",
    }
    assert "private details" not in repr(trace)


async def test_failed_attempts_are_events_of_the_model_call(desk: Desk) -> None:
    desk.upstream.reply(error(503), text("Hello"))

    _, trace = await desk.ask(user("Hi"))

    span = trace.one("chat test-model")
    assert [name for name, _ in span.events] == ["attempt failed"]
    assert span.attributes["handoff_proxy.model.attempt"] == 2
    assert not span.is_error


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "z" * 52]
)
async def test_an_invalid_traceparent_starts_a_new_trace(desk: Desk, traceparent: str) -> None:
    desk.upstream.reply(text("Hello"))

    answer = await desk.client.chat.completions.create(
        model="desk",
        messages=[user("Hi")],
        extra_headers={"traceparent": traceparent},
    )

    sent = desk.upstream.requests[0].headers["traceparent"]
    trace = await desk.collector.trace(sent.split("-")[1])
    assert trace.root.parent_id == ""
    assert trace.root.attributes["handoff_proxy.turn.id"] == answer.id


async def test_contents_are_exported_only_if_they_are_enabled(desk: Desk, tmp_path: Path) -> None:
    arguments = {"text": "argument words"}

    async def spans(desk: Desk) -> Trace:
        desk.mcp.reply("echo", says("result words"))
        desk.upstream.reply(calls(("shop__echo", arguments)), text("answer words"))
        _, trace = await desk.ask(user("question words"))
        return trace

    without = repr(await spans(desk))
    async with traced_desk(tmp_path, tracing_content=True) as other:
        trace = await spans(other)

    private = ("Secret instructions", "question words", "argument words", "result words", "answer words")
    assert [content for content in private if content in without] == []
    first, second = [span.attributes for span in trace.spans if span.name == "chat test-model"]
    assert json.loads(first["gen_ai.system_instructions"])[0] == {
        "type": "text",
        "content": "Secret instructions.",
    }
    question = {"role": "user", "parts": [{"type": "text", "content": "question words"}]}
    assert json.loads(first["gen_ai.input.messages"]) == [question]
    call = json.loads(first["gen_ai.output.messages"])[0]["parts"][0]
    assert (call["type"], call["name"], call["arguments"]) == ("tool_call", "shop__echo", arguments)
    assert json.loads(second["gen_ai.input.messages"])[-1]["parts"][0]["response"] == "result words"
    assert json.loads(second["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "answer words"}], "finish_reason": "stop"}
    ]
    tool = trace.one("execute_tool shop__echo").attributes
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == arguments
    assert tool["gen_ai.tool.call.result"] == "result words"


async def test_log_lines_of_a_traced_turn_have_its_trace_id(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    from proxy.log_config import add_request_id

    caplog.handler.addFilter(add_request_id)
    desk.upstream.reply(error(503), text("Hello"))

    _, trace = await desk.ask(user("Hi"))

    (failed,) = [record for record in caplog.records if record.getMessage() == "model call failed"]
    assert failed.__dict__["trace_id"] == trace.root.trace_id
