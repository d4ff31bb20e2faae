"""A2A agents that send invalid or endless answers, or that lead to other servers: raw HTTP, without the SDK."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import Caller, user
from tests.server import serve

if find_spec("a2a") is None and not os.environ.get("HANDOFF_TEST_REQUIRE_ALL"):
    pytest.skip("a2a-sdk is not installed", allow_module_level=True)

MEGABYTE = b"a" * 1_000_000
CARD = {
    "name": "t", "description": "d", "version": "1", "skills": [],
    "defaultInputModes": ["text"], "defaultOutputModes": ["text"],
}  # fmt: skip
Answer = bytes | Iterable[bytes]


def response(status: int, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def open_response(kind: str, *parts: bytes) -> Iterable[bytes]:
    yield f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()
    yield from parts


def stream(*results: Any) -> Iterable[bytes]:
    return open_response(
        "text/event-stream",
        *(
            b"data: " + json.dumps({"jsonrpc": "2.0", "id": "1", "result": result}).encode() + b"\n\n"
            for result in results
        ),
    )


def card(port: int, *, streaming: bool = True) -> bytes:
    interface = {
        "url": f"http://127.0.0.1:{port}/rpc",
        "protocolBinding": "JSONRPC",
        "protocolVersion": "1.0",
    }
    body = {**CARD, "capabilities": {"streaming": streaming}, "supportedInterfaces": [interface]}
    return response(200, json.dumps(body).encode())


def task(state: str | int | None, task_id: str = "t1") -> dict[str, Any]:
    return {
        "task": {"id": task_id, "contextId": "c1", **({} if state is None else {"status": {"state": state}})}
    }


def message(said: str, **metadata: Any) -> dict[str, Any]:
    parts = [{"text": said}]
    return {"message": {"messageId": "m", "role": "ROLE_AGENT", "parts": parts, "metadata": metadata}}


@asynccontextmanager
async def raw_server(answer: Callable[[str], Answer]) -> AsyncIterator[int]:
    """A server that answers each request with the bytes for its method; yields its port."""

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            answered = answer(head.partition(" ")[0])
            for part in [answered] if isinstance(answered, bytes) else answered:
                writer.write(part)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def asked(folder: Path, cards: Callable[[int], Answer], answer: Answer) -> AsyncIterator[Caller]:
    """The server with an A2A agent that has this card and gives this answer."""
    ports: list[int] = []

    def on_request(method: str) -> Answer:
        return cards(ports[0]) if method == "GET" else answer

    async with raw_server(on_request) as port:
        ports.append(port)
        url = f"{{url: 'http://127.0.0.1:{port}', headers: {{Authorization: Bearer secret-key}}}}"
        (folder / "team.yaml").write_text(f"teams: {{far: {{a2a: {url}}}}}")
        async with serve(folder, teams=folder / "team.yaml") as served:
            yield Caller(served)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda: open_response("text/event-stream"), id="nothing"),
        pytest.param(lambda: open_response("text/event-stream", b"data: no json\n\n"), id="no JSON"),
        pytest.param(lambda: open_response("text/event-stream", bytes(range(256)) * 10), id="bytes"),
        pytest.param(lambda: stream({"foo": 1}), id="unknown object"),
        pytest.param(lambda: stream(task("TASK_STATE_PARTY")), id="unknown state"),
        pytest.param(lambda: stream(task(99)), id="number of an unknown state"),
        pytest.param(lambda: stream(task(None)), id="no state"),
        pytest.param(lambda: stream(task("TASK_STATE_WORKING", "")), id="working without an id"),
        pytest.param(lambda: response(307, b"", "Location: http://127.0.0.1:9/"), id="redirect"),
        pytest.param(
            lambda: open_response("text/event-stream", b"data: ", *[MEGABYTE] * 40), id="huge event"
        ),
        pytest.param(
            lambda: open_response("text/event-stream", *[b"data: a\n" * 1_000] * 40),
            id="huge event of lines",
        ),
        pytest.param(
            lambda: response(200, gzip.compress(MEGABYTE * 40), "Content-Encoding: gzip"), id="compressed"
        ),
    ],
)
async def test_an_invalid_answer_is_a_typed_error(answer: Callable[[], Answer], tmp_path: Path) -> None:
    async with asked(tmp_path, card, answer()) as caller:
        with pytest.raises(openai.APIStatusError) as failed:
            await caller.ask([user("Hi")], model="far")

    assert (failed.value.status_code, failed.value.code) == (502, "agent_failed")
    assert "secret" not in failed.value.message


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(lambda port: response(200, b"<html>"), id="no JSON"),
        pytest.param(lambda port: response(200, b"[]"), id="list"),
        pytest.param(lambda port: open_response("application/json", b'{"a":"', *[MEGABYTE] * 40), id="huge"),
    ],
)
async def test_an_invalid_card_is_a_typed_error(found: Callable[[int], Answer], tmp_path: Path) -> None:
    async with asked(tmp_path, found, b"") as caller:
        with pytest.raises(openai.APIStatusError) as failed:
            await caller.ask([user("Hi")], model="far")

    assert (failed.value.status_code, failed.value.code) == (502, "agent_failed")


@pytest.mark.parametrize("way", ["card", "redirect"])
async def test_no_other_server_gets_a_request(way: str, tmp_path: Path) -> None:
    requests: list[str] = []

    def on_request(method: str) -> Answer:
        requests.append(method)
        return response(500, b"")

    async with raw_server(on_request) as other:
        redirect = response(302, b"", f"Location: http://127.0.0.1:{other}/card")
        async with asked(tmp_path, lambda port: card(other) if way == "card" else redirect, b"") as caller:
            with pytest.raises(openai.APIStatusError) as failed:
                await caller.ask([user("Hi")], model="far")

    assert failed.value.code == "agent_failed"
    assert requests == []


@pytest.mark.parametrize("handoff", ["Desk", {"to": ["Desk"]}, {"to": "nobody"}, {"to": None}, 5])
async def test_metadata_without_a_known_agent_hands_over_to_none(handoff: Any, tmp_path: Path) -> None:
    async with asked(tmp_path, card, list(stream(message("Hello", handoff=handoff)))) as caller:
        assert await caller.ask([user("Hi")], model="far") == "Hello"


async def test_a_completed_task_remains_completed(tmp_path: Path) -> None:
    late = {"statusUpdate": {"taskId": "t1", "contextId": "c1", "status": {"state": "TASK_STATE_WORKING"}}}
    artifact = {"artifactId": "a", "parts": [{"text": "Hello"}]}
    update = {"artifactUpdate": {"taskId": "t1", "contextId": "c1", "artifact": artifact}}
    done = {"statusUpdate": {"taskId": "t1", "contextId": "c1", "status": {"state": "TASK_STATE_COMPLETED"}}}
    answer = list(stream(task("TASK_STATE_WORKING"), update, done, late))
    async with asked(tmp_path, card, answer) as caller:
        assert await caller.ask([user("Hi")], model="far") == "Hello"


async def test_large_answers_of_small_events_are_not_bounded_by_the_size_of_an_event(tmp_path: Path) -> None:
    pieces = [
        {"artifactUpdate": {"taskId": "t1", "contextId": "c1", "append": True,
                            "artifact": {"artifactId": "a", "parts": [{"raw": "YQ==" * 250_000}]}}}
        for _ in range(20)
    ]  # fmt: skip
    answer = list(stream(task("TASK_STATE_WORKING"), *pieces, task("TASK_STATE_COMPLETED")))
    async with asked(tmp_path, card, answer) as caller:
        assert "[file " in await caller.ask([user("Hi")], model="far")
