"""One session with an MCP server, in a task of its own.

What happens to a connection reaches whoever entered it: the SDK's task groups cancel that task, or raise groups of
exceptions in it. So the only one to enter is the session's own task. A call is a task too, and whoever waits for it
can leave at once, while the server is told that nobody waits any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any, cast

import pydantic
from mcp import Client, MCPError
from mcp_types import (
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    InputRequiredResult,
    RequestParamsMeta,
    ToolListChangedNotification,
)
from pydantic import TypeAdapter

from proxy.tools.mcp.errors import DOUBTFUL, code_of, reason_for
from proxy.tools.mcp.failures import (
    ENDED,
    OURS,
    SESSION_OVER,
    UNREADABLE,
    CallFailed,
    OpenFailed,
    SessionOver,
)
from proxy.tools.mcp.http import http_streams
from proxy.tools.mcp.pins import Pin
from proxy.tools.mcp.setup import Program, ServerSetup
from proxy.tools.mcp.stdio import Child, stdio_streams
from proxy.tools.mcp.tool_list import listed, tell_of_changes

MAX_UNANSWERED = 3
"""After so many calls in a row that nobody wanted to wait for any longer, the server is taken to hang."""
MAX_LEFT = 50
"""After so many of them in all there is a new session: over HTTP, each may hold a connection until it is answered."""

_LIST_PAUSE = 1.0
_MAX_REASON = 500
_CLIENT = Implementation(name="handoff-proxy", version=version("handoff-proxy"))
# Not the SDK's call_tool: it runs the patterns of the server's own output schema over the server's own output, by
# expressions that can take for ever.
_RESULT: TypeAdapter[CallToolResult | InputRequiredResult] = TypeAdapter(CallToolResult | InputRequiredResult)


class Session:
    """A session; ``open`` it once, and ``close`` it whatever came of that.

    ``on_tools`` is called with the server's tools when it tells of other ones later.
    """

    def __init__(
        self, setup: ServerSetup, *, on_tools: Callable[[Sequence[Pin]], None] | None = None
    ) -> None:
        self._setup = setup
        self._on_tools = on_tools
        self._child: Child | None = None
        self._client: Client | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._host = asyncio.create_task(self._live(), name=f"MCP session {setup.name}")
        self._end = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._unanswered = 0
        self._left = 0
        self._is_doubtful = False
        self._is_lost = False
        self._is_closing = False
        self._news = asyncio.Event()
        self.tools: Sequence[Pin] = ()

    async def open(self) -> None:
        """Wait until the server has told its tools.

        Raises:
            OpenFailed: It has not, and will not.
        """
        done, _ = await asyncio.wait((self._opened,), timeout=self._setup.connect_seconds)
        if not done:
            self._is_closing = True
            self._end.set()
            self._host.cancel()
            raise OpenFailed(
                f"did not answer within {self._setup.connect_seconds:g} seconds", self.last_words
            )
        self._opened.result()

    @property
    def last_words(self) -> str:
        """The end of what a program wrote to its standard error."""
        return self._child.last_words if self._child is not None else ""

    @property
    def is_usable(self) -> bool:
        """Whether a further call should be made over this session."""
        return not (self._is_doubtful or self._end.is_set() or self._host.done())

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return self._host.done()

    async def call(self, tool: str, arguments: dict[str, Any], meta: dict[str, Any]) -> CallToolResult:
        """Call a tool, and return what the server gives.

        Cancelled, this ends at once, and the server is told in passing.

        Raises:
            CallFailed: There is no result; ``SessionOver`` when the call was certainly not run.
        """
        call = asyncio.create_task(self._call(tool, arguments, meta), name=f"MCP call {self._setup.name}")
        self._calls.add(call)
        call.add_done_callback(self._forget)
        try:
            await asyncio.wait((call, self._host), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            call.cancel()
            self._leave_unanswered()
            raise
        if not call.done() or call.cancelled():
            call.cancel()
            raise CallFailed(OURS[ENDED])
        self._unanswered = 0
        outcome = call.result()
        if isinstance(outcome, CallFailed):
            raise outcome
        return outcome

    def retire(self) -> None:
        """Make no more calls over this session, and end it when those under way have ended."""
        self._is_doubtful = True
        if not self._calls:
            self._end.set()

    async def close(self) -> None:
        """End it, and what is under way over it, within a few seconds whatever its server does."""
        self._is_closing = True
        self._end.set()
        await asyncio.wait((self._host,), timeout=2 * self._setup.stop_seconds + 2)
        if not self._host.done():
            self._host.cancel()
            await asyncio.wait((self._host,), timeout=1)
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=1)

    # --- the session's own task ---

    async def _live(self) -> None:
        error = await self._lived("auto")
        if self._is_lost and not self._opened.done() and not self._is_closing:
            # Some programs end when the first that they hear is not "initialize".
            self._end.clear()
            error = await self._lived("legacy")
        self._fail(error or CallFailed(OURS[ENDED]))

    async def _lived(self, mode: str) -> BaseException | None:
        """Live to the end, and return what it was when it came unwanted."""
        try:
            await self._run(mode)
        except asyncio.CancelledError:
            self._fail(CallFailed(OURS[ENDED]))
            raise
        except BaseException as error:  # noqa: BLE001 - the SDK raises groups, of whatever its tasks met
            return error
        return None

    async def _run(self, mode: str) -> None:
        async with Client(
            self._streams(), mode=mode, cache=None, client_info=_CLIENT, message_handler=self._hear
        ) as client:
            self._client = client
            self.tools = await listed(client)
            self._opened.set_result(None)
            following = asyncio.create_task(self._follow(client), name=f"MCP news {self._setup.name}")
            try:
                await self._end.wait()
            finally:
                following.cancel()
                await asyncio.wait((following,))

    def _fail(self, error: BaseException) -> None:
        """Note the end of the session, for whoever waits for its beginning."""
        if not self._opened.done():
            reason = "ended before it had told its tools" if self._is_lost else reason_for(error)
            self._opened.set_exception(OpenFailed(reason, self.last_words))
            self._opened.exception()  # it is no defect if nobody asks for it
        self._end.set()

    def _streams(self) -> AbstractAsyncContextManager[Any]:
        setup, most = self._setup, self._setup.max_answer_bytes
        if isinstance(setup.reach, Program):
            return stdio_streams(
                setup.reach,
                max_bytes=most,
                grace=setup.stop_seconds,
                on_child=self._meet,
                on_end=self._lose,
            )
        return http_streams(setup.reach, connect_seconds=setup.connect_seconds, max_bytes=most)

    def _lose(self) -> None:
        self._is_lost = True
        self._end.set()

    def _meet(self, child: Child) -> None:
        self._child = child

    # --- which tools there are ---

    async def _hear(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._news.set()

    async def _follow(self, client: Client) -> None:
        """Read the list again whenever it has changed."""
        listening = asyncio.create_task(
            tell_of_changes(client, self._news.set), name=f"MCP subscription {self._setup.name}"
        )
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                try:
                    async with asyncio.timeout(self._setup.connect_seconds):
                        self.tools = await listed(client)
                except (MCPError, CallFailed, TimeoutError, pydantic.ValidationError):
                    self.retire()
                    return
                if self._on_tools is not None:
                    self._on_tools(self.tools)
                await asyncio.sleep(_LIST_PAUSE)
        finally:
            listening.cancel()
            await asyncio.wait((listening,))

    # --- calls ---

    async def _call(
        self, tool: str, arguments: dict[str, Any], meta: dict[str, Any]
    ) -> CallToolResult | CallFailed:
        assert self._client is not None
        params = CallToolRequestParams(name=tool, arguments=arguments, _meta=cast("RequestParamsMeta", meta))
        request = CallToolRequest(params=params)
        try:
            result = await self._client.session.send_request(request, _RESULT)
        except MCPError as error:
            return self._failure(error)
        except pydantic.ValidationError:
            self.retire()
            return CallFailed(OURS[UNREADABLE])
        except RuntimeError:  # the session was over before the call began
            self.retire()
            return CallFailed(OURS[ENDED])
        if isinstance(result, InputRequiredResult):
            return CallFailed(
                "asks for an answer of the user's in the middle of a call, which is not possible here"
            )
        return result

    def _failure(self, error: MCPError) -> CallFailed:
        code = code_of(error)
        if code in DOUBTFUL:
            self.retire()
        if code == SESSION_OVER:
            return SessionOver()
        # What the server itself says is for the model, as a result would be.
        return CallFailed(OURS.get(code) or f"refused the call: {error.message[:_MAX_REASON]}")

    def _forget(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()
        if self._is_doubtful and not self._calls:
            self._end.set()

    def _leave_unanswered(self) -> None:
        self._unanswered += 1
        self._left += 1
        if self._unanswered >= MAX_UNANSWERED:
            self._end.set()
        elif self._left >= MAX_LEFT:
            self.retire()
