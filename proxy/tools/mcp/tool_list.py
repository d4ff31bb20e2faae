"""List the tools of a server and watch the list for changes."""

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
_RETRY_DELAY = 5.0


async def list_tools(client: Client) -> Sequence[Pin]:
    """Return all pages of the list of tools.

    Raises:
        CallFailed: The list exceeds ``_MAX_TOOLS`` or ``_MAX_PAGES``.
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
    raise CallFailed("has too many tools")


async def watch_tool_list(client: Client, on_change: Callable[[], object]) -> None:
    """Call ``on_change`` after changes of the list, if the protocol version requires a subscription.

    Servers of older protocol versions send the notification without one; ``Session`` receives it as a message.
    """
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
        await asyncio.sleep(_RETRY_DELAY)
        on_change()


def _pin(tool: Tool) -> Pin:
    hints = tool.annotations
    return Pin(
        tool.name, tool.description or "", tool.input_schema, read_only=bool(hints and hints.read_only_hint)
    )
