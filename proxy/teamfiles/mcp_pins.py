"""Pin the tools of the MCP servers in team files, and compare the current tools with the pins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from proxy.errors import ConfigurationError
from proxy.settings import Settings
from proxy.teamfiles.loader import load_teams
from proxy.teamfiles.team_sources import TeamSources, team_folder
from proxy.tools.mcp.audit import Audit, DiscoveredTools, report_accepted, report_differences
from proxy.tools.mcp.lock import FILE_NAME, Pins, read_lock, write_lock
from proxy.tools.mcp.setup import ServerSetup
from proxy.tools.threads import ToolThreads

__all__ = ["Audit", "check_pins", "write_pins"]


def check_pins(settings: Settings, environment: Mapping[str, str]) -> Audit:
    """List the tools of the MCP servers in the team files and compare them with the lock file.

    Raises:
        ConfigurationError: The team files have errors or no MCP servers, or the lock file is invalid.
    """
    setups = _setups(settings, environment)
    folder = team_folder(settings.teams)
    try:
        pins = read_lock(folder)
    except ConfigurationError as error:
        raise ConfigurationError(f"{folder / FILE_NAME}: {error.message}") from None
    return report_differences(_discover(setups), pins)


def write_pins(settings: Settings, environment: Mapping[str, str]) -> Audit:
    """List the tools of the MCP servers in the team files and write them to the lock file.

    The pins of servers that do not respond, and of servers of other team files in the folder, are preserved. An
    invalid lock file is replaced.

    Raises:
        ConfigurationError: The team files have errors or no MCP servers, or the lock file cannot be written.
    """
    setups = _setups(settings, environment)
    folder = team_folder(settings.teams)
    try:
        before: Pins = read_lock(folder)
    except ConfigurationError:
        before = {}
    found = _discover(setups)
    current = {one.server: {tool.name: tool for tool in one.tools} for one in found if not one.failure}
    if current:
        write_lock(folder, {**before, **current})
    return report_accepted(found, before)


def _setups(settings: Settings, environment: Mapping[str, str]) -> Sequence[ServerSetup]:
    threads = ToolThreads()
    try:
        loaded = load_teams(TeamSources.of(settings, environment, threads), needs_pins=False)
    finally:
        threads.close()
    if not loaded.servers:
        raise ConfigurationError("there are no MCP servers: the team files have no section 'mcp_servers'")
    return loaded.servers


def _discover(setups: Sequence[ServerSetup]) -> Sequence[DiscoveredTools]:
    # Imported on first use: other commands do not need the SDK.
    from proxy.tools.mcp.discovery import discover_tools

    return asyncio.run(discover_tools(setups))
