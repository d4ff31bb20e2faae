"""Load team files: one file, a folder, or the bundled teams; report all errors together.

An error is one line, ``file:line:column: path: message``, with a suggestion if there is a similar name. Lines contain
no values of environment variables and no API keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from proxy.errors import ConfigurationError, TeamFileError
from proxy.members.port import Member
from proxy.teamfiles.definitions import (
    ComponentModel,
    DemoModel,
    ModelDefinition,
    OpenAIModel,
    TeamDefinition,
    TeamsFile,
)
from proxy.teamfiles.diagnostics import SourceLocation, TeamFileErrors
from proxy.teamfiles.mcp_servers import SECTION, expand_servers, server_setup, usable_pins
from proxy.teamfiles.members import expand_member_teams
from proxy.teamfiles.name_checks import ReferenceContext, check_references
from proxy.teamfiles.schema_checks import (
    SECTIONS,
    check_sections,
    is_model,
    is_untyped,
    mapping,
    validate_definitions,
)
from proxy.teamfiles.source_map import Source, read_source
from proxy.teamfiles.summary import describe_definitions, summarize_counts
from proxy.teamfiles.team_sources import BUNDLED, CheckComponent, TeamSources, is_openai
from proxy.tools.mcp.lock import FILE_NAME, Pins, read_lock
from proxy.tools.mcp.setup import ServerSetup
from proxy.tools.port import Tool

DEFAULT_MODEL = "default"


class LoadedTeams(Struct, frozen=True):
    """The content of team files, with all names resolved.

    ``definitions`` always has a model named ``default``. ``tools`` has the imported Python functions by import path,
    without built-in tools. ``notices`` are warnings about valid but probably unintended content. ``servers`` are the
    MCP servers, and ``pins`` the accepted tools that agents can use; the tool lists of agents name each of them
    (``mcp:server/tool``). ``members`` are the agents with their own code, by import path.

    If ``is_valid`` is false, the files have errors, and the other fields have what is valid. ``team_names`` then has
    invalid teams too, and is None if a team file could not be read.
    """

    definitions: TeamsFile
    tools: Mapping[str, Tool]
    notices: tuple[str, ...]
    servers: tuple[ServerSetup, ...] = ()
    pins: Pins = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    is_valid: bool = True
    team_names: Collection[str] | None = None


class Report(Struct, frozen=True):
    """Result of a check, as lines of text. Files without ``problems`` can be served."""

    problems: tuple[str, ...]
    notices: tuple[str, ...]
    summary: tuple[str, ...]


def load_teams(sources: TeamSources, *, needs_pins: bool = True) -> LoadedTeams:
    """Load a team file, all files of a folder (``*.yaml``, ``*.yml``) merged, or the bundled teams.

    Tools of MCP servers must be in the lock file next to the team files, unless ``needs_pins`` is false. Loading does
    not connect to servers.

    Raises:
        TeamFileError: With one line per error.
    """
    source, loaded = _load(sources, needs_pins=needs_pins)
    if source.errors:
        raise TeamFileError(source.errors.lines())
    return loaded


def check_teams(
    sources: TeamSources, *, check_loaded: Callable[[LoadedTeams], Iterator[str]] | None = None
) -> Report:
    """Check what ``load_teams`` would load, and return its errors, or its notices and a summary.

    ``check_loaded`` checks further what could be loaded, also from files with errors; it yields one line per error.
    """
    source, loaded = _load(sources, needs_pins=True)
    others = tuple(check_loaded(loaded)) if check_loaded is not None else ()
    summary = (summarize_counts(source),)
    if source.errors:
        return Report((*source.errors.lines(), *others), (), summary)
    if others:
        return Report(others, loaded.notices, summary)
    return Report((), loaded.notices, (*summary, *describe_definitions(loaded.definitions, loaded.pins)))


def _load(sources: TeamSources, *, needs_pins: bool) -> tuple[Source, LoadedTeams]:
    source = _read(sources)
    context = _reference_context(source, sources)
    context.pins = _read_pins(source, context.folder) if needs_pins else None
    return source, _resolve(source, context, sources)


# --- reading -------------------------------------------------------------------------------------------------


def _read(sources: TeamSources) -> Source:
    """Read the models file, and the team file or all files of the folder, and merge them."""
    errors = TeamFileErrors()
    merged = Source(errors, values={(): SourceLocation(str(sources.path))})
    if sources.models_file is not None:
        models = _read_models(sources.models_file, sources.environment, errors)
        merged.is_complete = models is not None
        if models is not None:
            merged.merge_section(models, "models")
    replaced = set(mapping(merged.value(("models",))))
    files = _list_files(sources.path, errors)
    merged.has_all_teams = bool(files)
    for file in files:
        source = read_source(file, sources.environment, errors, is_untyped=is_untyped)
        if source is None:
            merged.is_complete = merged.has_all_teams = False
            continue
        check_sections(source)
        expand_member_teams(source)
        for section in SECTIONS:
            merged.merge_section(source, section, replaced=replaced if section == "models" else ())
    return merged


def _read_models(file: Path, environment: Mapping[str, str], errors: TeamFileErrors) -> Source | None:
    """Read a file with a section ``models``, or with the keys of one model at its top level."""
    default = ("models", DEFAULT_MODEL)
    source = read_source(
        file, environment, errors, is_untyped=lambda path: is_untyped(path) or is_untyped((*default, *path))
    )
    if source is not None:
        if is_model(source.data):
            source.data = {name: value for name, value in source.data.items() if not name.startswith("x-")}
            source = source.moved_to(default)
        check_sections(source, ("models",))
    return source


def _list_files(path: Path, errors: TeamFileErrors) -> list[Path]:
    try:
        if not os.path.isdir(path):  # unlike Path.is_dir, false instead of an error without permission
            return [path]
        files = [file for file in sorted(path.iterdir()) if _is_team_file(file)]
    except OSError as error:
        errors.add(SourceLocation(str(path)), (), f"cannot be read: {error.strerror or 'unknown reason'}")
        return []
    if not files:
        errors.add(SourceLocation(str(path)), (), "the folder has no file named *.yaml or *.yml")
    return files


def _is_team_file(file: Path) -> bool:
    if file.parent == BUNDLED and file.name.endswith(".demo.yaml"):
        return False
    # Editors and Kubernetes ConfigMap mounts create hidden entries.
    return file.suffix in (".yaml", ".yml") and not file.name.startswith(".") and not file.is_dir()


# --- resolving -----------------------------------------------------------------------------------------------


def _reference_context(source: Source, sources: TeamSources) -> ReferenceContext:
    models = sorted({DEFAULT_MODEL, *mapping(source.value(("models",)))})
    return ReferenceContext(
        folder=sources.folder,
        models=models if source.is_complete else None,
        known_tools=sorted(sources.known_tools),
        import_tool=sources.import_tool,
        import_member=sources.import_member,
    )


def _read_pins(source: Source, folder: Path) -> Pins | None:
    if not mapping(source.value((SECTION,))):
        return {}
    try:
        return read_lock(folder)
    except ConfigurationError as error:
        source.errors.add(SourceLocation(str(folder / FILE_NAME)), (), error.message)
        return None


def _resolve(source: Source, context: ReferenceContext, sources: TeamSources) -> LoadedTeams:
    definitions = validate_definitions(source)
    check_references(source, context)
    _check_components(source, definitions, sources.check_component)
    if not source.errors and not definitions.teams and not any(map(_is_exposed, definitions.models.values())):
        source.add_error((), "no team is defined")
    completed = {name: _with_defaults(model, sources.default) for name, model in definitions.models.items()}
    pins = usable_pins(definitions.mcp_servers, context.pins or {})
    definitions = TeamsFile(
        models={DEFAULT_MODEL: sources.default, **completed},
        teams={name: _with_tools(team, pins) for name, team in definitions.teams.items()},
        mcp_servers=definitions.mcp_servers,
    )
    servers = [
        server_setup(name, server, context.folder, sources.environment)
        for name, server in definitions.mcp_servers.items()
    ]
    return LoadedTeams(
        definitions,
        context.imported,
        tuple(_notices(source, definitions)),
        tuple(servers),
        pins,
        context.members,
        is_valid=not source.errors,
        team_names=tuple(mapping(source.value(("teams",)))) if source.has_all_teams else None,
    )


def _with_tools(team: TeamDefinition, pins: Pins) -> TeamDefinition:
    """Return the team with ``mcp:server`` in tool lists replaced by the names of its tools."""
    agents = {
        name: agent.model_copy(update={"tools": expand_servers(agent.tools, pins)})
        for name, agent in team.agents.items()
    }
    return team.model_copy(update={"agents": agents})


def _check_components(source: Source, definitions: TeamsFile, check: CheckComponent | None) -> None:
    for name, model in definitions.models.items():
        if check is not None and isinstance(model, ComponentModel):
            path = ("models", name, "provider")
            try:
                check(name, model)
            except ConfigurationError as error:
                # The value of a variable must not appear in the error message.
                hidden = "the component cannot be loaded"
                source.add_error(path, hidden if path in source.substituted else error.message)


def _is_exposed(model: ModelDefinition) -> bool:
    return not isinstance(model, DemoModel) and model.expose


def _with_defaults(model: ModelDefinition, default: ModelDefinition) -> ModelDefinition:
    """Fill in the base URL of the default model, and its key or sign-in if the base URL is the same.

    A key is never sent to another base URL than the one that it was configured for.
    """
    if not isinstance(model, OpenAIModel):
        return model
    changed: dict[str, Any] = {}
    if (
        "api_key" in model.model_fields_set
        and model.api_key is not None
        and not model.api_key.get_secret_value()
    ):
        changed["api_key"] = None
    if isinstance(default, OpenAIModel):
        if "base_url" not in model.model_fields_set:
            changed["base_url"] = default.base_url
        address = changed.get("base_url", model.base_url)
        if address.rstrip("/") == default.base_url.rstrip("/"):
            for name in {"api_key", "auth"} - model.model_fields_set:
                changed[name] = getattr(default, name)
    return model.model_copy(update=changed) if changed else model


# --- notices -------------------------------------------------------------------------------------------------


def _notices(source: Source, definitions: TeamsFile) -> Iterator[str]:
    for name, model in definitions.models.items():
        if isinstance(model, OpenAIModel) and _lacks_key(model):
            place = source.location(("models", name), at_key=True)
            yield f"{place}: models.{name}: no API key is set, and OpenAI requires one"
    for name, team in definitions.teams.items():
        for agent in team.agents.keys() - _reachable(team):
            place = source.location(("teams", name, "agents", agent), at_key=True)
            yield f"{place}: teams.{name}.agents.{agent}: not reachable by handoffs from the entry '{team.entry}'"


def _lacks_key(model: OpenAIModel) -> bool:
    return model.api_key is None and model.auth == "key" and is_openai(model.base_url)


def _reachable(team: TeamDefinition) -> set[str]:
    reached: set[str] = set()
    pending = [team.entry]
    while pending:
        name = pending.pop()
        if name not in reached and name in team.agents:
            reached.add(name)
            pending += [handoff.to for handoff in team.agents[name].handoffs]
            pending += [delegate.to for delegate in team.agents[name].delegates if delegate.to is not None]
    return reached
