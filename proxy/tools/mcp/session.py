"""One session with an MCP server, in a separate task.

The SDK's task groups cancel the task that entered the connection, or raise exception groups in it, when the connection
fails. Therefore only the task of the session enters the connection. Each call is a task too: on cancellation the caller
returns at once, while the task sends the cancellation to the server.
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

from proxy.tools.mcp.errors import RECONNECT_AFTER, describe_open_error, map_error_code
from proxy.tools.mcp.failures import (
    INVALID_MESSAGE,
    REASONS,
    SESSION_ENDED,
    SESSION_EXPIRED,
    CallFailed,
    OpenFailed,
    SessionExpired,
)
from proxy.tools.mcp.http import http_streams
from proxy.tools.mcp.pins import Pin
from proxy.tools.mcp.setup import Program, ServerSetup
from proxy.tools.mcp.stdio import Child, stdio_streams
from proxy.tools.mcp.tool_list import list_tools, watch_tool_list

MAX_CONSECUTIVE_ABANDONED = 3
"""Number of consecutive calls cancelled by their callers after which the server is assumed to hang."""
MAX_ABANDONED = 50
"""Number of cancelled calls in all after which the session is replaced: over HTTP, each can occupy a connection."""

_LIST_DELAY = 1.0
_MAX_REASON = 500
_CLIENT = Implementation(name="handoff-proxy", version=version("handoff-proxy"))
# The SDK's call_tool is not used: it validates results against the server's output schema, whose patterns run in
# Python's ``re`` and can backtrack without limit.
_RESULT: TypeAdapter[CallToolResult | InputRequiredResult] = TypeAdapter(CallToolResult | InputRequiredResult)


class Session:
    """A session: call ``open`` once, then ``close`` in any case.

    ``on_tools`` is called with the new list of tools when the server reports a change after ``open``.
    """

    def __init__(
        self, setup: ServerSetup, *, on_tools: Callable[[Sequence[Pin]], None] | None = None
    ) -> None:
        self._setup = setup
        self._on_tools = on_tools
        self._child: Child | None = None
        self._client: Client | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run_session(), name=f"MCP session {setup.name}")
        self._end = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._consecutive_abandoned = 0
        self._abandoned = 0
        self._is_retired = False
        self._is_disconnected = False
        self._is_closing = False
        self._tools_changed = asyncio.Event()
        self.tools: Sequence[Pin] = ()

    async def open(self) -> None:
        """Wait until the session is initialised and the tools are listed.

        Raises:
            OpenFailed: The session could not be opened, or not within the time limit.
        """
        done, _ = await asyncio.wait((self._opened,), timeout=self._setup.connect_seconds)
        if not done:
            self._is_closing = True
            self._end.set()
            self._task.cancel()
            raise OpenFailed(
                f"did not respond within {self._setup.connect_seconds:g} seconds", self.stderr_tail
            )
        self._opened.result()

    @property
    def stderr_tail(self) -> str:
        """The end of the standard error of a program; empty for a server over HTTP."""
        return self._child.stderr_tail if self._child is not None else ""

    @property
    def is_usable(self) -> bool:
        """Whether new calls can use this session."""
        return not (self._is_retired or self._end.is_set() or self._task.done())

    @property
    def is_finished(self) -> bool:
        """Whether the session has ended and released its connection."""
        return self._task.done()

    async def call(self, tool: str, arguments: dict[str, Any], meta: dict[str, Any]) -> CallToolResult:
        """Call a tool and return the result of the server.

        On cancellation this returns at once; the server is notified in the background.

        Raises:
            CallFailed: There is no result; ``SessionExpired`` if the call certainly did not run.
        """
        call = asyncio.create_task(self._call(tool, arguments, meta), name=f"MCP call {self._setup.name}")
        self._calls.add(call)
        call.add_done_callback(self._discard_call)
        try:
            await asyncio.wait((call, self._task), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            call.cancel()
            self._count_abandoned()
            raise
        if not call.done() or call.cancelled():
            call.cancel()
            raise CallFailed(REASONS[SESSION_ENDED])
        self._consecutive_abandoned = 0
        outcome = call.result()
        if isinstance(outcome, CallFailed):
            raise outcome
        return outcome

    def retire(self) -> None:
        """Accept no more calls, and end the session when the running calls have ended."""
        self._is_retired = True
        if not self._calls:
            self._end.set()

    async def close(self) -> None:
        """End the session and its running calls, within a few seconds even if the server does not respond."""
        self._is_closing = True
        self._end.set()
        await asyncio.wait((self._task,), timeout=2 * self._setup.stop_seconds + 2)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=1)
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=1)

    # --- the task of the session ---

    async def _run_session(self) -> None:
        error = await self._run_until_end("auto")
        if self._is_disconnected and not self._opened.done() and not self._is_closing:
            # Some programs exit if the first message is not "initialize", which mode "auto" does not send first.
            self._end.clear()
            error = await self._run_until_end("legacy")
        self._fail(error or CallFailed(REASONS[SESSION_ENDED]))

    async def _run_until_end(self, mode: str) -> BaseException | None:
        """Run the session to its end; return the exception that ended it, None for a regular end."""
        try:
            await self._run(mode)
        except asyncio.CancelledError:
            self._fail(CallFailed(REASONS[SESSION_ENDED]))
            raise
        except BaseException as error:  # noqa: BLE001 - the SDK raises exception groups of any kind
            return error
        return None

    async def _run(self, mode: str) -> None:
        async with Client(
            self._streams(), mode=mode, cache=None, client_info=_CLIENT, message_handler=self._on_message
        ) as client:
            self._client = client
            self.tools = await list_tools(client)
            self._opened.set_result(None)
            refreshing = asyncio.create_task(
                self._refresh_tools(client), name=f"MCP tool list {self._setup.name}"
            )
            try:
                await self._end.wait()
            finally:
                refreshing.cancel()
                await asyncio.wait((refreshing,))

    def _fail(self, error: BaseException) -> None:
        """Mark the session as ended, and fail ``open`` if it is waiting."""
        if not self._opened.done():
            reason = (
                "ended before it listed its tools" if self._is_disconnected else describe_open_error(error)
            )
            self._opened.set_exception(OpenFailed(reason, self.stderr_tail))
            self._opened.exception()  # retrieved, or asyncio would log it if ``open`` is not waiting
        self._end.set()

    def _streams(self) -> AbstractAsyncContextManager[Any]:
        setup, max_bytes = self._setup, self._setup.max_answer_bytes
        if isinstance(setup.reach, Program):
            return stdio_streams(
                setup.reach,
                max_bytes=max_bytes,
                grace=setup.stop_seconds,
                on_child=self._set_child,
                on_end=self._on_disconnect,
            )
        return http_streams(setup.reach, connect_seconds=setup.connect_seconds, max_bytes=max_bytes)

    def _on_disconnect(self) -> None:
        self._is_disconnected = True
        self._end.set()

    def _set_child(self, child: Child) -> None:
        self._child = child

    # --- list of tools ---

    async def _on_message(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._tools_changed.set()

    async def _refresh_tools(self, client: Client) -> None:
        """List the tools again after each change."""
        subscription = asyncio.create_task(
            watch_tool_list(client, self._tools_changed.set), name=f"MCP subscription {self._setup.name}"
        )
        try:
            while True:
                await self._tools_changed.wait()
                self._tools_changed.clear()
                try:
                    async with asyncio.timeout(self._setup.connect_seconds):
                        self.tools = await list_tools(client)
                except (MCPError, CallFailed, TimeoutError, pydantic.ValidationError):
                    self.retire()
                    return
                if self._on_tools is not None:
                    self._on_tools(self.tools)
                await asyncio.sleep(_LIST_DELAY)
        finally:
            subscription.cancel()
            await asyncio.wait((subscription,))

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
            return CallFailed(REASONS[INVALID_MESSAGE])
        except RuntimeError:  # the session ended before the call started
            self.retire()
            return CallFailed(REASONS[SESSION_ENDED])
        if isinstance(result, InputRequiredResult):
            return CallFailed("requested user input during the call (elicitation), which is not supported")
        return result

    def _failure(self, error: MCPError) -> CallFailed:
        code = map_error_code(error)
        if code in RECONNECT_AFTER:
            self.retire()
        if code == SESSION_EXPIRED:
            return SessionExpired()
        # A JSON-RPC error of the server itself is passed to the model, like a result.
        return CallFailed(REASONS.get(code) or f"rejected the call: {error.message[:_MAX_REASON]}")

    def _discard_call(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()
        if self._is_retired and not self._calls:
            self._end.set()

    def _count_abandoned(self) -> None:
        self._consecutive_abandoned += 1
        self._abandoned += 1
        if self._consecutive_abandoned >= MAX_CONSECUTIVE_ABANDONED:
            self._end.set()
        elif self._abandoned >= MAX_ABANDONED:
            self.retire()
