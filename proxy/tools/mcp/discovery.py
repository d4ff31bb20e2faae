"""List the tools of MCP servers over short sessions, for ``mcp check`` and ``mcp pin``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from proxy.tools.mcp.audit import DiscoveredTools
from proxy.tools.mcp.failures import OpenFailed
from proxy.tools.mcp.pins import filter_allowed
from proxy.tools.mcp.session import Session
from proxy.tools.mcp.setup import ServerSetup


async def discover_tools(setups: Sequence[ServerSetup]) -> Sequence[DiscoveredTools]:
    """Open a session with each server in parallel, list its tools and close the session."""
    return await asyncio.gather(*(_discover(setup) for setup in setups))


async def _discover(setup: ServerSetup) -> DiscoveredTools:
    session = Session(setup)
    try:
        await session.open()
    except OpenFailed as failure:
        return DiscoveredTools(setup.name, failure=failure.reason, stderr_tail=failure.stderr_tail)
    else:
        names = {tool.name for tool in session.tools}
        missing = [name for name in setup.tools or () if name not in names]
        return DiscoveredTools(setup.name, filter_allowed(session.tools, setup.tools), missing)
    finally:
        await session.close()
