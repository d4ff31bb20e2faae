"""Validate the data of team files against the schema, with an error message for each violation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from proxy.teamfiles.definitions import (
    A2AAgentDefinition,
    AgentDefinition,
    CompactionDefinition,
    ComponentModel,
    DelegateDefinition,
    DemoModel,
    HandoffDefinition,
    HttpServer,
    Limits,
    McpServerDefinition,
    ModelDefinition,
    Name,
    OpenAIModel,
    Price,
    RemoteAgentDefinition,
    ServerName,
    StdioServer,
    TeamDefinition,
    TeamsFile,
    ToolUse,
)
from proxy.teamfiles.diagnostics import Path, closest_match, quote
from proxy.teamfiles.mcp_servers import SECTION, check_server
from proxy.teamfiles.members import check_agent
from proxy.teamfiles.model_requests import check_body, check_connection
from proxy.teamfiles.source_map import Source
from proxy.wire.agents import RESERVED_NAMES

Schema = TypeVar("Schema", bound=BaseModel)

SECTIONS = ("models", "teams", SECTION)
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_SERVER_NAME: TypeAdapter[str] = TypeAdapter(ServerName)
_OWNERS: tuple[tuple[type[BaseModel], str], ...] = (
    (TeamDefinition, "a team"),
    (AgentDefinition, "an agent"),
    (HandoffDefinition, "a handoff"),
    (ToolUse, "a tool"),
    (Limits, "a team's limits"),
    (OpenAIModel, "a model with 'model'"),
    (ComponentModel, "a model with 'provider'"),
    (Price, "a model's price"),
    (RemoteAgentDefinition, "a remote agent"),
    (StdioServer, "an MCP server with 'command'"),
    (HttpServer, "an MCP server with 'url'"),
    (A2AAgentDefinition, "an A2A agent"),
    (CompactionDefinition, "a team's compaction"),
)
_EXPECTED_BY_KEY = {
    "base_url": "expected a URL that starts with http:// or https://",
    "url": "expected a URL that starts with http:// or https://",
    "conversation_header": "expected the name of a header, or an empty string",
    "provider": "expected the import path of a class, such as package.module.Class",
    "tool": "expected a function name: up to 64 letters, digits, '_' and '-'",
    "client_tools": "expected 'auto', 'pass', 'ignore', or a list of function names",
}
_EXPECTED_SERVER_NAME = (
    "expected a name: up to 32 letters, digits, '_' and '-', starting with a letter or digit"
)
_EXPECTED_NAME = (
    "expected a name: up to 64 letters, digits, '_', '-' and '.', starting with a letter or digit"
)


def is_untyped(path: Path) -> bool:
    """Return whether the schema does not define the type of the value: parameters and component configs."""
    match path:
        case ("models", _, "parameters" | "extra_body" | "config", _, *_):
            return True
        case ("teams", _, "agents", _, "parameters", _, *_):
            return True
        case ("teams", _, "agents", _, "handoffs", _, "input", _, *_):
            return True
        case _:
            return False


def check_sections(source: Source, sections: Sequence[str] = SECTIONS) -> None:
    """Report unknown keys at the top level; keys that begin with ``x-`` hold anchors and are ignored."""
    for name in [name for name in source.data if name not in sections]:
        if not name.startswith("x-"):
            known = () if _owner(name) else sections
            source.add_unknown_key((name,), _unknown_key(name), known)
        del source.data[name]
    for name, value in source.data.items():
        if not isinstance(value, dict):
            source.add_error((name,), f"expected a mapping of names, found {_kind(value)}")


def validate_definitions(source: Source) -> TeamsFile:
    """Return the valid definitions; add errors for invalid ones and omit them."""
    models: dict[str, ModelDefinition] = {}
    teams: dict[str, TeamDefinition] = {}
    for name, value in mapping(source.value(("models",))).items():
        path: Path = ("models", name)
        model = _valid(source, path, _model_class(value))
        if _is_name(source, path) and model is not None:
            models[name] = model
        for key in ("parameters", "extra_body"):
            check_body(source, (*path, key))
        check_connection(source, path)
    for name in mapping(source.value(("teams",))):
        path = ("teams", name)
        team = _valid(source, path, TeamDefinition)
        if _is_name(source, path) and team is not None:
            teams[name] = team
        for agent, data in mapping(source.value((*path, "agents"))).items():
            if isinstance(data, dict):
                check_agent(source, (*path, "agents", agent), data)
            check_body(source, (*path, "agents", agent, "parameters"))
    return TeamsFile(models=models, teams=teams, mcp_servers=_valid_servers(source))


def _valid_servers(source: Source) -> dict[str, McpServerDefinition]:
    servers: dict[str, McpServerDefinition] = {}
    for name, value in mapping(source.value((SECTION,))).items():
        path: Path = (SECTION, name)
        if isinstance(value, dict) and not value.keys() & {"command", "url"}:
            source.add_error(path, "'command' or 'url' is missing", at_key=True)
            continue
        is_http = "url" in mapping(value) and "command" not in mapping(value)
        server: McpServerDefinition | None = (
            _valid(source, path, HttpServer) if is_http else _valid(source, path, StdioServer)
        )
        if _is_name(source, path, _SERVER_NAME, _EXPECTED_SERVER_NAME) and server is not None:
            servers[name] = server
        check_server(source, path)
    return servers


def is_model(data: Mapping[str, Any]) -> bool:
    """Whether the data of a file is one model: AutoGen's ``provider`` and ``config``, or our own keys."""
    return "models" not in data and bool(data.keys() & {"provider", "config", "model"})


def mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, else an empty one; the schema check reports the error."""
    return value if isinstance(value, dict) else {}


def _model_class(value: Any) -> type[OpenAIModel] | type[ComponentModel] | type[DemoModel]:
    given = mapping(value)
    if "model" not in given and given.keys() & {"provider", "config"}:
        return ComponentModel
    return DemoModel if "model" not in given and "demo" in given else OpenAIModel


def _valid(source: Source, path: Path, schema: type[Schema]) -> Schema | None:
    try:
        return schema.model_validate(source.value(path))
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            _add_schema_error(source, path, schema, problem)
        return None


def _is_name(
    source: Source, path: Path, format_: TypeAdapter[str] = _NAME, wanted: str = _EXPECTED_NAME
) -> bool:
    try:
        format_.validate_python(path[-1])
    except ValidationError:
        source.add_error(path, wanted, at_key=True)
        return False
    if path[0] == "teams" and path[-1] in RESERVED_NAMES:
        source.add_error(path, f"the name {quote(str(path[-1]))} is reserved", at_key=True)
        return False
    return True


# --- error messages ------------------------------------------------------------------------------------------


def _add_schema_error(source: Source, base: Path, schema: type[BaseModel], problem: ErrorDetails) -> None:
    loc = problem["loc"]
    if loc and loc[-1] == "[key]":
        source.add_error((*base, *loc[:-1]), _EXPECTED_NAME, at_key=True)
        return
    path = (*base, *_strip_union_branches(loc))
    match problem["type"]:
        case "missing":
            source.add_error(path[:-1], f"'{path[-1]}' is missing", at_key=True)
        case "extra_forbidden":
            name = str(path[-1])
            known = () if _owner(name) else _schema_at(schema, loc[:-1]).model_fields
            source.add_unknown_key(path, _unknown_key(name), known)
        case "literal_error":
            _add_choice_error(source, path, str(problem["ctx"]["expected"]))
        case _:
            source.add_error(path, _schema_error(path, problem, source.value(path)))


def _add_choice_error(source: Source, path: Path, expected: str) -> None:
    value = source.value(path)
    choices = expected.split("'")[1::2]
    # A single valid value is already in the error message.
    near = closest_match(value, choices) if isinstance(value, str) and len(choices) > 1 else None
    wanted = _EXPECTED_BY_KEY.get(str(path[-1])) or f"expected {expected.replace('True', 'true')}"
    source.add_error(path, wanted, wrong=value if near else "", right=(near,) if near else ())


def _schema_error(path: Path, problem: ErrorDetails, value: Any) -> str:
    kind, facts = problem["type"], problem.get("ctx", {})
    found = f", found {_kind(value)}"
    if path[-1] == "client_tools" and kind != "model_type":
        return _EXPECTED_BY_KEY["client_tools"]
    match kind:
        case "string_type":
            return f"expected a string{found}" + (
                "; put it in quotes" if isinstance(value, bool | int | float) else ""
            )
        case "string_pattern_mismatch":
            return _EXPECTED_BY_KEY.get(str(path[-1]), _EXPECTED_NAME)
        case "string_too_short":
            return "must not be empty"
        case "int_from_float":
            return "expected an integer, found a number with a fraction"
        case "int_type" | "int_parsing" | "int_parsing_size":
            return f"expected an integer{found}"
        case "number_type" | "float_type" | "float_parsing" | "finite_number":
            return f"expected a number{found}"
        case "bool_type" | "bool_parsing":
            return f"expected true or false{found}"
        case "greater_than":
            return f"must be greater than {facts['gt']:g}"
        case "greater_than_equal":
            return f"must be greater than or equal to {facts['ge']:g}"
        case "less_than_equal":
            return f"must be less than or equal to {facts['le']:g}"
        case "dict_type" | "model_type":
            if path[-1] == "compaction":
                return f"expected true, false, or a mapping{found}"
            if len(path) > 1 and path[-2] == "tools":
                return f"expected the name of a tool, or a mapping with 'name' and 'approval'{found}"
            return f"expected a mapping{found}"
        case "tuple_type":
            return f"expected a list{found}"
        case _:
            return "invalid value"


def _strip_union_branches(loc: Path) -> Path:
    """Remove the names of union branches that pydantic adds to the path of ``client_tools``."""
    match loc:
        case ("client_tools", *_):
            return loc[:1]
        case ("agents", _, "client_tools", *_):
            return loc[:3]
        case _:
            return loc


def _schema_at(schema: type[BaseModel], path: Path) -> type[BaseModel]:
    match path:
        case ("limits",):
            return Limits
        case ("compaction",):
            return CompactionDefinition
        case ("price",):
            return Price
        case ("agents", _):
            return AgentDefinition
        case ("agents", _, "a2a"):
            return A2AAgentDefinition
        case ("agents", _, "remote"):
            return RemoteAgentDefinition
        case ("agents", _, "remote", "price"):
            return Price
        case ("agents", _, "delegates", _):
            return DelegateDefinition
        case ("agents", _, "delegates", _, "limits"):
            return Limits
        case ("agents", _, "handoffs", _):
            return HandoffDefinition
        case ("agents", _, "tools", _):
            return ToolUse
        case _:
            return schema


def _unknown_key(name: str) -> str:
    owner = _owner(name)
    return f"unknown key {quote(name)}" + (f": it belongs to {owner}" if owner else "")


def _owner(name: str) -> str | None:
    return next((words for schema, words in _OWNERS if name in schema.model_fields), None)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "a mapping"
