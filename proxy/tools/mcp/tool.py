"""Pinned tools of MCP servers as tools of agents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from proxy.messages import FunctionTool
from proxy.tools.mcp.argument_schema import ArgumentSchema
from proxy.tools.mcp.lock import Pins
from proxy.tools.mcp.pins import Pin, model_name, reference
from proxy.tools.mcp.server import McpServer
from proxy.tools.mcp.setup import ServerSetup
from proxy.tools.port import Tool, ToolContext


class McpTool:
    """A tool of an MCP server. Models receive the pinned definition, not the current one of the server."""

    def __init__(self, server: McpServer, pin: Pin, *, has_effects: bool) -> None:
        self._server = server
        self._name = pin.name
        self._has_effects = has_effects
        self._spec = FunctionTool(
            model_name(server.name, pin.name), pin.description or None, dict(pin.input_schema)
        )
        self._argument_schema = ArgumentSchema(pin.input_schema)

    @property
    def spec(self) -> FunctionTool:
        """The pinned function definition for the model."""
        return self._spec

    @property
    def has_effects(self) -> bool:
        """Whether a call can have side effects."""
        return self._has_effects

    @property
    def is_offered(self) -> bool:
        """Whether the newest list of the server has the pinned definition."""
        return self._server.offers(self._name)

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        """Validate the arguments and call the tool on the server."""
        await self._argument_schema.check(arguments)
        return await self._server.call(self._name, arguments, call_key=context.call_key)


class McpServers:
    """All configured MCP servers, and their ``tools`` by the names in team files (``mcp:server/tool``)."""

    def __init__(self, setups: Sequence[ServerSetup], pins: Pins) -> None:
        self._servers = [McpServer(setup, pins.get(setup.name, {})) for setup in setups]
        self.tools: Mapping[str, Tool] = {
            reference(server.name, pin.name): McpTool(server, pin, has_effects=_has_effects(setup, pin))
            for server, setup in zip(self._servers, setups, strict=True)
            for pin in pins.get(setup.name, {}).values()
        }

    def start(self) -> None:
        """Open a session with each server in the background. Requires a running event loop."""
        for server in self._servers:
            server.start()

    async def close(self) -> None:
        """Close all sessions."""
        await asyncio.gather(*(server.close() for server in self._servers))


def _has_effects(setup: ServerSetup, pin: Pin) -> bool:
    return not pin.read_only if setup.without_effects is None else pin.name not in setup.without_effects
