"""The targets. Each sends inputs until its run ends, and raises ``Finding`` with the input that failed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from proxy.errors import ConfigurationError
from proxy.settings import load_settings
from proxy.team_check import check_configured_teams
from tests.fakes.replies import chunk
from tests.fakes.upstream import raw
from tests.fuzz.mutation import changed, mutated, pieces, value
from tests.fuzz.run import TEAMS, Finding, Run

TIMEOUT = aiohttp.ClientTimeout(total=30)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^a+$"}},
    "$defs": {"x": {"$ref": "#"}},
}
FUNCTION = {"name": "look_up", "description": "d", "parameters": SCHEMA, "strict": False}
CHAT = {
    "model": "chat",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ada"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "<think>no"},
        {"role": "user", "content": "Hello"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": "auto",
    "stream": False,
    "stop": ["x"],
    "metadata": {"a": "b"},
    "response_format": {"type": "text"},
    "temperature": 1,
    "max_completion_tokens": 100,
}
RESPONSE = {
    "model": "responses",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "yes"},
        {"role": "user", "content": "Hello"},
    ],
    "tools": [{"type": "function", **FUNCTION}],
    "instructions": "Be kind.",
    "text": {"format": {"type": "text"}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "metadata": {"a": "b"},
    "include": ["reasoning.encrypted_content"],
    "stream": False,
}
AGENT = {"name": "poet", "instructions": "Rhyme.", "model": "default", "tools": ["get_time"], "limits": {}}
CUSTOM_TEAM = {"name": "poets", "entry": "a", "agents": {"a": {"instructions": "Rhyme.", "tools": []}}}
ROUTES: list[tuple[str, Any]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/responses", RESPONSE),
    ("/v1/conversations", {"items": RESPONSE["input"], "metadata": {"a": "b"}}),
    ("/v1/conversations/conv_1/items", {"items": RESPONSE["input"]}),
    ("/v1/agents", AGENT),
    ("/v1/teams", CUSTOM_TEAM),
    ("/v1/approvals/x", {"decision": "approve", "reason": "r"}),
    ("/v1/approvals", {"approvals": [{"id": "x", "decision": "approve"}]}),
    ("/v1/chat/completions/x", {"metadata": {"a": "b"}}),
    ("/chat/completions", {"message": "Hi", "conversation_id": "c"}),
    ("/chat/completions", {"messages": [{"source": "user", "content": "Hi"}]}),
    ("/chat", {"message": "Hi"}),
    ("/chat/stream", {"message": "Hi"}),
    ("/ask-stream", {"question": "Hi"}),
    ("/agents/poet", {"instructions": "Rhyme."}),
]
QUERIES = (
    "limit",
    "after",
    "order",
    "search",
    "starting_after",
    "types",
    "include[]",
    "metadata[a]",
    "stream",
)
READS = (
    "/v1/conversations",
    "/v1/chat/completions",
    "/v1/conversations/conv_1/items",
    "/v1/turns/x/events",
    "/v1/models",
    "/v1/agents",
    "/v1/responses/x",
)


async def requests(run: Run) -> None:
    """Bodies, headers, queries and methods of every route."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as client:
        while run.is_running():
            rng = run.rng
            path, body = rng.choice(ROUTES)
            method, query, content = "POST", {}, b""
            if rng.random() < 0.2:
                method, path = rng.choice(("GET", "DELETE", "HEAD", "PUT")), rng.choice(READS)
                query = {rng.choice(QUERIES): str(value(rng, 0))[:500] for _ in range(rng.randrange(3))}
            else:
                for _ in range(rng.randint(0, 3)):
                    body = changed(body, rng)
                content = json.dumps(body).encode("utf-8", "surrogatepass")
                if rng.random() < 0.3:
                    content = mutated(content, rng)
            headers = {"Content-Type": "application/json"}
            for name in (
                "X-Conversation-Id",
                "Idempotency-Key",
                "X-On-Disconnect",
                "X-Handoff-Events",
                "Last-Event-ID",
            ):
                if rng.random() < 0.1:
                    headers[name] = "".join(c for c in str(value(rng, 0))[:200] if c.isprintable()).strip()
            async with client.request(
                method, run.url + path, data=content, params=query, headers=headers
            ) as response:
                answer = await response.read()
                if response.status >= 500:
                    raise Finding(
                        f"{method} {path} {query} {headers} {content!r}: {response.status} {answer!r}"
                    )


