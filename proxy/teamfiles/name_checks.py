"""Names in team files that refer to something: agents, models, tools; and names that must not meet.

Works on the data as written, not on valid definitions, so that one mistake does not hide another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from proxy.errors import ConfigurationError
from proxy.teamfiles.definitions import snake_case
from proxy.teamfiles.diagnostics import Path, nearest
from proxy.teamfiles.mcp_servers import check_tool_lists, tool_names
from proxy.teamfiles.schema_checks import mapping
from proxy.teamfiles.source_map import Source
from proxy.tools.mcp.lock import Pins
from proxy.tools.mcp.pins import PREFIX
from proxy.tools.port import Tool

ImportTool = Callable[[str, FilePath], Tool]
"""Makes a tool of ``package.module:function``; modules in the folder are found too."""

_LONGEST_TOOL_NAME = 64


@dataclass(slots=True)
class Surroundings:
    """What names may refer to besides the files themselves.

    ``models`` is None when not all of them could be read, ``pins`` when tools of MCP servers are still to be pinned.
    """

    folder: FilePath
    models: Collection[str] | None
    known_tools: Collection[str]
    import_tool: ImportTool
    pins: Pins | None = None
    imported: dict[str, Tool] = field(default_factory=dict)
    """The tools imported so far, by path."""
    refused: dict[str, str] = field(default_factory=dict)
    """What is wrong with paths that could not be imported."""


def check_references(source: Source, around: Surroundings) -> None:
    """Note every name that refers to nothing and every two that clash."""
    teams = mapping(source.value(("teams",)))
    addresses: dict[str, Path] = {}
    for name, team in teams.items():
        path: Path = ("teams", name)
        _check_team(source, path, mapping(team), around)
        for agent in mapping(mapping(team).get("agents")):
            _check_address(source, (*path, "agents", agent), addresses)
    if around.pins is not None:
        check_tool_lists(source, around.pins)
    for name, model in mapping(source.value(("models",))).items():
        if mapping(model).get("expose") is True and name in teams:
            what = "is exposed, and a team has the same name; callers could not tell them apart"
            source.wrong(("models", name), what, at_key=True)


def _check_address(source: Source, path: Path, addresses: dict[str, Path]) -> None:
    # The dispatcher's address of an agent; a dot in a name can make two of them one.
    address = f"{path[1]}.{path[3]}"
    other = addresses.setdefault(address, path)
    if other != path:
        what = f"cannot be told from agent '{other[3]}' of team '{other[1]}': both are '{address}'"
        source.wrong(path, what, at_key=True)


def _check_team(source: Source, path: Path, team: Any, around: Surroundings) -> None:
    agents = mapping(team.get("agents"))
    if team.get("agents") == {}:
        source.wrong((*path, "agents"), "a team needs an agent", at_key=True)
        return
    if isinstance(team.get("agents"), dict):
        _check_name(source, (*path, "entry"), "agent", agents)
    if around.models is not None:
        _check_name(source, (*path, "side_model"), "model", around.models)
    steps: set[str] = set()
    for place, name in _texts(team.get("steps"), (*path, "steps")):
        _check_name(source, place, "agent", agents)
        if name in steps:
            source.wrong(place, f"{source.shown(place, name)} is a step already")
        steps.add(name)
    spelled: dict[str, str] = {}
    for name, agent in agents.items():
        other = spelled.setdefault(snake_case(name), name)
        if other != name:
            source.wrong(
                (*path, "agents", name), f"differs from agent '{other}' only in its spelling", at_key=True
            )
        _check_agent(source, (*path, "agents", name), mapping(agent), agents, around)


def _check_agent(
    source: Source, path: Path, agent: Any, agents: Collection[str], around: Surroundings
) -> None:
    if around.models is not None:
        _check_models(source, path, agent, around.models)
    taken: dict[str, str] = {}
    for index, use in enumerate(_list(agent.get("tools"))):
        place: Path = (*path, "tools", index)
        tool = use
        if isinstance(use, dict):
            place, tool = (*place, "name"), use.get("name")
        for name in _check_tool(source, place, tool, around) if isinstance(tool, str) else ():
            _take(source, place, name, f"tools[{index}]", taken)
    for index, handoff in enumerate(_list(agent.get("handoffs"))):
        place = (*path, "handoffs", index)
        target = mapping(handoff).get("to")
        if not isinstance(target, str):
            continue
        if target == path[-1]:
            source.wrong((*place, "to"), "an agent cannot hand over to itself")
            continue
        _check_name(source, (*place, "to"), "agent", [name for name in agents if name != path[-1]])
        given = mapping(handoff).get("tool")
        name = given if isinstance(given, str) else f"transfer_to_{snake_case(target)}"
        if target in agents and len(name) > _LONGEST_TOOL_NAME:
            if given is None:
                what = f"'{name}' is too long for the name of a tool; give it a shorter one with 'tool'"
                source.wrong(place, what)
        elif target in agents:
            _take(source, (*place, "tool") if given is not None else place, name, f"handoffs[{index}]", taken)


def _check_models(source: Source, path: Path, agent: Any, models: Collection[str]) -> None:
    _check_name(source, (*path, "model"), "model", models)
    asked = {agent.get("model", "default")} if isinstance(agent.get("model", "default"), str) else set()
    for place, name in _texts(agent.get("fallbacks"), (*path, "fallbacks")):
        _check_name(source, place, "model", models)
        if name in asked:
            source.wrong(place, f"{source.shown(place, name)} is asked before, so it cannot stand in")
        asked.add(name)


def _check_name(source: Source, path: Path, kind: str, right: Collection[str]) -> None:
    value = source.value(path)
    if isinstance(value, str) and value not in right:
        source.wrong(path, f"unknown {kind} {source.shown(path, value)}", wrong=value, right=right)


def _check_tool(source: Source, path: Path, tool: str, around: Surroundings) -> Sequence[str]:
    """Return the names under which the model will see what a list names; none when it is not known."""
    if tool in around.known_tools:
        return (tool,)
    if tool.startswith(PREFIX):
        # In a file that could not be read there may be further servers.
        return tool_names(source, path, tool, around.pins) if around.models is not None else ()
    if ":" not in tool:
        what = f"unknown tool {source.shown(path, tool)}"
        if nearest(tool, tuple(around.known_tools)) is None:
            what += "; a function of your own is written package.module:function"
        source.wrong(path, what, wrong=tool, right=around.known_tools)
        return ()
    _import(tool, around)
    if tool in around.imported:
        return (around.imported[tool].spec.name,)
    # A path out of a variable is told by its variable only.
    reason = (
        "the function that it names cannot be used" if path in source.substituted else around.refused[tool]
    )
    module = tool.partition(":")[0]
    near = nearest(module, sorted(file.stem for file in around.folder.glob("*.py")))
    source.wrong(path, reason, wrong=module, right=(near,) if near and near != module else ())
    return ()


def _import(tool: str, around: Surroundings) -> None:
    if tool in around.imported or tool in around.refused:
        return
    try:
        around.imported[tool] = around.import_tool(tool, around.folder)
    except ConfigurationError as error:
        around.refused[tool] = error.message
    # A module is the operator's own code, and its mistakes are to be told like all the others.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        around.refused[tool] = f"the function cannot be made a tool ({type(error).__name__})"


def _take(source: Source, path: Path, name: str, owner: str, taken: dict[str, str]) -> None:
    other = taken.setdefault(name, owner)
    if other != owner:
        source.wrong(path, f"the tool name {source.shown(path, name)} is taken by {other}")


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for index, item in enumerate(_list(value)):
        if isinstance(item, str):
            yield (*path, index), item


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
