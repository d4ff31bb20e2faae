"""HTTP clients without an SDK, for exact requests and responses."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import httpx2
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server import Served

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


class Wire:
    """Posts to ``/chat/completions``; ``body`` replaces keys of a default body with one greeting.

    It requests no extensions, and by default uses a separate key, so that tests share no conversations.
    """

    def __init__(self, served: Served, key: str = "") -> None:
        headers = {"Authorization": f"Bearer {key or secrets.token_hex(8)}", "X-Handoff-Events": "none"}
        self.http = httpx2.AsyncClient(base_url=served.base_url, headers=headers, timeout=20)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def ask(self, *, headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
        return await self.http.post(
            "/chat/completions", json={"model": "shop", "messages": HELLO, **body}, headers=headers
        )

    async def completion(self, **body: Any) -> ChatCompletion:
        """Return the response, validated strictly by the types of the SDK."""
        response = await self.ask(**body)
        assert response.status_code == 200, response.text
        return ChatCompletion.model_validate_json(response.content, strict=True)

    async def frames(self, **body: Any) -> list[Any]:
        """Return the decoded payloads of a stream, with ``[DONE]`` as text."""
        response = await self.ask(stream=True, **body)
        assert response.status_code == 200, response.text
        return payloads(response.text)

    async def raw(self, body: bytes, **headers: str) -> httpx2.Response:
        return await self.http.post("/chat/completions", content=body, headers=headers)


def payloads(body: str) -> list[Any]:
    """Return the data of all frames; chunks are validated strictly by the types of the SDK."""
    found: list[Any] = []
    for frame in body.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in frame.split("\n") if not line.startswith((":", "id: "))]
        if not lines:
            continue  # a comment
        assert len(lines) == 1, frame
        data = lines[0].removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
        if data != "[DONE]" and "error" not in found[-1]:
            ChatCompletionChunk.model_validate_json(data, strict=True)
    return found


def deltas(frames: list[Any]) -> list[Any]:
    """Return the deltas of the only choice, in order."""
    return [chunk["choices"][0]["delta"] for chunk in frames if chunk != "[DONE]" and chunk.get("choices")]


def count_rows(served: Served) -> int:
    """Return the number of rows of conversations, turns and items in the database."""
    file = served.services.settings.data_dir / "handoff-proxy.sqlite"
    with closing(sqlite3.connect(file)) as database:
        tables = ("conversations", "turns", "items")
        return sum(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)


def check_refusal(response: httpx2.Response, status: int = 400) -> dict[str, Any]:
    """Check the error envelope and return the error object."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    assert len(response.content) <= 2000
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


@dataclass(frozen=True)
class Reply:
    """An HTTP response; ``raw`` are all its bytes."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes


class Socket:
    """A TCP connection to the server, for requests that HTTP clients cannot send."""

    def __init__(self, served: Served) -> None:
        host, port = served.url.removeprefix("http://").split(":")
        self._address = (host, int(port))

    async def __aenter__(self) -> Socket:
        self.reader, self.writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def post(self, body: bytes, *headers: str, length: int | None = None) -> None:
        """Send a request; ``length`` is the Content-Length, by default that of the body."""
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            "Host: 127.0.0.1",
            f"Content-Length: {len(body) if length is None else length}",
            *headers,
        ]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def post_chunks(self, *pieces: bytes, end: bool = False) -> None:
        """Send a request with a chunked body, optionally without its end."""
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        await self.send(head, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces))
        if end:
            await self.send(b"0\r\n\r\n")

    async def reply(self, within: float = 10) -> Reply:
        """Read a complete response, chunked or with a length; ``body`` is without the framing."""
        async with asyncio.timeout(within):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:-2])
            }
            raw, body = b"", b""
            if headers.get("transfer-encoding") == "chunked":
                while True:
                    line = await self.reader.readuntil(b"\r\n")
                    data = await self.reader.readexactly(int(line, 16) + 2)
                    raw += line + data
                    body += data[:-2]
                    if int(line, 16) == 0:
                        break
            else:
                body = raw = await self.reader.readexactly(int(headers["content-length"]))
            return Reply(int(lines[0].split(" ")[1]), headers, body, head + raw)
