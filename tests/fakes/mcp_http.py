"""An MCP server over streamable HTTP, of the protocol of 2025, written by hand so that it can misbehave.

In a test, in the same loop::

    async with FakeMcp() as server:
        server.reply("echo", cut())            # how calls of a tool are answered; by default with their text
        ...                                    # ask server.url
        assert server.calls[0]["arguments"] == {"text": "Hi"}
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tests.fakes.replies import JSON, Reply, Stop, raw
from tests.fakes.upstream import FakeUpstream, Received

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def described(name: str, description: str = "", **more: Any) -> dict[str, Any]:
    """A tool as a server lists it."""
    return {"name": name, "description": description or f"The tool {name}.", "inputSchema": TEXT, **more}


def result(received: Received, **content: Any) -> Reply:
    """The answer to a request, as JSON."""
    return raw(_message(received.body["id"], result=content), content_type=JSON)


def says(text: str) -> Callable[[Received], Reply]:
    """Answer calls with this text."""
    return lambda received: result(received, content=[{"type": "text", "text": text}])


def streamed(received: Received, *messages: Mapping[str, Any]) -> Reply:
    """The answer to a request as a stream of events, each a message."""
    return raw(*(b"data: " + json.dumps(message).encode() + b"\n\n" for message in messages))


class FakeMcp:
    """The server, as a context manager. With ``is_stateful`` false it gives out no session ids."""

    def __init__(self, *, port: int = 0, is_stateful: bool = True, page: int = 100) -> None:
        self.tools: list[dict[str, Any]] = [described("echo", "Say it again."), described("other")]
        self.sessions: set[str] = set()
        self.begun = 0
        """How many sessions were begun."""
        self.calls: list[dict[str, Any]] = []
        self.cancelled: list[Any] = []
        self.changed = asyncio.Event()
        """If set, all clients are notified that the list of tools has changed."""
        self._replies: dict[str, Callable[[Received], Reply]] = {}
        self._is_stateful = is_stateful
        self._page = page
        self._server = FakeUpstream(answer=self._answer, lists_models=False, port=port)

    @property
    def url(self) -> str:
        return self._server.base_url.removesuffix("/v1") + "/mcp"

    @property
    def requests(self) -> list[Received]:
        return self._server.requests

    def reply(self, tool: str, reply: Reply | Callable[[Received], Reply]) -> None:
        """Answer calls of a tool like this from now on."""
        self._replies[tool] = (lambda received: reply) if isinstance(reply, Reply) else reply

    def forget(self) -> None:
        """Be as after a restart: no session is known any more."""
        self.sessions.clear()

    async def received(self, method: str, within: float = 5.0) -> Received:
        """Wait for a message of this method."""
        count = 1
        while True:
            found = await self._server.received(count, within)
            if isinstance(found.body, dict) and found.body.get("method") == method:
                return found
            count += 1

    async def __aenter__(self) -> FakeMcp:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, value, trace)

    def _answer(self, received: Received) -> Reply:
        session = received.headers.get("mcp-session-id")
        match received.method, received.body:
            case "POST", {"method": "server/discover", "id": number}:
                return raw(
                    _message(number, error={"code": -32601, "message": "Method not found"}), content_type=JSON
                )
            case "POST", {"method": "initialize"}:
                return self._begin(received)
            case _ if self._is_stateful and session not in self.sessions:
                return raw(b"no such session", status=404, content_type="text/plain")
            case "DELETE", _:
                self.sessions.discard(session or "")
                return raw(content_type=JSON)
            case "GET", _:
                news = b'data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n\n'
                return raw(self.changed, news, Stop.HANG)
            case "POST", {"method": "tools/list"}:
                return self._list(received, received.body.get("params") or {})
            case "POST", {"method": "tools/call", "params": params}:
                self.calls.append(params)
                echo = says(str(params.get("arguments", {}).get("text", "")))
                return self._replies.get(params["name"], echo)(received)
            case "POST", {"method": "notifications/cancelled", "params": params}:
                self.cancelled.append(params["requestId"])
            case _:
                pass
        return raw(status=202, content_type=JSON)

    def _begin(self, received: Received) -> Reply:
        self.begun += 1
        content = {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "fake", "version": "1"},
        }
        headers = {}
        if self._is_stateful:
            session = f"session-{self.begun}"
            self.sessions.add(session)
            headers = {"mcp-session-id": session}
        return raw(_message(received.body["id"], result=content), headers=headers, content_type=JSON)

    def _list(self, received: Received, params: Mapping[str, Any]) -> Reply:
        start = int(params.get("cursor", 0))
        shown = self.tools[start : start + self._page]
        more = {"nextCursor": str(start + self._page)} if start + self._page < len(self.tools) else {}
        return result(received, tools=shown, **more)


def _message(number: Any, **content: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, **content}).encode()
