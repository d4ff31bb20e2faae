"""The tools of the MCP servers in team files: pinned, and compared with what is pinned."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from proxy.errors import ConfigurationError
from proxy.settings import Settings
from proxy.teamfiles.loading import default_model, load_teams, python_tools, team_folder
from proxy.tools.builtin import builtin_names
from proxy.tools.mcp.audit import Audit, DiscoveredTools, report_accepted, report_differences
from proxy.tools.mcp.lock import FILE_NAME, Pins, read_lock, write_lock
from proxy.tools.mcp.setup import ServerSetup
from proxy.tools.threads import ToolThreads

__all__ = ["Audit", "check_pins", "write_pins"]


def check_pins(settings: Settings, environment: Mapping[str, str]) -> Audit:
    """Ask the MCP servers of the team files for their tools, and compare them with what is pinned.

    Raises:
        ConfigurationError: A team file has mistakes or no MCP servers, or the lock file cannot be used.
    """
    setups = _setups(settings, environment)
    folder = team_folder(settings.teams)
    try:
        pins = read_lock(folder)
    except ConfigurationError as error:
        raise ConfigurationError(f"{folder / FILE_NAME}: {error.message}") from None
    return report_differences(_found(setups), pins)


def write_pins(settings: Settings, environment: Mapping[str, str]) -> Audit:
    """Ask the MCP servers of the team files for their tools, and write them into the lock file.

    Servers that do not answer keep what is pinned of them, and so do servers of other team files in the folder. A lock
    file that cannot be used counts as none.

    Raises:
        ConfigurationError: A team file has mistakes or no MCP servers, or the lock file cannot be written.
    """
    setups = _setups(settings, environment)
    folder = team_folder(settings.teams)
    try:
        before: Pins = read_lock(folder)
    except ConfigurationError:
        before = {}
    found = _found(setups)
    now = {one.server: {tool.name: tool for tool in one.tools} for one in found if not one.failure}
    if now:
        write_lock(folder, {**before, **now})
    return report_accepted(found, before)


def _setups(settings: Settings, environment: Mapping[str, str]) -> Sequence[ServerSetup]:
    threads = ToolThreads()
    try:
        loaded = load_teams(
            settings.teams,
            environment=environment,
            default=default_model(settings),
            known_tools=builtin_names(),
            import_tool=python_tools(threads),
            needs_pins=False,
            models_file=settings.models,
        )
    finally:
        threads.close()
    if not loaded.servers:
        raise ConfigurationError("there are no MCP servers: the team files have no section 'mcp_servers'")
    return loaded.servers


def _found(setups: Sequence[ServerSetup]) -> Sequence[DiscoveredTools]:
    # Here, because of the SDK, which other commands do not need.
    from proxy.tools.mcp.discovery import discover_tools

    return asyncio.run(discover_tools(setups))
