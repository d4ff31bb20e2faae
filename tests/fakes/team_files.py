"""Team files written for a test and loaded as the server would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from proxy.errors import TeamFileError
from proxy.teamfiles.definitions import DemoModel, ModelDefinition, OpenAIModel
from proxy.teamfiles.loader import LoadedTeams, Report, check_teams, load_teams
from proxy.teamfiles.members import python_members
from proxy.teamfiles.team_sources import BUNDLED, CheckComponent, TeamSources, python_tools
from proxy.tools.builtin import builtin_names
from proxy.tools.threads import ToolThreads

DEMO = DemoModel(demo=True)
OPENAI = OpenAIModel(model="gpt-test", api_key=SecretStr("the-servers-key"))


def write(folder: Path, text: str, name: str = "team.yaml") -> Path:
    """Write a file and return its path."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(
    path: Path | None,
    *,
    environment: Mapping[str, str] | None = None,
    default: ModelDefinition = DEMO,
    check_component: CheckComponent | None = None,
    models_file: Path | None = None,
) -> LoadedTeams:
    """Load with the built-in tools and with real imports."""
    return load_teams(_sources(path, environment or {}, default, check_component, models_file))


def check(path: Path | None, *, environment: Mapping[str, str] | None = None) -> Report:
    """Check as ``handoff-proxy check`` does."""
    return check_teams(_sources(path, environment or {}))


def _sources(
    path: Path | None,
    environment: Mapping[str, str],
    default: ModelDefinition = DEMO,
    check_component: CheckComponent | None = None,
    models_file: Path | None = None,
) -> TeamSources:
    return TeamSources(
        path=path or BUNDLED,
        environment=environment,
        default=default,
        import_tool=python_tools(ToolThreads()),
        import_member=python_members(ToolThreads()),
        known_tools=builtin_names(),
        check_component=check_component,
        models_file=models_file,
    )


def problems(
    path: Path,
    *,
    environment: Mapping[str, str] | None = None,
    check_component: CheckComponent | None = None,
) -> list[str]:
    """Load files with errors and return the error lines, without the folder of the files."""
    folder = path if path.is_dir() else path.parent
    try:
        load(path, environment=environment, check_component=check_component)
    except TeamFileError as error:
        return [line.replace(f"{folder}/", "").replace(str(folder), "FOLDER") for line in error.problems]
    return []
