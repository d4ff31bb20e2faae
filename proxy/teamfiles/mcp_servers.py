"""MCP servers in team files: validation, and resolution of ``mcp:`` names in the tool lists of agents."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path as FilePath

from proxy.teamfiles.definitions import HttpServer, McpServerDefinition, StdioServer, ToolUse
from proxy.teamfiles.diagnostics import Path
from proxy.teamfiles.model_requests import check_headers, is_server_url
from proxy.teamfiles.source_map import Source
from proxy.tools.mcp.lock import Pins
from proxy.tools.mcp.pins import PREFIX, Pin, model_name, reference
from proxy.tools.mcp.setup import HttpEndpoint, Program, ServerSetup, child_environment

SECTION = "mcp_servers"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_server(source: Source, path: Path) -> None:
    """Check the parts of a server that the schema does not cover: URL, headers, environment, NUL characters."""
    url = source.value((*path, "url"))
    if isinstance(url, str) and not (url.startswith(("http://", "https://")) and is_server_url(url)):
        source.add_error((*path, "url"), "expected a URL that starts with http:// or https://")
    check_headers(source, path)
    variables = source.value((*path, "env"))
    for name in variables if isinstance(variables, dict) else ():
        if not _VARIABLE.fullmatch(name):
            source.add_error((*path, "env", name), "is not the name of an environment variable", at_key=True)
    for key in ("command", "args", "env", "cwd"):
        _check_no_nul(source, (*path, key))


def check_tool_lists(source: Source, pins: Pins) -> None:
    """Check that the tools named in the lists of a server are pinned; skip servers without any pins."""
    servers = source.value((SECTION,))
    for name in servers if isinstance(servers, dict) else ():
        for key in ("tools", "without_effects"):
            listed = source.value((SECTION, name, key))
            for index, tool in enumerate(listed if isinstance(listed, list) else ()):
                if isinstance(tool, str) and name in pins and tool not in pins[name]:
                    place = (SECTION, name, key, index)
                    what = f"no tool {source.quote_value(place, tool)} of this server is pinned"
                    source.add_error(place, what, wrong=tool, right=pins[name])


def tool_names(source: Source, path: Path, tool: str, pins: Pins | None) -> Sequence[str]:
    """Return the function names for models of the tools that ``mcp:server`` or ``mcp:server/tool`` refers to.

    An unknown name is added as an error. ``pins`` is None if tools need not be pinned.
    """
    server, slash, name = tool.removeprefix(PREFIX).partition("/")
    servers = source.value((SECTION,))
    known = servers if isinstance(servers, dict) else {}
    if server not in known:
        what = f"unknown MCP server in {source.quote_value(path, tool)}"
        source.add_error(path, what, wrong=server, right=known)
        return ()
    if pins is None:
        return ()
    if server not in pins:
        source.add_error(
            path,
            f"the tools of MCP server {source.quote_value(path, server)} are not pinned; "
            "to review and accept them, run 'handoff-proxy mcp pin' with the path of the team files",
        )
        return ()
    usable = _allowed(pins[server], source.value((SECTION, server, "tools")))
    if not slash:
        return [model_name(server, name) for name in usable]
    if name not in usable:
        reason = "is not in its list 'tools'" if name in pins[server] else "is not pinned"
        source.add_error(
            path, f"the tool of {source.quote_value(path, tool)} {reason}", wrong=name, right=usable
        )
        return ()
    return [model_name(server, name)]


def expand_servers(tools: Sequence[ToolUse], pins: Pins) -> tuple[ToolUse, ...]:
    """Return a tool list with every ``mcp:server`` replaced by the pinned tools of the server."""
    found: list[ToolUse] = []
    for use in tools:
        if use.name.startswith(PREFIX) and "/" not in use.name:
            server = use.name.removeprefix(PREFIX)
            names = [reference(server, name) for name in pins.get(server, {})]
            found += [use.model_copy(update={"name": name}) for name in names]
        else:
            found.append(use)
    return tuple(found)


def usable_pins(servers: Mapping[str, McpServerDefinition], pins: Pins) -> Pins:
    """Return the pins of configured servers, without tools that the configuration excludes."""
    return {
        name: {tool: pin for tool, pin in pins[name].items() if server.tools is None or tool in server.tools}
        for name, server in servers.items()
        if name in pins
    }


def server_setup(
    name: str, server: McpServerDefinition, folder: FilePath, environment: Mapping[str, str]
) -> ServerSetup:
    """Return the configuration of a session; the working directory of a program is relative to ``folder``."""
    reach: Program | HttpEndpoint
    match server:
        case StdioServer():
            reach = Program(
                server.command,
                tuple(argument.get_secret_value() for argument in server.args),
                child_environment(
                    environment, {name: value.get_secret_value() for name, value in server.env.items()}
                ),
                folder / (server.cwd or "."),
            )
        case HttpServer():
            reach = HttpEndpoint(
                server.url.get_secret_value(),
                {name: value.get_secret_value() for name, value in server.headers.items()},
            )
    return ServerSetup(
        name,
        reach,
        tools=server.tools,
        without_effects=server.without_effects,
        connect_seconds=server.connect_timeout,
        call_seconds=server.call_timeout,
        max_answer_bytes=server.max_answer_bytes,
    )


def _allowed(pinned: Mapping[str, Pin], listed: object) -> Collection[str]:
    return [name for name in pinned if not isinstance(listed, list) or name in listed]


def _check_no_nul(source: Source, path: Path) -> None:
    value = source.value(path)
    if isinstance(value, str) and "\x00" in value:
        source.add_error(path, "contains a NUL character, which cannot be passed to a program")
    elif isinstance(value, list | dict):
        for key in value if isinstance(value, dict) else range(len(value)):
            _check_no_nul(source, (*path, key))