# --- provider streams ----------------------------------------------------------------------------------------


def _sse(*payloads: Any) -> bytes:
    return b"".join(
        b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n"
        for one in payloads
    )


def _events(*payloads: dict[str, Any]) -> bytes:
    return b"".join(b"event: " + one["type"].encode() + b"\n" + _sse(one) for one in payloads)


_CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "calculate", "arguments": '{"expr'}}
_MORE = {"index": 0, "function": {"arguments": 'ession": "1+1"}'}}
CHAT_STREAMS = [
    _sse(
        chunk({"role": "assistant", "content": "He"}),
        chunk({"content": "llo €"}),
        chunk({}, "stop"),
        b"[DONE]",
    ),
    _sse(chunk({"tool_calls": [_CALL]}), chunk({"tool_calls": [_MORE]}), chunk({}, "tool_calls"), b"[DONE]"),
    _sse(
        chunk({"content": "<think>a</thi"}),
        chunk({"content": "nk>b", "reasoning_content": "c"}),
        chunk({}, "stop"),
    ),
    b": ping\n\nevent: error\n" + _sse({"error": {"message": "no", "type": "server_error", "code": 500}}),
    json.dumps(
        {**chunk(), "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}
    ).encode(),
]
_ITEM = {"id": "fc1", "type": "function_call", "call_id": "c1", "name": "calculate", "arguments": ""}
_TEXT = {"id": "m1", "type": "message", "role": "assistant", "content": []}
_WHOLE = {"id": "r1", "object": "response", "status": "completed", "output": [], "model": "m"}
RESPONSE_STREAMS = [
    _events(
        {"type": "response.created", "response": {**_WHOLE, "status": "in_progress"}},
        {"type": "response.output_item.added", "output_index": 0, "item": _TEXT},
        {
            "type": "response.output_text.delta",
            "item_id": "m1",
            "output_index": 0,
            "content_index": 0,
            "delta": "Hi €",
        },
        {
            "type": "response.completed",
            "response": {**_WHOLE, "usage": {"input_tokens": 1, "output_tokens": 1}},
        },
    ),
    _events(
        {"type": "response.output_item.added", "output_index": 0, "item": _ITEM},
        {
            "type": "response.function_call_arguments.delta",
            "item_id": "fc1",
            "output_index": 0,
            "delta": '{"a": 1}',
        },
        {"type": "response.output_item.done", "output_index": 0, "item": {**_ITEM, "arguments": '{"a": 1}'}},
        {"type": "response.completed", "response": _WHOLE},
    ),
    _events({"type": "response.failed", "response": {**_WHOLE, "status": "failed", "error": {"code": "x"}}}),
]


_CONCURRENT = 16


async def provider(run: Run) -> None:
    """Mutated streams of both wires of a provider. A broken stream is 502, and never a defect of the server."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as client:
        # Failed calls are retried after a delay, so several run at once.
        pending = []
        while run.is_running():
            pending.append(_stream(run, client, f"question-{run.count}."))
            if len(pending) == _CONCURRENT:
                await asyncio.gather(*pending)
                pending.clear()
        await asyncio.gather(*pending)


async def _stream(run: Run, client: aiohttp.ClientSession, question: str) -> None:
    rng = run.rng
    team, streams = rng.choice((("chat", CHAT_STREAMS), ("responses", RESPONSE_STREAMS)))
    content = mutated(rng.choice(streams), rng)
    kind = rng.choice(("text/event-stream", "text/event-stream", "application/json", "text/html"))
    status = rng.choice((200, 200, 200, 200, 400, 404, 429, 500))
    run.provider.replies[question] = raw(*pieces(content, rng), content_type=kind, status=status)
    body = {"model": team, "messages": [{"role": "user", "content": question}], "stream": rng.random() < 0.5}
    async with client.post(f"{run.url}/v1/chat/completions", json=body) as response:
        answer = await response.read()
    del run.provider.replies[question]
    if response.status in (500, 501) or b'"internal_error"' in answer:
        raise Finding(f"{team} {status} {kind} {content!r}: {response.status} {answer!r}")
    if response.status == 200 and body["stream"] and not answer.rstrip().endswith(b"data: [DONE]"):
        raise Finding(f"{team} {content!r}: the stream has no end: {answer!r}")


# --- WebSockets ----------------------------------------------------------------------------------------------

_FRAMES: dict[str, list[Any]] = {
    "/v1/ws": [
        {"type": "start", "id": "1", "request": CHAT, "headers": {"X-Conversation-Id": "c"}},
        {"type": "subscribe", "id": "2", "turn_id": "chatcmpl-1", "after": "7.1", "types": ["text.delta"]},
        {"type": "unsubscribe", "id": "3", "turn_id": "chatcmpl-1"},
        {"type": "cancel", "id": "4", "turn_id": "chatcmpl-1"},
        {"type": "ping", "id": "5"},
    ],
    "/ws": [{"type": "chat", "data": {"message": "Hi", "conversation_id": "c"}}],
}
_DEFECT_CODES = (1006, 1011)


async def sockets(run: Run) -> None:
    """Frames of both WebSockets."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as client:
        while run.is_running():
            path = run.rng.choice(list(_FRAMES))
            sent: list[Any] = []
            async with client.ws_connect(run.url + path) as socket:
                for _ in range(run.rng.randint(1, 10)):
                    sent.append(await _send(run, socket, path))
                await _read(socket, sent)


async def _send(run: Run, socket: aiohttp.ClientWebSocketResponse, path: str) -> bytes:
    frame = run.rng.choice(_FRAMES[path])
    for _ in range(run.rng.randint(0, 2)):
        frame = changed(frame, run.rng)
    content = json.dumps(frame).encode()
    if run.rng.random() < 0.3:
        content = mutated(content, run.rng)
    if run.rng.random() < 0.2:
        await socket.send_bytes(content)
    else:
        await socket.send_str(content.decode("utf-8", "replace"))
    return content


async def _read(socket: aiohttp.ClientWebSocketResponse, sent: list[Any]) -> None:
    deadline = time.monotonic() + 0.2
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = await socket.receive(timeout=left)
        except TimeoutError:
            return
        if message.type is not aiohttp.WSMsgType.TEXT:
            if socket.close_code in _DEFECT_CODES:
                raise Finding(f"the socket was closed with {socket.close_code} after {sent!r}")
            return
        if "internal_error" in message.data:
            raise Finding(f"{sent!r}: {message.data}")


# --- team files and the description --------------------------------------------------------------------------


async def team_files(run: Run) -> None:
    """Mutated team files: either valid, or errors of the file, in a time that depends on their size alone."""
    valid = TEAMS.format(upstream="http://127.0.0.1:9/v1").encode() + b"x: &a [*a]\ny: {<<: {a: 1}}\n"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "teams.yaml"
        settings = load_settings(env_file=None, data_dir=Path(folder), teams=path)
        while run.is_running():
            content = mutated(valid, run.rng)
            path.write_bytes(content)
            began = time.thread_time()
            try:
                check_configured_teams(settings, environment={})
            except ConfigurationError:
                pass
            except Exception as error:
                raise Finding(f"{content!r}: {error!r}") from error
            if time.thread_time() - began > 2:
                raise Finding(f"{content!r}: it takes {time.thread_time() - began:.1f} s")
            await asyncio.sleep(0)


async def description(run: Run) -> None:
    """Requests that schemathesis makes of ``/openapi.json``, in a separate process."""
    left = int(run.deadline - time.monotonic())
    if left < 1:
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "run", f"{run.url}/openapi.json",
        "--checks", "not_a_server_error", "--max-time", str(left), "--seed", str(run.seed),
        "--generation-database", ".hypothesis/fuzz", "--request-timeout", "30", "--no-color", "--continue-on-failure",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise Finding(output.decode()[-6000:])


TARGETS = {
    "requests": requests,
    "description": description,
    "provider": provider,
    "sockets": sockets,
    "team_files": team_files,
}
