"""Check references to agents, models and tools in team files, and conflicts between names.

The checks work on the parsed data, not on validated definitions, so that one error does not hide another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from proxy.errors import ConfigurationError
from proxy.members.port import Member
from proxy.teamfiles.definitions import snake_case
from proxy.teamfiles.diagnostics import Path, closest_match
from proxy.teamfiles.mcp_servers import check_tool_lists, tool_names
from proxy.teamfiles.members import ImportMember, check_code
from proxy.teamfiles.schema_checks import mapping
from proxy.teamfiles.source_map import Source
from proxy.tools.mcp.lock import Pins
from proxy.tools.mcp.pins import PREFIX
from proxy.tools.port import Tool
from proxy.wire.schema_validator import SchemaValidator

ImportTool = Callable[[str, FilePath], Tool]
"""Creates a tool from ``package.module:function``; the folder is an additional place to find modules."""

_MAX_TOOL_NAME = 64


@dataclass(slots=True)
class ReferenceContext:
    """What names can refer to in addition to the content of the files.

    ``models`` is None if a file could not be read, ``pins`` if tools of MCP servers need not be pinned.
    """

    folder: FilePath
    models: Collection[str] | None
    known_tools: Collection[str]
    import_tool: ImportTool
    import_member: ImportMember
    pins: Pins | None = None
    imported: dict[str, Tool] = field(default_factory=dict)
    """The tools imported so far, by path."""
    members: dict[str, Member] = field(default_factory=dict)
    """The members imported so far, by path."""
    import_errors: dict[str, str] = field(default_factory=dict)
    """Error messages of failed imports, by path."""


def check_references(source: Source, context: ReferenceContext) -> None:
    """Add an error for every unresolved reference and every name conflict."""
    teams = mapping(source.value(("teams",)))
    addresses: dict[str, Path] = {}
    for name, team in teams.items():
        path: Path = ("teams", name)
        _check_team(source, path, mapping(team), context)
        for agent in mapping(mapping(team).get("agents")):
            _check_agent_address(source, (*path, "agents", agent), addresses)
    if context.pins is not None:
        check_tool_lists(source, context.pins)
    for name, model in mapping(source.value(("models",))).items():
        if mapping(model).get("expose") is True and name in teams:
            what = "is exposed, but a team has the same name"
            source.add_error(("models", name), what, at_key=True)


def _check_agent_address(source: Source, path: Path, addresses: dict[str, Path]) -> None:
    # The address of an agent in the dispatcher; with dots in names, two agents can have the same address.
    address = f"{path[1]}.{path[3]}"
    other = addresses.setdefault(address, path)
    if other != path:
        what = f"conflicts with agent '{other[3]}' of team '{other[1]}': both have the address '{address}'"
        source.add_error(path, what, at_key=True)


def _check_team(source: Source, path: Path, team: Any, context: ReferenceContext) -> None:
    agents = mapping(team.get("agents"))
    if team.get("agents") == {}:
        source.add_error((*path, "agents"), "a team needs at least one agent", at_key=True)
        return
    if isinstance(team.get("agents"), dict):
        _check_name(source, (*path, "entry"), "agent", agents)
    if context.models is not None:
        _check_name(source, (*path, "side_model"), "model", context.models)
        _check_name(source, (*path, "compaction", "model"), "model", context.models)
    steps: set[str] = set()
    for place, name in _texts(team.get("steps"), (*path, "steps")):
        _check_name(source, place, "agent", agents)
        if name in steps:
            source.add_error(place, f"{source.quote_value(place, name)} is already a step")
        steps.add(name)
    spelled: dict[str, str] = {}
    for name, agent in agents.items():
        other = spelled.setdefault(snake_case(name), name)
        if other != name:
            source.add_error(
                (*path, "agents", name),
                f"differs from agent '{other}' only in case or punctuation",
                at_key=True,
            )
        _check_agent(source, (*path, "agents", name), mapping(agent), agents, context)


def _check_agent(
    source: Source, path: Path, agent: Any, agents: Collection[str], context: ReferenceContext
) -> None:
    if context.models is not None:
        _check_models(source, path, agent, context.models)
    check_code(source, path, context.folder, context.import_member, context.members)
    taken: dict[str, str] = {}
    for index, use in enumerate(_list(agent.get("tools"))):
        place: Path = (*path, "tools", index)
        tool = use
        if isinstance(use, dict):
            place, tool = (*place, "name"), use.get("name")
        for name in _check_tool(source, place, tool, context) if isinstance(tool, str) else ():
            _claim_name(source, place, name, f"tools[{index}]", taken)
    _check_delegates(source, path, agent, agents, taken)
    for index, handoff in enumerate(_list(agent.get("handoffs"))):
        place = (*path, "handoffs", index)
        _check_input_schema(source, (*place, "input"), mapping(handoff).get("input"))
        target = mapping(handoff).get("to")
        if not isinstance(target, str):
            continue
        if target == path[-1]:
            source.add_error((*place, "to"), "an agent cannot hand over to itself")
            continue
        _check_name(source, (*place, "to"), "agent", [name for name in agents if name != path[-1]])
        given = mapping(handoff).get("tool")
        name = given if isinstance(given, str) else f"transfer_to_{snake_case(target)}"
        if target in agents and len(name) > _MAX_TOOL_NAME:
            if given is None:
                what = f"'{name}' is too long for a tool name; set a shorter one with 'tool'"
                source.add_error(place, what)
        elif target in agents:
            _claim_name(
                source, (*place, "tool") if given is not None else place, name, f"handoffs[{index}]", taken
            )


def _check_input_schema(source: Source, path: Path, schema: Any) -> None:
    if not isinstance(schema, dict):
        return
    if schema.get("type") != "object":
        source.add_error(path, "expected a JSON schema with 'type: object'", at_key=True)
        return
    try:
        SchemaValidator(schema)
    except ValueError:
        source.add_error(path, "is not a valid JSON schema", at_key=True)


def _check_delegates(
    source: Source, path: Path, agent: Any, agents: Collection[str], taken: dict[str, str]
) -> None:
    """Check the agents and teams that an agent calls with tasks, and the names of their tools."""
    teams = mapping(source.value(("teams",)))
    for index, delegate in enumerate(_list(agent.get("delegates"))):
        place: Path = (*path, "delegates", index)
        given = mapping(delegate)
        if not isinstance(delegate, dict):
            continue
        if ("to" in given) == ("team" in given):
            source.add_error(place, "needs either 'to', an agent of this team, or 'team'")
            continue
        key = "to" if "to" in given else "team"
        target = given[key]
        if not isinstance(target, str):
            continue
        if key == "to" and target == path[-1]:
            source.add_error((*place, "to"), "an agent cannot delegate to itself")
            continue
        right = [name for name in agents if name != path[-1]] if key == "to" else list(teams)
        _check_name(source, (*place, key), "agent" if key == "to" else "team", right)
        tool = given.get("tool")
        name = tool if isinstance(tool, str) else f"ask_{snake_case(target)}"
        if target in right and len(name) > _MAX_TOOL_NAME and tool is None:
            source.add_error(place, f"'{name}' is too long for a tool name; set a shorter one with 'tool'")
        elif target in right:
            _claim_name(
                source, (*place, "tool") if tool is not None else place, name, f"delegates[{index}]", taken
            )


def _check_models(source: Source, path: Path, agent: Any, models: Collection[str]) -> None:
    _check_name(source, (*path, "model"), "model", models)
    used = {agent.get("model", "default")} if isinstance(agent.get("model", "default"), str) else set()
    for place, name in _texts(agent.get("fallbacks"), (*path, "fallbacks")):
        _check_name(source, place, "model", models)
        if name in used:
            source.add_error(place, f"{source.quote_value(place, name)} is already used before this fallback")
        used.add(name)


def _check_name(source: Source, path: Path, kind: str, right: Collection[str]) -> None:
    value = source.value(path)
    if isinstance(value, str) and value not in right:
        source.add_error(path, f"unknown {kind} {source.quote_value(path, value)}", wrong=value, right=right)


def _check_tool(source: Source, path: Path, tool: str, context: ReferenceContext) -> Sequence[str]:
    """Return the function names for models of an entry in a tool list; empty if it is unknown."""
    if tool in context.known_tools:
        return (tool,)
    if tool.startswith(PREFIX):
        # A file that could not be read can define other servers.
        return tool_names(source, path, tool, context.pins) if context.models is not None else ()
    if ":" not in tool:
        what = f"unknown tool {source.quote_value(path, tool)}"
        if closest_match(tool, tuple(context.known_tools)) is None:
            what += "; for a Python function write package.module:function"
        source.add_error(path, what, wrong=tool, right=context.known_tools)
        return ()
    _import(tool, context)
    if tool in context.imported:
        return (context.imported[tool].spec.name,)
    # The value of a variable must not appear in the error message.
    reason = "the function cannot be loaded" if path in source.substituted else context.import_errors[tool]
    module = tool.partition(":")[0]
    near = closest_match(module, sorted(file.stem for file in context.folder.glob("*.py")))
    source.add_error(path, reason, wrong=module, right=(near,) if near and near != module else ())
    return ()


def _import(tool: str, context: ReferenceContext) -> None:
    if tool in context.imported or tool in context.import_errors:
        return
    try:
        context.imported[tool] = context.import_tool(tool, context.folder)
    except ConfigurationError as error:
        context.import_errors[tool] = error.message
    # The import runs code of the operator, which can raise anything; report it like other errors.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        context.import_errors[tool] = f"the function cannot be used as a tool ({type(error).__name__})"


def _claim_name(source: Source, path: Path, name: str, owner: str, taken: dict[str, str]) -> None:
    other = taken.setdefault(name, owner)
    if other != owner:
        source.add_error(path, f"the tool name {source.quote_value(path, name)} is already used by {other}")


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for index, item in enumerate(_list(value)):
        if isinstance(item, str):
            yield (*path, index), item


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
