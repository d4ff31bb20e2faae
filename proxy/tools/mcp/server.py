"""An MCP server as tools see it: there is a session when one is needed, and a sentence when there is none."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from proxy.errors import ToolError
from proxy.tools.mcp.failures import CallFailed, OpenFailed, SessionOver
from proxy.tools.mcp.pins import Comparison, Pin, allowed, compared
from proxy.tools.mcp.results import result_text
from proxy.tools.mcp.session import Session
from proxy.tools.mcp.setup import ServerSetup

logger = logging.getLogger(__name__)

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds between attempts to begin a session: the first pause, doubled each time up to the longest."""

CALL_KEY = "handoff-proxy/call-key"
"""In a call's ``_meta``: the same for every attempt of the same call, so that a server can recognise a repeat."""

_MAX_TOLD = 50
_SHOWN_LENGTH = 100


class McpServer:
    """One server of the operator's. ``start`` begins a session without waiting for it; ``close`` ends everything.

    ``pins`` are the tools that agents may have, as they were accepted.
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
        self._trouble = ""
        self._told = Comparison()
        self._withdrawn: frozenset[str] = frozenset()
        self._is_closed = False

    def offers(self, tool: str) -> bool:
        """Whether the tool still is what was pinned, as far as is known."""
        return tool not in self._withdrawn

    def start(self) -> None:
        """Begin a session; when that fails, the next call tries again."""
        self._open_soon()

    async def call(self, tool: str, arguments: dict[str, Any], *, call_key: str) -> str:
        """Call a pinned tool, and return its result as text.

        Raises:
            ToolError: With what is wrong, in words of ours or of the tool's.
        """
        limit = self._setup.call_seconds
        try:
            async with asyncio.timeout(limit):
                return await self._call(tool, arguments, call_key)
        except TimeoutError:
            raise self._error(f"did not answer within {limit:g} seconds") from None

    async def close(self) -> None:
        """End every session, and begin no other."""
        self._is_closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        await asyncio.gather(*(session.close() for session in self._sessions))

    async def _call(self, tool: str, arguments: dict[str, Any], call_key: str) -> str:
        for attempt in (1, 2):
            session = await self._usable_session()
            if tool in self._withdrawn:
                raise ToolError(
                    "the tool has changed since the operator of this server accepted it, and is not used any more"
                )
            try:
                return result_text(await session.call(tool, arguments, {CALL_KEY: call_key}))
            except SessionOver as failure:
                if attempt == 2:
                    raise self._error(failure.reason) from None
            except CallFailed as failure:
                logger.warning("a call of an MCP server failed", extra={"server": self.name, "tool": tool})
                raise self._error(failure.reason) from None
        raise AssertionError("the second attempt returns or raises")

    # --- sessions ---

    async def _usable_session(self) -> Session:
        if self._session is not None and self._session.is_usable:
            return self._session
        if self._is_closed:
            raise self._error("is not asked any more, because the proxy is stopping")
        if self._opening is None:
            wait = self._not_before - self._clock()
            if wait > 0:
                raise self._error(f"{self._trouble}; it is tried again in {max(round(wait), 1)} seconds")
            self._open_soon()
        assert self._opening is not None
        await asyncio.wait((self._opening,))
        if self._session is None or not self._session.is_usable:
            raise self._error(self._trouble or "ended")
        return self._session

    def _open_soon(self) -> None:
        self._opening = asyncio.create_task(self._open(), name=f"MCP server {self.name}")

    async def _open(self) -> None:
        if self._session is not None:
            self._session.retire()
        session = Session(self._setup, on_tools=lambda tools: self._check(session, tools))
        self._sessions = {other for other in self._sessions if not other.is_over} | {session}
        try:
            await session.open()
        except OpenFailed as failure:
            self._trouble = failure.reason
            self._not_before = self._clock() + min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE)
            self._failures = min(self._failures + 1, 10)
            logger.warning(
                "an MCP server cannot be used", extra={"server": self.name, "reason": failure.reason}
            )
        else:
            self._session, self._failures, self._trouble = session, 0, ""
            self._check(session, session.tools)
        finally:
            self._opening = None

    # --- pins ---

    def _check(self, session: Session, tools: Sequence[Pin]) -> None:
        """Withdraw what is not any more what was pinned, and say so once."""
        if session is not self._session:
            return
        found = compared(self._pins, allowed(tools, self._setup.tools))
        self._withdrawn = frozenset(found.names("changed", "missing"))
        if found != self._told:
            self._told = found
            wrong = {status: _shown(found.names(status)) for status in ("changed", "missing", "unpinned")}
            if any(wrong.values()):
                logger.warning(
                    "tools of an MCP server are not as they were pinned, and are not offered",
                    extra={
                        "server": self.name,
                        **{status: names for status, names in wrong.items() if names},
                    },
                )
            else:
                logger.info("an MCP server is ready", extra={"server": self.name, "tools": len(self._pins)})

    def _error(self, reason: str) -> ToolError:
        return ToolError(f"the MCP server '{self.name}' {reason}")


def _shown(names: Sequence[str]) -> list[str]:
    """Return names that a server chose, for the log."""
    return [name[:_SHOWN_LENGTH] for name in names[:_MAX_TOLD]]
