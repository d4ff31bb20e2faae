"""Team files loaded: a file, a folder of them, or the bundled teams, with every mistake told at once.

A mistake is one line, ``file:line:column: where: what``, with the nearest right name where there is one. No line
holds what an environment variable held, or a key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy.errors import ConfigurationError, TeamFileError
from proxy.settings import Settings
from proxy.teamfiles.definitions import (
    ComponentModel,
    DemoModel,
    ModelDefinition,
    OpenAIModel,
    TeamDefinition,
    TeamsFile,
)
from proxy.teamfiles.diagnostics import Mistakes, Place
from proxy.teamfiles.mcp_servers import SECTION, expanded, server_setup, usable_pins
from proxy.teamfiles.name_checks import ImportTool, Surroundings, check_references
from proxy.teamfiles.schema_checks import SECTIONS, check_sections, is_free, is_model, mapping, validated
from proxy.teamfiles.source_map import Source, read_source
from proxy.teamfiles.summary import counted, described
from proxy.tools.functions import function_tool, load_function
from proxy.tools.mcp.lock import FILE_NAME, Pins, read_lock
from proxy.tools.mcp.setup import ServerSetup
from proxy.tools.port import Tool
from proxy.tools.threads import ToolThreads

CheckComponent = Callable[[str, ComponentModel], object]
"""Raises ``ConfigurationError``, without values of the config, for a component that cannot be used. It is given the
model's name."""

BUNDLED = Path(__file__).parent / "bundled"
"""The folder of the teams that come with the program, beside the scripts that play them without a model."""
DEFAULT_MODEL = "default"

_OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class LoadedTeams:
    """What team files say, with every name resolved.

    ``definitions`` always has a model named ``default``. ``tools`` holds the imported functions by their paths;
    built-in names are not among them. ``notices`` are lines about what is no mistake but hardly meant. ``servers`` are
    the MCP servers, ``pins`` their tools that agents may have, as they were accepted; an agent's list names each of
    its own (``mcp:server/tool``).
    """

    definitions: TeamsFile
    tools: Mapping[str, Tool]
    notices: tuple[str, ...]
    servers: tuple[ServerSetup, ...] = ()
    pins: Pins = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found: whole lines. Without ``problems`` the files can be served."""

    problems: tuple[str, ...]
    notices: tuple[str, ...]
    summary: tuple[str, ...]


def default_model(settings: Settings) -> OpenAIModel | DemoModel:
    """Return the model for agents that name none: OpenAI's wire as set, or the demonstration.

    An address of one's own without a key is a real model: local servers need none.
    """
    base_url = settings.openai_base_url
    if settings.openai_api_key is None and base_url.rstrip("/") == _OPENAI:
        return DemoModel(demo=True)
    return OpenAIModel(
        model=settings.openai_model,
        base_url=base_url,
        api_key=settings.openai_api_key,
        auth=settings.openai_auth,
    )


def python_tools(threads: ToolThreads) -> ImportTool:
    """Return an importer that makes tools of Python functions; those that are not ``async`` run in ``threads``."""
    return lambda path, folder: function_tool(load_function(path, folder), threads)


def load_teams(
    path: Path | None,
    *,
    environment: Mapping[str, str],
    default: ModelDefinition,
    known_tools: Collection[str],
    import_tool: ImportTool,
    check_component: CheckComponent | None = None,
    needs_pins: bool = True,
    models_file: Path | None = None,
) -> LoadedTeams:
    """Load a team file, the files of a folder (``*.yaml``, ``*.yml``) as one, or the bundled teams for None.

    ``known_tools`` are the names of built-in tools. ``import_tool`` is called once for each function path, with the
    folder of the team files, and ``check_component`` for each AutoGen component; both raise ``ConfigurationError`` for
    one that cannot be used. ``default`` is the model named ``default`` where the files define none, and lends its key
    to models with the same address. Tools of MCP servers have to be in the lock file beside the team files, unless
    ``needs_pins`` is false, as when that is still to be written; nothing is asked of a server here.

    ``models_file`` defines further models, or is one model, which is then ``default``. Its models replace those of the
    team files with the same names.

    Raises:
        TeamFileError: With one line per error.
    """
    path = path or BUNDLED
    mistakes = Mistakes()
    source = _read(path, environment, mistakes, models_file)
    around = _surroundings(source, path, known_tools, import_tool)
    around.pins = _pinned(source, around.folder) if needs_pins else None
    loaded = _resolve(source, around, default, check_component, environment)
    if mistakes:
        raise TeamFileError(mistakes.lines())
    return loaded


def check_teams(
    path: Path | None,
    *,
    environment: Mapping[str, str],
    default: ModelDefinition,
    known_tools: Collection[str],
    import_tool: ImportTool,
    check_component: CheckComponent | None = None,
    models_file: Path | None = None,
) -> Report:
    """Check what ``load_teams`` would load, and return its errors, or its notices and a summary."""
    path = path or BUNDLED
    mistakes = Mistakes()
    source = _read(path, environment, mistakes, models_file)
    around = _surroundings(source, path, known_tools, import_tool)
    around.pins = _pinned(source, around.folder)
    loaded = _resolve(source, around, default, check_component, environment)
    if mistakes:
        return Report(tuple(mistakes.lines()), (), (counted(source),))
    return Report((), loaded.notices, (counted(source), *described(loaded.definitions, loaded.pins)))


def team_folder(path: Path | None) -> Path:
    """Return the folder of the team files: modules, programs of MCP servers and the lock file are there."""
    path = path or BUNDLED
    return path if os.path.isdir(path) else path.parent


# --- reading -------------------------------------------------------------------------------------------------


def _read(path: Path, environment: Mapping[str, str], mistakes: Mistakes, models_file: Path | None) -> Source:
    """Read the models file, and the team file or all files of the folder, into one source."""
    merged = Source(mistakes, values={(): Place(str(path))})
    if models_file is not None:
        models = _read_models(models_file, environment, mistakes)
        merged.is_whole = models is not None
        if models is not None:
            merged.adopt(models, "models")
    replaced = set(mapping(merged.value(("models",))))
    for file in _files(path, mistakes):
        source = read_source(file, environment, mistakes, is_free=is_free)
        if source is None:
            merged.is_whole = False
            continue
        check_sections(source)
        for section in SECTIONS:
            merged.adopt(source, section, replaced=replaced if section == "models" else ())
    return merged


def _read_models(file: Path, environment: Mapping[str, str], mistakes: Mistakes) -> Source | None:
    """Read a file with a section ``models``, or with the keys of one model at its top level."""
    default = ("models", DEFAULT_MODEL)
    source = read_source(
        file, environment, mistakes, is_free=lambda path: is_free(path) or is_free((*default, *path))
    )
    if source is not None:
        if is_model(source.data):
            source.data = {name: value for name, value in source.data.items() if not name.startswith("x-")}
            source = source.moved_to(default)
        check_sections(source, ("models",))
    return source


def _files(path: Path, mistakes: Mistakes) -> list[Path]:
    try:
        if not os.path.isdir(path):  # unlike Path.is_dir, false where it may not look
            return [path]
        files = [file for file in sorted(path.iterdir()) if _is_team_file(file)]
    except OSError as error:
        mistakes.add(Place(str(path)), (), f"cannot be read: {error.strerror or 'unknown reason'}")
        return []
    if not files:
        mistakes.add(Place(str(path)), (), "the folder holds no file named *.yaml or *.yml")
    return files


def _is_team_file(file: Path) -> bool:
    if file.parent == BUNDLED and file.name.endswith(".demo.yaml"):
        return False
    # Hidden entries are left behind by editors, and by mounted ConfigMaps.
    return file.suffix in (".yaml", ".yml") and not file.name.startswith(".") and not file.is_dir()


# --- resolving -----------------------------------------------------------------------------------------------


def _surroundings(
    source: Source, path: Path, known_tools: Collection[str], import_tool: ImportTool
) -> Surroundings:
    models = sorted({DEFAULT_MODEL, *mapping(source.value(("models",)))})
    return Surroundings(
        folder=team_folder(path),
        models=models if source.is_whole else None,
        known_tools=sorted(known_tools),
        import_tool=import_tool,
    )


def _pinned(source: Source, folder: Path) -> Pins | None:
    if not mapping(source.value((SECTION,))):
        return {}
    try:
        return read_lock(folder)
    except ConfigurationError as error:
        source.mistakes.add(Place(str(folder / FILE_NAME)), (), error.message)
        return None


def _resolve(
    source: Source,
    around: Surroundings,
    default: ModelDefinition,
    check_component: CheckComponent | None,
    environment: Mapping[str, str],
) -> LoadedTeams:
    definitions = validated(source)
    check_references(source, around)
    _check_components(source, definitions, check_component)
    if (
        not source.mistakes
        and not definitions.teams
        and not any(map(_is_exposed, definitions.models.values()))
    ):
        source.wrong((), "no team is defined")
    completed = {name: _completed(model, default) for name, model in definitions.models.items()}
    pins = usable_pins(definitions.mcp_servers, around.pins or {})
    definitions = TeamsFile(
        models={DEFAULT_MODEL: default, **completed},
        teams={name: _with_tools(team, pins) for name, team in definitions.teams.items()},
        mcp_servers=definitions.mcp_servers,
    )
    servers = [
        server_setup(name, server, around.folder, environment)
        for name, server in definitions.mcp_servers.items()
    ]
    notices = tuple(_notices(source, definitions))
    return LoadedTeams(definitions, around.imported, notices, tuple(servers), pins)


def _with_tools(team: TeamDefinition, pins: Pins) -> TeamDefinition:
    """Return the team with each tool of an MCP server named by itself."""
    agents = {
        name: agent.model_copy(update={"tools": expanded(agent.tools, pins)})
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
                # A name out of a variable is told by its variable only.
                hidden = "the component that it names cannot be used"
                source.wrong(path, hidden if path in source.substituted else error.message)


def _is_exposed(model: ModelDefinition) -> bool:
    return not isinstance(model, DemoModel) and model.expose


def _completed(model: ModelDefinition, default: ModelDefinition) -> ModelDefinition:
    """Give a model without an address that of the default, and the default's key or sign-in to models at its address.

    A key is never sent to another address than the one it was set for.
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


# --- what is no mistake, but worth telling -------------------------------------------------------------------


def _notices(source: Source, definitions: TeamsFile) -> Iterator[str]:
    for name, model in definitions.models.items():
        if isinstance(model, OpenAIModel) and model.api_key is None and model.base_url.rstrip("/") == _OPENAI:
            place = source.place(("models", name), at_key=True)
            yield f"{place}: models.{name}: has no key, and OpenAI answers nobody without one"
    for name, team in definitions.teams.items():
        for agent in team.agents.keys() - _reached(team):
            place = source.place(("teams", name, "agents", agent), at_key=True)
            yield f"{place}: teams.{name}.agents.{agent}: no way leads here from the entry '{team.entry}'"


def _reached(team: TeamDefinition) -> set[str]:
    reached: set[str] = set()
    waiting = [team.entry]
    while waiting:
        name = waiting.pop()
        if name not in reached and name in team.agents:
            reached.add(name)
            waiting += [handoff.to for handoff in team.agents[name].handoffs]
    return reached
