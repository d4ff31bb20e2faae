"""Connection manager of one MCP server: opens sessions on demand, calls tools, and withdraws tools that changed.

A failure is a ``ToolError`` with a message for the model. After a failed attempt to connect there is a backoff.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from proxy.errors import ToolError
from proxy.tools.mcp.failures import CallFailed, OpenFailed, SessionExpired
from proxy.tools.mcp.pins import Comparison, Pin, compare, filter_allowed
from proxy.tools.mcp.results import result_text
from proxy.tools.mcp.session import Session
from proxy.tools.mcp.setup import Program, ServerSetup
from proxy.tracing import Attribute, TraceSpan, Value, span, trace_headers

logger = logging.getLogger(__name__)

FIRST_DELAY = 1.0
MAX_DELAY = 30.0
"""Seconds between attempts to open a session: the first delay is doubled with each failure, up to the maximum."""

CALL_KEY = "handoff-proxy/call-key"
"""Key in ``_meta`` of a call (MCP specification, "_meta"): an idempotency key, equal for all attempts of the call."""

_MAX_LOGGED_NAMES = 50
_MAX_LOGGED_LENGTH = 100


class McpServer:
    """One configured server; ``pins`` are the accepted definitions of the tools that agents can use.

    ``start`` opens a session in the background; ``close`` closes all sessions.
    """

    def __init__(
        self, setup: ServerSetup, pins: Mapping[str, Pin], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = setup.name
        self._setup = setup
        self._pins = pins
        self._clock = clock
        self._session: Session | None = None
        self._sessions: set[Session] = set()
        self._opening: asyncio.Task[None] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._last_failure = ""
        self._logged = Comparison()
        self._withdrawn: frozenset[str] = frozenset()
        self._is_closed = False

    def offers(self, tool: str) -> bool:
        """Return whether the tool matches its pin, according to the newest list of tools."""
        return tool not in self._withdrawn

    def start(self) -> None:
        """Open a session in the background; if that fails, the next call tries again."""
        self._start_opening()

    async def call(self, tool: str, arguments: dict[str, Any], *, call_key: str) -> str:
        """Call a pinned tool and return its result as text.

        Raises:
            ToolError: The call failed or the tool reported an error; the message is for the model.
        """
        limit = self._setup.call_seconds
        with self._span(tool):
            try:
                async with asyncio.timeout(limit):
                    return await self._call(tool, arguments, {CALL_KEY: call_key, **trace_headers()})
            except TimeoutError:
                raise self._error(f"did not respond within {limit:g} seconds") from None

    def _span(self, tool: str) -> AbstractContextManager[TraceSpan]:
        attributes: dict[Attribute, Value] = {
            Attribute.OPERATION: "execute_tool",
            Attribute.MCP_METHOD: "tools/call",
            Attribute.MCP_SERVER: self.name,
            Attribute.TOOL: tool,
            Attribute.NETWORK_TRANSPORT: "pipe" if isinstance(self._setup.reach, Program) else "tcp",
        }
        return span(f"tools/call {tool}", attributes, is_client=True)

    async def close(self) -> None:
        """Close all sessions and open no others."""
        self._is_closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        await asyncio.gather(*(session.close() for session in self._sessions))

    async def _call(self, tool: str, arguments: dict[str, Any], meta: dict[str, Any]) -> str:
        for attempt in (1, 2):
            session = await self._usable_session()
            if tool in self._withdrawn:
                raise ToolError(
                    "the definition of the tool has changed since the operator accepted it; it is disabled"
                )
            try:
                return result_text(await session.call(tool, arguments, meta))
            except SessionExpired as failure:
                if attempt == 2:
                    raise self._error(failure.reason) from None
            except CallFailed as failure:
                logger.warning("MCP tool call failed", extra={"server": self.name, "tool": tool})
                raise self._error(failure.reason) from None
        raise AssertionError("the second attempt returns or raises")

    # --- sessions ---

    async def _usable_session(self) -> Session:
        if self._session is not None and self._session.is_usable:
            return self._session
        if self._is_closed:
            raise self._error("is disconnected because the proxy is shutting down")
        if self._opening is None:
            wait = self._not_before - self._clock()
            if wait > 0:
                raise self._error(f"{self._last_failure}; retry in {max(round(wait), 1)} seconds")
            self._start_opening()
        assert self._opening is not None
        await asyncio.wait((self._opening,))
        if self._session is None or not self._session.is_usable:
            raise self._error(self._last_failure or "ended")
        return self._session

    def _start_opening(self) -> None:
        self._opening = asyncio.create_task(self._open(), name=f"MCP server {self.name}")

    async def _open(self) -> None:
        if self._session is not None:
            self._session.retire()
        session = Session(self._setup, on_tools=lambda tools: self._check(session, tools))
        self._sessions = {old for old in self._sessions if not old.is_finished} | {session}
        try:
            await session.open()
        except OpenFailed as failure:
            self._last_failure = failure.reason
            self._not_before = self._clock() + min(FIRST_DELAY * 2**self._failures, MAX_DELAY)
            self._failures = min(self._failures + 1, 10)
            logger.warning(
                "failed to connect to MCP server", extra={"server": self.name, "reason": failure.reason}
            )
        else:
            self._session, self._failures, self._last_failure = session, 0, ""
            self._check(session, session.tools)
        finally:
            self._opening = None

    # --- pins ---

    def _check(self, session: Session, tools: Sequence[Pin]) -> None:
        """Withdraw tools that differ from their pins, and log a new result of the comparison."""
        if session is not self._session:
            return
        found = compare(self._pins, filter_allowed(tools, self._setup.tools))
        self._withdrawn = frozenset(found.names("changed", "missing"))
        if found != self._logged:
            self._logged = found
            different = {
                status: _log_names(found.names(status)) for status in ("changed", "missing", "unpinned")
            }
            if any(different.values()):
                logger.warning(
                    "MCP tools differ from their pins and are disabled",
                    extra={
                        "server": self.name,
                        **{status: names for status, names in different.items() if names},
                    },
                )
            else:
                logger.info("MCP server connected", extra={"server": self.name, "tools": len(self._pins)})

    def _error(self, reason: str) -> ToolError:
        return ToolError(f"the MCP server '{self.name}' {reason}")


def _log_names(names: Sequence[str]) -> list[str]:
    """Limit names from a server for the log."""
    return [name[:_MAX_LOGGED_LENGTH] for name in names[:_MAX_LOGGED_NAMES]]
