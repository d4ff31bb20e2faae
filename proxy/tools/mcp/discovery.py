"""A look at MCP servers: a session with each, for as long as it takes to see its tools."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from proxy.tools.mcp.audit import Found
from proxy.tools.mcp.failures import OpenFailed
from proxy.tools.mcp.pins import allowed
from proxy.tools.mcp.session import Session
from proxy.tools.mcp.setup import ServerSetup


async def look_at(setups: Sequence[ServerSetup]) -> Sequence[Found]:
    """Begin a session with each of the servers, see which tools it has, and end it."""
    return await asyncio.gather(*(_look(setup) for setup in setups))


async def _look(setup: ServerSetup) -> Found:
    session = Session(setup)
    try:
        await session.open()
    except OpenFailed as failure:
        return Found(setup.name, trouble=failure.reason, last_words=failure.last_words)
    else:
        names = {tool.name for tool in session.tools}
        missing = [name for name in setup.tools or () if name not in names]
        return Found(setup.name, allowed(session.tools, setup.tools), missing)
    finally:
        await session.close()
