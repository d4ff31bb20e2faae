"""Every parser and loop over text from outside takes time that grows linearly with the text.

A row feeds one of them with the text that is worst for it, in two sizes. Time is CPU time of this thread, the shortest
of several runs, and compared as a ratio within one run, so the speed and the load of the machine do not matter. Eight
times the text may take 24 times as long; something quadratic takes 64 times as long.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from mcp_types import CallToolResult, ContentBlock, ResourceLink, TextContent

from proxy.approvals.yes_no import plain_decision
from proxy.conversations.alignment import is_aligned
from proxy.conversations.fingerprints import Transcript, without_thinking
from proxy.conversations.repository import excerpt_of
from proxy.conversations.summaries import is_summarized
from proxy.errors import ProxyError
from proxy.http_head import head_problem, read_target
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    FunctionMessage,
    Item,
    SystemMessage,
    ToolCall,
    UserMessage,
)
from proxy.providers.http.sse import EventReader
from proxy.providers.openai.provider_state import StateCollector
from proxy.providers.openai.responses_stream import ResponsesReader
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.think_tags import ThinkTagSplitter
from proxy.routes.request_body import headers_of
from proxy.service.side_requests import has_side_request_text
from proxy.teamfiles.env_vars import substitute
from proxy.teamfiles.yaml_nodes import UnreadableFile, compose
from proxy.tools.mcp.lines import LineSplitter
from proxy.tools.mcp.results import result_text
from proxy.turns.request import TurnRequest
from proxy.turns.wrapped_text import unwrapped_text
from proxy.wire.chat.message_validation import TRANSLATED_ID, validate_messages
from proxy.wire.chat.parse import decode_chat
from proxy.wire.responses.parse import decode_response_request
from proxy.wire.schema_expansion import ExpansionTooLarge, check_expansion
from proxy.wire.schema_validator import SchemaValidator
from proxy.wire.validation.body_decoder import _STRING, reject_nul
from proxy.wire.validation.query_params import list_query, metadata_filter
from tests.fakes.replies import chunk

FACTOR = 8
MAX_RATIO = 24.0
_RUNS = 3
_SHORTEST = 0.001
"""Seconds that the small size has to take at least; below, the row grows until it does."""
_LONGEST_SIZE = 16_000

Row = Callable[[int], Callable[[], object]]


def sse(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def fed(make: Callable[[], Any], pieces: list[bytes]) -> None:
    reader = make()
    # Many readers have bounds, and give up at them.
    with suppress(ProxyError):
        for piece in pieces:
            list(reader.feed(piece))
        if hasattr(reader, "end"):
            reader.end()


def answer_reader() -> AnswerReader:
    return AnswerReader(max_answer_bytes=1 << 30, max_line_bytes=1 << 30)


def responses_reader() -> ResponsesReader:
    return ResponsesReader(provider="p", max_answer_bytes=1 << 30, max_line_bytes=1 << 30)


def event_reader() -> EventReader:
    return EventReader(max_line_bytes=1 << 30)


def call(index: int, arguments: str) -> bytes:
    function = {"name": "f", "arguments": arguments}
    return sse(
        chunk({"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": function}]})
    )


def more(arguments: str) -> bytes:
    return sse(chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}))


def stream(*pieces: bytes, make: Callable[[], Any] = answer_reader) -> Callable[[], object]:
    given = list(pieces)
    return lambda: fed(make, given)


def thinking_blocks(blocks: list[dict[str, str]]) -> Callable[[], object]:
    def run() -> None:
        collector = StateCollector("host model")
        for block in blocks:
            collector.add(None, [block])
        collector.state([], has_calls=True)

    return run


def split(text: str) -> Callable[[], object]:
    def run() -> None:
        splitter = ThinkTagSplitter()
        for character in text:
            splitter.read(character)
        splitter.end()

    return run


def head(headers: list[tuple[bytes, bytes]]) -> Callable[[], object]:
    return lambda: (
        head_problem("1.1", b"POST", headers, (b"/", None)),
        headers_of({"headers": headers}),
    )


def mcp_result(content: list[ContentBlock]) -> Callable[[], object]:
    result = CallToolResult(content=content)
    return lambda: result_text(result)


def refused(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        try:
            work()
        except (ProxyError, ExpansionTooLarge):
            pass

    return run


def chat(**fields: Any) -> Callable[[], object]:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode()
    return refused(lambda: decode_chat(body, max_messages=1 << 30))


def responses(**fields: Any) -> Callable[[], object]:
    body = json.dumps({"model": "m", "input": "x", **fields}).encode()
    return refused(lambda: decode_response_request(body, max_items=1 << 30))


def transcript(text: str) -> Callable[[], object]:
    return lambda: Transcript(b"s").add(AssistantMessage(text))


def functions(count: int) -> Callable[[], object]:
    ids = [f"x{n}" for n in range(count)] + [f"{TRANSLATED_ID}{n}" for n in range(count)]
    messages = [
        AssistantMessage(None, tool_calls=[ToolCall(one, FunctionCall("f", "{}")) for one in ids]),
        *(FunctionMessage(name="f", content="r") for _ in range(count)),
    ]
    return lambda: validate_messages(messages, max_messages=1 << 30)  # type: ignore[arg-type]


def schema(count: int) -> dict[str, Any]:
    chain: dict[str, Any] = {"a0": {"type": "integer"}}
    for number in range(1, count):
        chain[f"a{number}"] = {"properties": {"x": {"$ref": f"#/$defs/a{number - 1}"}}}
    return {"$defs": chain, "$ref": f"#/$defs/a{count - 1}"}


def yaml(text: str) -> Callable[[], object]:
    def run() -> None:
        with suppress(UnreadableFile):
            compose(text)

    return run


def answer(count: int) -> Callable[[], object]:
    alternatives = [{"pattern": "^a+b"}, {"type": "string"}]
    validator = SchemaValidator({"type": "array", "items": {"anyOf": alternatives}})
    text = json.dumps(["a" * 20] * count)
    return lambda: validator.is_valid(json.loads(text))


def decision(text: str) -> Callable[[], object]:
    return lambda: plain_decision([UserMessage(text)])


ROWS: dict[str, Row] = {
    "unclosed think tags, in a transcript": lambda n: transcript("<think>" * n),
    "think tags of two names": lambda n: lambda: without_thinking("<think><thinking></think>" * n),
    "closed think tags": lambda n: transcript("<think></think>" * n),
    "think tags in think tags": lambda n: transcript("<think><reasoning>" * n),
    "half a think tag": lambda n: transcript("<think" * n),
    "less-than signs": lambda n: transcript("<" * n),
    "less-than signs from a provider": lambda n: split("<" * n),
    "white space from a provider": lambda n: split(" " * n),
    "think tags from a provider": lambda n: split("<think>a</think>" * n),
    "text deltas": lambda n: stream(*[sse(chunk({"content": "x"}))] * n),
    "white space deltas": lambda n: stream(*[sse(chunk({"content": " "}))] * n),
    "deltas that end in half a character": lambda n: stream(*[sse(chunk({"content": "\ud83d"}))] * n),
    "many choices": lambda n: stream(sse({**chunk(), "choices": chunk({"content": "x"})["choices"] * n})),
    "one call in many deltas": lambda n: stream(call(0, '{"a": "'), *[more("x")] * n),
    "one call of backslashes": lambda n: stream(call(0, '{"a": "'), *[more("\\")] * n),
    "one call of brackets": lambda n: stream(call(0, "{"), *[more("[")] * n),
    "many calls": lambda n: stream(*[call(number, "{}") for number in range(n)]),
    "many calls in one delta": lambda n: stream(
        sse(chunk({"tool_calls": [{"index": i, "id": f"c{i}", "function": {"name": "f"}} for i in range(n)]}))
    ),
    "SSE byte by byte": lambda n: stream(*[b"x"] * n, make=event_reader),
    "SSE line in pieces": lambda n: stream(b"data: ", *[b"x" * 16] * n, b"\n\n", make=event_reader),
    "SSE of empty lines": lambda n: stream(b"\n" * n, make=event_reader),
    "SSE of carriage returns": lambda n: stream(*[b"\r"] * n, make=event_reader),
    "SSE of data lines": lambda n: stream(b"data: x\n" * n, make=event_reader),
    "SSE of comments": lambda n: stream(b":\n" * n, make=event_reader),
    "Responses text deltas": lambda n: stream(
        *[sse({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "x"})]
        * n,
        make=responses_reader,
    ),
    "Responses items": lambda n: stream(
        *[
            sse(
                {
                    "type": "response.output_item.added",
                    "output_index": i,
                    "item": {"type": "message", "content": []},
                }
            )
            for i in range(n)
        ],
        make=responses_reader,
    ),
    "Responses calls": lambda n: stream(
        *[
            sse(
                {
                    "type": "response.output_item.added",
                    "output_index": i,
                    "item": {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": ""},
                }
            )
            for i in range(n)
        ],
        make=responses_reader,
    ),
    "thinking blocks": lambda n: thinking_blocks([{"type": "thinking", "thinking": "x"}] * n),
    "MCP lines": lambda n: lambda: fed(lambda: LineSplitter(1 << 30), [b"x\n" * n]),
    "MCP without line ends": lambda n: lambda: fed(lambda: LineSplitter(1000), [b"x"] * n),
    "messages": lambda n: chat(messages=[{"role": "user", "content": "x"}] * n),
    "content parts": lambda n: chat(
        messages=[{"role": "user", "content": [{"type": "text", "text": "x"}] * n}]
    ),
    "calls and results": lambda n: chat(
        messages=[
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": ""}}
                    for i in range(n)
                ],
            },
            *({"role": "tool", "tool_call_id": f"c{i}", "content": "x"} for i in range(n)),
        ]
    ),
    "results of deprecated calls": functions,
    "unknown fields": lambda n: chat(**{f"k{i}": 1 for i in range(n)}),
    "tools": lambda n: chat(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(n)]),
    "metadata": lambda n: chat(metadata={f"k{i}": "v" for i in range(n)}),
    "wrong last message": lambda n: chat(messages=[{"role": "user", "content": "x"}] * n + [{"role": "x"}]),
    "Responses input items": lambda n: responses(input=[{"role": "user", "content": "x"}] * n),
    "Responses calls and results": lambda n: responses(
        input=[
            one
            for i in range(n)
            for one in (
                {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": f"c{i}", "output": "x"},
            )
        ]
    ),
    "escaped NULs": lambda n: lambda: reject_nul(b'{"a": "' + rb"\\u0000" * n + b'"}'),
    "quotation marks without end": lambda n: lambda: _STRING.sub(b"", b'"' + rb"[[[[[\"" * n),
    "brackets in strings": lambda n: lambda: _STRING.sub(b"", b'"[[[[["' * n),
    "chain of references": lambda n: refused(lambda: check_expansion(schema(n))),
    "schema that refers to itself": lambda n: refused(
        lambda: check_expansion({"properties": {f"p{i}": {"$ref": "#"} for i in range(n)}})
    ),
    "structured output": answer,
    "query without parameters": lambda n: refused(lambda: list_query([("limit", "1" * n)], order="asc")),
    "zeros of a limit": lambda n: refused(lambda: list_query([("limit", "0" * n + "x")], order="asc")),
    "zeros before a fraction": lambda n: refused(
        lambda: list_query([("limit", "0" * n + ".x")], order="asc")
    ),
    "metadata filters": lambda n: refused(lambda: metadata_filter([(f"metadata[{'[' * n}]", "x")])),
    "words of a decision": lambda n: decision("please " * n),
    "context blocks around a message": lambda n: lambda: unwrapped_text("<context><source</context>" * n),
    "openings of context blocks": lambda n: lambda: unwrapped_text("<context>" * n),
    "marks of a summary": lambda n: lambda: is_summarized([], [SystemMessage("[conversation " * n)]),
    "aligned assistant messages": lambda n: lambda: is_aligned([], [AssistantMessage("a")] * n),
    "user message of a side request": lambda n: (
        lambda: has_side_request_text(
            TurnRequest(caller="c", model="shop", messages=[UserMessage("### Task:\n" * n)])
        )
    ),
    "variables of a team file": lambda n: lambda: substitute("${A:-" * n, {}),
    "variables that are set": lambda n: lambda: substitute("${A}" * n, {"A": "x"}),
    "request targets": lambda n: lambda: read_target(b"http://" + b"a." * n + b"/", b"GET"),
    "hosts of a head": lambda n: lambda: head_problem("1.1", b"GET", [(b"host", b"[" * n)], (b"/", None)),
    "headers of a head": lambda n: head([(b"x-%d" % i, b"1") for i in range(n)]),
    "transfer codings": lambda n: head([(b"transfer-encoding", b"gzip, " * n)]),
    "texts of an MCP result": lambda n: mcp_result([TextContent(type="text", text="\n\n")] * n),
    "links of an MCP result": lambda n: mcp_result(
        [ResourceLink(type="resource_link", name="[" * n, uri="a:b")]
    ),
    "excerpts of a search": lambda n: lambda: excerpt_of("ab", [Item(UserMessage("a" * n))] * 4),
    "YAML of keys": lambda n: yaml("".join(f"k{i}: 1\n" for i in range(n))),
    "YAML of aliases": lambda n: yaml("a: &a 1\n" + "".join(f"b{i}: *a\n" for i in range(n))),
    "YAML of quotation marks": lambda n: yaml('"' * n),
    "YAML of spaces": lambda n: yaml("a:" + " " * n + "b\n"),
    "YAML of numbers": lambda n: yaml("a: " + "1_" * n + "\n"),
}


@pytest.fixture(autouse=True)
def without_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def shortest(work: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times)


def ratio_of(row: Row, *, attempts: int = 3) -> float:
    """Return how much longer ``FACTOR`` times the text takes; for what takes next to no time, compared with that."""
    size = 125
    while (small := shortest(row(size), 2)) < _SHORTEST and size < _LONGEST_SIZE:
        size *= 4 if small < _SHORTEST / 4 else 2
    best = float("inf")
    for _ in range(attempts):
        # A busy machine can only make a measurement worse.
        small = max(shortest(row(size), _RUNS), _SHORTEST / 2)
        best = min(best, shortest(row(size * FACTOR), 2) / small)
        if best <= MAX_RATIO:
            break
    return best


@pytest.mark.parametrize("name", list(ROWS))
def test_time_grows_linearly(name: str) -> None:
    assert ratio_of(ROWS[name]) <= MAX_RATIO


def test_quadratic_time_is_noticed() -> None:
    def joined(size: int) -> Callable[[], object]:
        return lambda: sum(1 for _ in range(size) for _ in range(size // 64))

    assert ratio_of(joined, attempts=1) > MAX_RATIO
