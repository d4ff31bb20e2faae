"""Which tools a server has, and when they change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mcp import Client, MCPError
from mcp.client.subscriptions import SubscriptionLost
from mcp_types import Tool
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from proxy.tools.mcp.failures import CallFailed
from proxy.tools.mcp.pins import Pin

_MAX_PAGES = 50
_MAX_TOOLS = 1000
_PAUSE = 5.0


async def listed(client: Client) -> Sequence[Pin]:
    """Read the list of tools to its end.

    Raises:
        CallFailed: It has no end.
    """
    tools: list[Tool] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if len(tools) > _MAX_TOOLS:
            break
        if not cursor:
            return [_pin(tool) for tool in tools]
    raise CallFailed("has more tools than can be read")


async def tell_of_changes(client: Client, on_change: Callable[[], object]) -> None:
    """Subscribe to changes of the list with a server of the newer protocol; those of the older tell unasked."""
    tools = client.server_capabilities.tools
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or tools is None or not tools.list_changed:
        return
    while True:
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    on_change()
        except (MCPError, SubscriptionLost, TimeoutError):
            pass
        await asyncio.sleep(_PAUSE)
        on_change()


def _pin(tool: Tool) -> Pin:
    hints = tool.annotations
    return Pin(
        tool.name, tool.description or "", tool.input_schema, read_only=bool(hints and hints.read_only_hint)
    )
